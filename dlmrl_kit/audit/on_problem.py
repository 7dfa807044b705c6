"""Runs the components of a gradient estimator on a small problem, on listed or on sampled trajectories.

If trajectories are listed, the service ``restart`` gives the exact expected reward from a state instead of rewards of
sampled completions:

    V(x_t) = sum over trajectories through x_t of P * R  /  sum over them of P
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NoReturn

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import GradientEstimator
from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.algorithm.stages import Stage
from dlmrl_kit.audit.policies import Parameters
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import GROUP, PROBABILITY, REWARD, SEED, SELECTED_WEIGHT, STEP_VALID, TRAJECTORY, Key
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.core.trajectory import num_valid, states
from dlmrl_kit.corrections.apply import apply_correction
from dlmrl_kit.rollout.rewards import FinalReward
from dlmrl_kit.rollout.services import SamplingServices, Services
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.training.gradient import LogProbs, loss_of
from dlmrl_kit.training.update import run_stages

ALL = 10**6
"""More samples than there are: everything goes through a small policy at once."""


class OnProblem:
    """Plans a gradient estimator on a problem, computes its log-probabilities and differentiates its loss.

    Raises:
        RecipeError: the components do not fit together.
    """

    def __init__(self, estimator: GradientEstimator, problem: Problem) -> None:
        self.estimator, self.problem, self.policy = estimator, problem, problem.denoiser
        self.plan = make_plan(estimator)
        self.parameters = Parameters(self.policy, estimator.sampler)
        self.log_probs = LogProbs(estimator, self.plan, self.policy, micro_batch_size=ALL)

    @property
    def after_reward(self) -> list[Stage]:
        """The stages of a rollout after the sampler and without the final reward, in the plan's order."""
        return [stage for stage in self.plan.rollout[1:] if not isinstance(stage.component, FinalReward)]

    @property
    def advantage(self) -> Stage:
        """The stage of the advantage component itself."""
        return next(s for s in self.plan.rollout if s.component is self.estimator.advantage)

    @property
    def declared(self) -> list[Stage]:
        """The stages of slots that plugins declare; they may look at the whole group."""
        return [stage for stage in self.plan.rollout if stage.slot in self.estimator.declared]

    def fixed(self, batch: TensorDictBase) -> TensorDictBase:
        """Adds old and reference log-probabilities to a batch and corrects its weights, as ``Update.prepare`` does."""
        with torch.no_grad():
            self.log_probs.add_fixed(batch)
        return self.weighed(batch)

    def weighed(self, batch: TensorDictBase) -> TensorDictBase:
        """Corrects the weights of a batch, if the estimator has a correction."""
        return batch if self.estimator.correction is None else apply_correction(batch)

    def loss_gradient(self, batch: TensorDictBase) -> Tensor:
        """Computes the gradient [P] of the loss, without regularisers, on a complete batch."""
        return self.parameters.gradient(loss_of(self.estimator.loss(self.log_probs.live(batch))))


class ExactServices(Services):
    """The services of components on a problem whose trajectories are listed.

    Args:
        problem: gives policy and rewards.
        sampler: the estimator's.
        values: float64 [N, T + 1], the expected reward from x_t of each listed trajectory.
    """

    def __init__(self, problem: Problem, sampler: Sampler, values: Tensor) -> None:
        super().__init__(problem.denoiser, sampler)
        self.problem = problem
        self.values = values
        self.restarts: Tensor | None = None
        """Model forwards that restarts of each row would take, since the last ``call`` began; None: no restarts."""

    def call(self, component: Component, tensordict: TensorDictBase, keys: Collection[Key] = ()) -> TensorDictBase:
        """Runs a component as ``Services.call``, without gradients."""
        self.restarts = None
        with torch.no_grad():
            return super().call(component, tensordict, keys)

    def score(self, ids: Tensor, example: Tensor) -> Tensor:
        """Returns the problem's rewards, float64 [N]."""
        return self.problem.score(ids, example)

    def examples(self, example: Tensor) -> NoReturn:
        """Raises NotImplementedError, as problems have no examples."""
        no_examples()

    def restart(self, tensordict: TensorDictBase, step: Tensor, n: int) -> Tensor:
        """Returns the expected reward from x_step, n times the same: float64 [B, K, n], 0 where the weight is."""
        used = tensordict[SELECTED_WEIGHT] > 0
        left = (num_valid(tensordict)[:, None] - step).clamp(min=0)
        forwards = n * (left * used).sum(-1).double()
        self.restarts = forwards if self.restarts is None else self.restarts + forwards
        value = self.values[tensordict[TRAJECTORY]].gather(1, step) * used
        return value[..., None].expand(*value.shape, n)


class DrawnServices(SamplingServices):
    """The services of components on a problem whose trajectories are sampled; each batch is like an update.

    Args:
        problem: gives policy and rewards.
        sampler: the estimator's.
        seed: of all batches.
        batch: number of this batch.
    """

    def __init__(self, problem: Problem, sampler: Sampler, seed: int, batch: int) -> None:
        super().__init__(problem.denoiser, sampler, ALL)
        self.seed, self.batch = seed, batch
        self.problem = problem

    def score(self, ids: Tensor, example: Tensor) -> Tensor:
        """Returns the problem's rewards, float64 [N]."""
        return self.problem.score(ids, example)

    def examples(self, example: Tensor) -> Sequence[Example]:
        """Raises NotImplementedError, as problems have no examples."""
        no_examples()


def no_examples() -> NoReturn:
    """Refuses a component that reads examples.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError("a component reads the examples of a task, which the audit's problems do not have")


def draw_trajectories(
    small: OnProblem, services: DrawnServices, prompts: TensorDictBase, keys: Collection[Key]
) -> TensorDictBase:
    """Samples a trajectory for each of the prompts [B], with the on-demand ``keys``."""
    asked = prompts.copy().set(SEED, sample_seeds(len(prompts), "cpu", services.seed, services.batch))
    sampler = small.estimator.sampler
    given = services.given_to(sampler)
    sampled: TensorDictBase = sampler(asked, **given, keys=keys, cache=small.estimator.cache)
    return sampled


def complete(small: OnProblem, services: Services, trajectory: TensorDictBase) -> TensorDictBase:
    """Runs all stages after the sampler on sampled trajectories; returns those that the filters keep."""
    with torch.no_grad():
        return run_stages(small.plan.rollout[1:], trajectory, services)[1]


def expected_rewards(trajectories: TensorDictBase, mask_id: int) -> Tensor:
    """Computes ``values`` of ``ExactServices`` from all trajectories, with ``probability`` and ``reward``."""
    probability, reward = trajectories[PROBABILITY], trajectories[REWARD]
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
