"""A recipe's own components, run on listed trajectories: the services they need, and one group from start to gradient.

``restart`` gives the exact conditional expectation of the reward instead of sampled completions:

    V(x_t) = sum over trajectories through x_t of P * R  /  sum over them of P
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.core.keys import GROUP, REWARD, SELECTED_WEIGHT, STEP_VALID
from dlmrl_kit.core.trajectory import num_valid, states
from dlmrl_kit.rollout.rewards import FinalReward
from dlmrl_kit.trainers.trainer import Trainer
from dlmrl_kit.training.update import Updater


@dataclass
class ExactServices:
    """What components may require, on a problem whose trajectories are listed.

    Args:
        problem: policy and reward.
        sampler: the algorithm's.
        values: float64 [N, T + 1], the expected reward from x_t of each listed trajectory.
        seed: of the ``generator`` service.
    """

    problem: Problem
    sampler: Any
    values: Tensor
    seed: int = 0
    restarts: Tensor | None = field(default=None, init=False)
    """Model forwards of the restarts asked for since the last ``call``, for each row."""

    def call(self, component: Any, tensordict: TensorDictBase) -> TensorDictBase:
        """Runs a component with the services it requires."""
        self.restarts = None
        with torch.no_grad():
            return component(tensordict, **{name: self._service(name) for name in getattr(component, "requires", ())})

    def _service(self, name: str) -> Any:
        services = {
            "policy": self.problem.denoiser,
            "sampler": self.sampler,
            "score": self.problem.score,
            "restart": self.restart,
            "generator": torch.Generator().manual_seed(self.seed),
        }
        return services[name]

    def restart(self, tensordict: TensorDictBase, step: Tensor, n: int) -> Tensor:
        """The ``restart`` service, [B, K, n]: the expected reward, n times the same; 0 in slots of weight 0."""
        used = tensordict[SELECTED_WEIGHT] > 0
        left = (num_valid(tensordict)[:, None] - step).clamp(min=0)
        forwards = n * (left * used).sum(-1).double()
        self.restarts = forwards if self.restarts is None else self.restarts + forwards
        value = self.values[tensordict["trajectory"]].gather(1, step) * used
        return value[..., None].expand(*value.shape, n)


def expected_rewards(trajectories: TensorDictBase, mask_id: int) -> Tensor:
    """``values`` of ``ExactServices``, from trajectories with ``probability`` and ``reward``."""
    probability, reward = trajectories["probability"], trajectories[REWARD]
    num_steps = trajectories[STEP_VALID].shape[1]
    columns = []
    for step in range(num_steps + 1):
        at = torch.full((len(reward), 1), step)
        state = states(trajectories, at, mask_id).squeeze(1)
        code = torch.cat([trajectories[GROUP][:, None], state], -1)
        index = torch.unique(code, dim=0, return_inverse=True)[1]
        sums = torch.zeros(2, int(index.max()) + 1, dtype=torch.float64)
        sums = sums.index_add(1, index, torch.stack([probability * reward, probability]))
        columns.append((sums[0] / sums[1])[index])
    return torch.stack(columns, dim=1)


def updater(algorithm: Algorithm, problem: Problem) -> Updater:
    """The kit's own preparation of old and reference log-probabilities, without an optimiser."""
    small = Algorithm.__new__(Algorithm)
    small.__dict__.update(vars(algorithm), trainer=Trainer(micro_batch_size=10**6, device="cpu"))
    return Updater(small, problem.denoiser, None, None)


def after_reward(algorithm: Algorithm) -> list[Any]:
    """The rollout components behind the sampler and the final reward, in the plan's order."""
    return [part for part in algorithm.plan.rollout[1:] if not isinstance(part, FinalReward)]


def terms_gradient(
    algorithm: Algorithm, services: ExactServices, rows: TensorDictBase, terms: list[Any], skip: tuple[Any, ...] = ()
) -> Tensor:
    """Gradient [P] of the sum of ``terms`` on the trajectories ``rows`` as one batch, all components run on it.

    ``skip``: components whose keys are already there.
    """
    batch = rows.copy()
    for component in after_reward(algorithm):
        if component not in skip and len(batch):
            batch = services.call(component, batch)
    if len(batch) == 0:  # a filter kept nothing
        return torch.zeros_like(services.problem.denoiser.flat_gradient(torch.zeros(())))
    with torch.no_grad():
        updater(algorithm, services.problem).prepare(batch)
    batch = under_policy(algorithm, services, batch)
    return services.problem.denoiser.flat_gradient(
        sum((descended(term(batch)) for term in terms), torch.zeros((), dtype=torch.float64))
    )


def under_policy(algorithm: Algorithm, services: ExactServices, batch: TensorDictBase) -> TensorDictBase:
    """Adds what is computed inside a micro-batch: the likelihood's keys, with gradient, and a live reference."""
    if algorithm.plan.live_reference:
        updater(algorithm, services.problem)._add_live_reference(batch)
    for estimator in (algorithm.likelihood, *algorithm.values):
        batch = estimator(batch, policy=services.problem.denoiser, sampler=services.sampler)
    return batch


def descended(output: TensorDictBase) -> Tensor:
    """Sum of what a loss or regulariser gives to be descended."""
    return torch.stack([value for name, value in output.items() if name.startswith("loss_")]).sum()
