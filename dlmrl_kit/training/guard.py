"""The guard of rollouts: what was sampled, here or elsewhere, is what the policy would have sampled.

Whatever samples may go wrong without an error: another temperature, a filter, stale weights, padding that is attended
to, tokens shifted by one. Training then goes on, and learns something else. The guard computes log-probabilities of
sampled actions again and stops the run with one line that names what differs, by how much, where, and why probably.

Before the first update it looks at every action; later, where samples come from another process, at a few of each
rollout. Log-probabilities of weights that are some updates old are compared, but only reported.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import GradientEstimator
from dlmrl_kit.core.errors import TrainingError
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK, STEP_LOG_PROB, Key
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.seeding import generator
from dlmrl_kit.training.gradient import LogProbs, of_all
from dlmrl_kit.training.identical_groups import identical_groups
from dlmrl_kit.training.likely_cause import likely_cause
from dlmrl_kit.training.old_check import SHARE, tolerance
from dlmrl_kit.training.recompute import COMPARED, Actions, Difference, all_actions, differences, recomputed

ALONE_TOO = 2
"""Actions that are computed once more, each by itself, without and with more padding: the first one, and the last."""
PADDING = 3
"""Padding that is then added at the left of their prompts."""


@dataclass(frozen=True)
class Found:
    """What the guard found in this process.

    Attributes:
        differences: for each key that was compared.
        says: an error of another kind; "": none.
    """

    differences: list[Difference]
    says: str = ""


class Guard:
    """Compares what was recorded of a rollout with what the policy gives.

    Args:
        algorithm: the components.
        log_probs: for the size of batches, the precision and the policy.
        seed: of the run; it says which actions are compared later on.
        processes: whose rollouts are compared together.
    """

    def __init__(
        self, algorithm: GradientEstimator, log_probs: LogProbs, seed: int, processes: Processes = ALONE
    ) -> None:
        self.sampler, self.cache, self.log_probs, self.processes = (
            algorithm.sampler,
            algorithm.cache,
            log_probs,
            processes,
        )
        self.policy, self.seed = log_probs.policy, seed

    def check_all(self, trajectory: TensorDictBase) -> None:
        """Compares every action, some of them also alone and with more padding; looks for identical samples.

        Args:
            trajectory: the rollout before any filter; empty in a process that has none.

        Raises:
            TrainingError: it is not what the policy would have sampled.
        """
        self._check(trajectory, all_actions(trajectory) if len(trajectory) else None, whole=True)

    def check_some(self, trajectory: TensorDictBase, number: int, actions: int, behind: int = 0) -> dict[str, float]:
        """Compares a few actions, drawn at random; looks for identical samples.

        Args:
            trajectory: as ``check_all``.
            number: of the update.
            actions: how many to compare, in each process.
            behind: of how many updates ago the weights are that it was sampled with.

        Returns:
            The metric ``recorded_difference_max``, in nats.

        Raises:
            TrainingError: as ``check_all``; if ``behind`` is not 0, differences are no error, as they must be there.
        """
        drawn = None
        if len(trajectory):
            every = all_actions(trajectory)
            order = torch.randperm(len(every), generator=generator("cpu", self.seed, number, "guard"))
            drawn = every.at(order[:actions].sort().values.to(every.sample.device))
        return {"recorded_difference_max": self._check(trajectory, drawn, stale=behind > 0)}

    def _check(
        self, trajectory: TensorDictBase, actions: Actions | None, *, whole: bool = False, stale: bool = False
    ) -> float:
        """Does the work of both; every process calls it. Returns the largest difference over all processes."""
        found, wrong = Found([]), torch.zeros(0, dtype=torch.bool)
        keys = [key for key in COMPARED if key in trajectory.keys(include_nested=True)]
        if actions is not None and STEP_LOG_PROB in keys:
            with torch.no_grad(), self.log_probs.autocast():
                found, wrong = self._look(trajectory, actions, keys, whole)
        everyone = of_all(found, self.processes)
        worst = [one for own in everyone for one in own.differences]
        says = next((own.says for own in everyone if own.says), "")
        if not stale and self._too_many(worst):
            own = ""
            if actions is not None and bool(wrong.any()):
                with torch.no_grad(), self.log_probs.autocast():
                    at = wrong.nonzero().squeeze(-1).to(actions.sample.device)
                    own = likely_cause(trajectory, actions.at(at), self.policy, self.sampler, self.allowed)
            cause = next(filter(None, of_all(own, self.processes)))
            raise TrainingError(self._says(worst, cause))
        if says:
            raise TrainingError(says)
        return max((one.size for one in worst), default=0.0)

    @property
    def allowed(self) -> float:
        """How far (nats) recorded and recomputed values may be apart."""
        return tolerance(self.log_probs)

    def _look(
        self, trajectory: TensorDictBase, actions: Actions, keys: Collection[Key], whole: bool
    ) -> tuple[Found, Tensor]:
        """Returns what this process finds, and which actions differ: bool [R]."""
        pieces: list[dict[Key, Tensor]] = []
        with self.sampler.sampling_from(self.policy, self.cache):
            for first in range(0, len(actions), self.log_probs.size):
                part = actions.at(slice(first, first + self.log_probs.size)).of(trajectory)
                pieces.append(recomputed(part, self.policy, self.sampler, keys))
            again = {key: torch.cat([piece[key] for piece in pieces]) for key in keys}
            says = self._depends_on_batch(trajectory, actions, again[STEP_LOG_PROB]) if whole else ""
        found, wrong = differences(trajectory, actions, again, self.allowed)
        says = says or identical_groups(trajectory, self.policy, self.sampler, self.log_probs.size)
        return Found(found, says), wrong

    def _depends_on_batch(self, trajectory: TensorDictBase, actions: Actions, again: Tensor) -> str:
        """Says whether an action computed alone, without or with more padding, has another log-probability."""
        index = torch.linspace(0, len(actions) - 1, min(ALONE_TOO, len(actions)), device=again.device).long()
        for number, wanted in zip(index.tolist(), again[index].tolist(), strict=True):
            action = actions.at(slice(number, number + 1))
            batch = action.of(trajectory)
            for padding, how in ((0, "alone, without padding"), (PADDING, f"alone, with {PADDING} tokens of padding")):
                if padding and self._too_long(batch, padding):
                    continue
                found = recomputed(self._padded(batch, padding), self.policy, self.sampler, [STEP_LOG_PROB])
                value = found[STEP_LOG_PROB].item()
                if not abs(value - wanted) <= self.allowed:
                    place = f"sample {int(action.sample)}, step {int(action.step)}"
                    return (
                        f"the policy's predictions depend on the batch: {STEP_LOG_PROB!r} of {place} is {value:.4g} "
                        f"{how} and {wanted:.4g} among others; likely cause: padding that is not masked, or a leak "
                        "between rows"
                    )
        return ""

    def _too_long(self, batch: TensorDictBase, padding: int) -> bool:
        length = int(batch[PROMPT_MASK].sum()) + padding + self.sampler.completion_length
        return self.policy.max_length is not None and length > self.policy.max_length

    def _padded(self, batch: TensorDictBase, padding: int) -> TensorDictBase:
        """Returns a batch of one row with so much padding at the left of its prompt."""
        row = batch[PROMPT_IDS][0][batch[PROMPT_MASK][0]].tolist()
        made = self.policy.padded([row, [self.policy.pad_id] * (len(row) + padding)])
        return batch.copy().update(TensorDict({key: value[:1] for key, value in made.items()}, [1]))

    def _too_many(self, worst: list[Difference]) -> bool:
        """Tells whether more differ than rounding explains: one action in a hundred, or most actions of a sample."""
        wrong: dict[Key, list[tuple[int, int]]] = {}
        for one in worst:
            wrong.setdefault(one.key, []).append((one.wrong, one.number))
        shares = [sum(bad for bad, _ in parts) / sum(number for _, number in parts) for parts in wrong.values()]
        return any(one.samples for one in worst) or any(share > SHARE for share in shares)

    def _says(self, worst: list[Difference], cause: str) -> str:
        most = next(one for one in sorted(worst, key=lambda one: -one.size))
        same = [one for one in worst if one.key == most.key]
        share = sum(one.wrong for one in same) / sum(one.number for one in same)
        return (
            f"the rollout is not what the policy samples: {most.key!r} differs by more than {self.allowed:g} in "
            f"{share:.0%} of {sum(one.number for one in same)} actions, most by {most.size:.3g} ({most.where}: "
            f"recorded {most.recorded:.4g}, recomputed {most.again:.4g}); likely cause: {cause}"
        )
