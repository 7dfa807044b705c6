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

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.errors import TrainingError
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK, STEP_LOG_PROB, Key
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.seeding import generator
from dlmrl_kit.samplers.recorder import FOLLOWING
from dlmrl_kit.training.gradient import LogProbs, of_all
from dlmrl_kit.training.identical_groups import identical_groups
from dlmrl_kit.training.likely_cause import likely_cause
from dlmrl_kit.training.old_check import tolerance, too_many
from dlmrl_kit.training.recompute import Actions, Difference, all_actions, differences, recomputed

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
        algorithm: the components; its trainer says how often to look, and at how many actions.
        log_probs: for the size of batches, the precision and the policy.
        processes: whose rollouts are compared together.

    Attributes:
        every: updates between checks of some actions; 0: there are none.
    """

    def __init__(self, algorithm: Algorithm, log_probs: LogProbs, processes: Processes = ALONE) -> None:
        self.sampler, self.trainer = algorithm.sampler, algorithm.trainer
        self.log_probs, self.policy, self.processes = log_probs, log_probs.policy, processes
        own, elsewhere = self.trainer.guard_every, algorithm.collector is not None
        self.every = int(elsewhere) if own is None else own

    def check(
        self,
        trajectory: TensorDictBase,
        number: int,
        cache: Cache | None = None,
        *,
        behind: int = 0,
        whole: bool = False,
    ) -> dict[str, float]:
        """Compares log-probabilities, and looks for identical samples; every process calls it.

        Args:
            trajectory: the rollout before any filter; empty in a process that has none.
            number: of the update.
            cache: that was sampled with.
            behind: by how many updates the weights that it was sampled with are older than the policy's. If it is not
                0, differences are reported and are no error, as there must be some.
            whole: compare all actions, two of them also alone and with other padding, not only some drawn at random.

        Returns:
            The metric ``recorded_difference_max``, in nats, unless all actions of the present policy are compared.

        Raises:
            TrainingError: it is not what the policy would have sampled.
        """
        whole = whole and not behind
        every = all_actions(trajectory) if len(trajectory) else None
        everyone, wrong = self._compare(trajectory, every if whole else self._some(every, number), whole, cache)
        if any(one.wrong for found in everyone for one in found.differences) and not behind:
            if not whole:  # of so few no share can be told
                everyone, wrong = self._compare(trajectory, every, whole, cache)
            if _too_many(everyone):
                raise TrainingError(self._says(everyone, self._cause(trajectory, every, wrong)))
        for found in everyone:
            if found.says:
                raise TrainingError(found.says)
        largest = max((one.size for found in everyone for one in found.differences), default=0.0)
        return {} if whole else {"recorded_difference_max": largest}

    def _some(self, every: Actions | None, number: int) -> Actions | None:
        """Draws some actions at random, for an update."""
        if every is None:
            return None
        order = torch.randperm(len(every), generator=generator("cpu", self.trainer.seed, number, "guard"))
        return every.at(order[: self.trainer.guard_actions].sort().values.to(every.sample.device))

    def _compare(
        self, trajectory: TensorDictBase, actions: Actions | None, whole: bool, cache: Cache | None
    ) -> tuple[list[Found], Tensor]:
        """Returns what every process finds, and which of the actions of this one differ: bool [R]."""
        found, wrong = Found([]), torch.zeros(0, dtype=torch.bool)
        keys = [key for key in FOLLOWING if key in trajectory.keys(include_nested=True)]
        with self.policy.in_step():
            if actions is not None and STEP_LOG_PROB in keys:
                with torch.no_grad(), self.log_probs.autocast():
                    found, wrong = self._look(trajectory, actions, keys, whole, cache)
        return of_all(found, self.processes), wrong

    def _cause(self, trajectory: TensorDictBase, actions: Actions | None, wrong: Tensor) -> str:
        """Returns what the first process that has actions that differ takes for the cause."""
        own = ""
        with self.policy.in_step():
            if actions is not None and bool(wrong.any()):
                with torch.no_grad(), self.log_probs.autocast():
                    own = likely_cause(trajectory, actions.at(wrong), self.policy, self.sampler, self.allowed)
        return next(filter(None, of_all(own, self.processes)))

    @property
    def allowed(self) -> float:
        """How far (nats) recorded and recomputed values may be apart."""
        return tolerance(self.log_probs)

    def _look(
        self, trajectory: TensorDictBase, actions: Actions, keys: Collection[Key], whole: bool, cache: Cache | None
    ) -> tuple[Found, Tensor]:
        """Returns what this process finds, and which actions differ: bool [R]."""
        pieces: list[dict[Key, Tensor]] = []
        with self.sampler.sampling_from(self.policy, cache):
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

    def _says(self, everyone: list[Found], cause: str) -> str:
        every = [(rank, one) for rank, found in enumerate(everyone) for one in found.differences]
        rank, most = max(every, key=lambda ranked: ranked[1].size)
        wrong, number, _ = _counts(everyone)[most.key]
        process = f"rank {rank}, " if len(everyone) > 1 else ""
        return (
            f"the rollout is not what the policy samples: {most.key!r} differs by more than {self.allowed:g} in "
            f"{wrong / number:.0%} of {number} actions, most by {most.size:.3g} ({process}{most.where}: recorded "
            f"{most.recorded:.4g}, recomputed {most.again:.4g}); likely cause: {cause}"
        )


def _counts(everyone: list[Found]) -> dict[Key, tuple[int, int, float]]:
    """Counts, for each key, the actions that differ and those compared, and returns the largest difference, too."""
    found: dict[Key, tuple[int, int, float]] = {}
    for one in (one for own in everyone for one in own.differences):
        wrong, number, largest = found.get(one.key, (0, 0, 0.0))
        found[one.key] = wrong + one.wrong, number + one.number, max(largest, one.size)
    return found


def _too_many(everyone: list[Found]) -> bool:
    """Tells whether they differ more than rounding explains, or in most actions of a sample."""
    if any(one.samples for found in everyone for one in found.differences):
        return True
    return any(too_many(*counts) for counts in _counts(everyone).values())
