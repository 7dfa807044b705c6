"""Log-probabilities of the selected segments under the current, the old and the reference policy, in pieces.

Likelihood and value models are run on micro-batches that fit in memory. Where a sample's segments do not, it is cut
between them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import Plan, Stage, plain_key, twin_key
from dlmrl_kit.core.batches import micro_batches, restored, segment_pieces
from dlmrl_kit.core.keys import (
    COMPLETION_IDS,
    GROUP,
    ITERATION,
    PROMPT_MASK,
    SELECTED_LOG_PROB,
    SELECTED_OLD_LOG_PROB,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_LOG_PROB,
    Key,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.trajectory import every_step, gather_steps, where_used
from dlmrl_kit.corrections.apply import add_correction
from dlmrl_kit.likelihoods.base import pack_tokens
from dlmrl_kit.likelihoods.step_log_prob import StepLogProb

EXACT = Stage("likelihood", StepLogProb())
"""The log-probability of whole actions, for corrections."""


class LogProbs:
    """Runs the likelihood and the value models of an algorithm.

    Args:
        algorithm: its components.
        plan: what of them is read.
        policy: the denoiser.
        micro_batch_size: samples per forward pass.
        micro_batch_tokens: prompt and completion tokens per pass, over all states that are scored; None: no limit.
        precision: ``float32``, or ``bfloat16`` for autocast.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        plan: Plan,
        policy: Policy,
        *,
        micro_batch_size: int,
        micro_batch_tokens: int | None = None,
        precision: str = "float32",
    ) -> None:
        self.sampler = algorithm.sampler
        self.likelihood = algorithm.likelihood
        self.correction = algorithm.correction
        self.plan = plan
        self.policy = policy
        self.size = micro_batch_size
        self.tokens = micro_batch_tokens
        self.precision = precision
        self.models = (plan.likelihood, *plan.values)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Mixed precision, if that was asked for."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.policy.device.type, dtype=torch.bfloat16)

    def run(self, batch: TensorDictBase, models: Iterable[Stage] | None = None) -> TensorDictBase:
        """Adds what the likelihood and the value models write, with gradients where they are enabled."""
        for model in self.models if models is None else models:
            asked = {"keys": model.keys} if model.component.optional_keys else {}
            batch = model.component(batch, policy=self.policy, sampler=self.sampler, **asked)
        return batch

    def live(self, micro: TensorDictBase) -> TensorDictBase:
        """Adds what is computed inside a micro-batch: under the current policy, and a reference that is never kept."""
        with self.autocast():
            if self.plan.live_reference:
                self.add_live_reference(micro)
            return self.run(micro)

    def add_live_reference(self, micro: TensorDictBase) -> None:
        """Adds the keys of the reference policy that are too large to keep with a trajectory."""
        with torch.no_grad(), self.policy.reference():
            found = self.run(micro.copy())
        for key in self.plan.live_reference:
            micro.set(twin_key(key, "ref_"), found[key])

    def pieces(self, micro: TensorDictBase) -> list[tuple[Tensor, TensorDictBase]]:
        """The micro-batch cut between segments so that each piece keeps to the token budget; one without budget."""
        if self.tokens is not None:
            length = micro[COMPLETION_IDS].shape[1]
            tokens = int(micro[PROMPT_MASK].any(0).sum()) + length
            most = max(self.tokens // (tokens * self.likelihood.forwards(length)), 1)
            if int((micro[SELECTED_WEIGHT] != 0).sum()) > most:
                return segment_pieces(micro, most)
        return [(torch.arange(len(micro), device=micro[GROUP].device), micro)]

    def without_gradient(
        self, micro: TensorDictBase, keys: Iterable[Key], models: Sequence[Stage] | None = None
    ) -> dict[Key, Tensor]:
        """Keys of the models for a micro-batch, [B, K, ...] each."""
        found: dict[Key, Tensor] = {}
        for rows, piece in self.pieces(micro):
            with torch.no_grad(), self.autocast():
                estimated = self.run(piece.copy(), models)
            for key in keys:
                value = estimated[key]
                whole = found.setdefault(key, value.new_zeros((len(micro), *value.shape[1:])))
                whole.index_add_(0, rows, value)
        return found

    def of_rollout(self, trajectory: TensorDictBase, keys: Sequence[Key], model: Stage) -> dict[Key, Tensor]:
        """Keys of a model for a whole rollout, micro-batch by micro-batch, without gradients: [B, K, ...] each."""
        rows, found = [], []
        for index, micro in micro_batches(trajectory, self.size, False):
            rows.append(index)
            found.append(self.without_gradient(micro, keys, [model]))
        return {key: restored([values[key] for values in found], rows) for key in keys}

    def add_fixed(self, trajectory: TensorDictBase, passes: int = 1) -> dict[str, float]:
        """Adds what stays fixed during an update: old and reference log-probabilities, token masks, a correction.

        For a likelihood that draws new masks in each of several ``passes`` over the rollout, all of it once for each
        further pass, under ``("pass", "1")``, ``("pass", "2")`` ...

        Returns:
            Diagnostics of the correction; none without one.
        """
        metrics: dict[str, float] = {}
        known: set[Key] = set()
        if self.correction is not None:
            metrics, known = self._add_correction(trajectory)
        if not self.likelihood.redraw:
            self._add_fixed(trajectory, 0, known)
            return metrics
        later = [self._add_fixed(trajectory.copy(), i) for i in range(1, passes)]
        shared = set(trajectory.keys(True, True)) - {ITERATION}
        self._add_fixed(trajectory, 0)
        for i, extra in enumerate(later, 1):
            trajectory.set(("pass", str(i)), extra.exclude(*shared))
        return metrics

    def _add_fixed(self, trajectory: TensorDictBase, iteration: int, known: Collection[Key] = ()) -> TensorDictBase:
        likelihood = self.plan.likelihood
        if ITERATION in self.likelihood.in_keys:
            trajectory.set(ITERATION, torch.full_like(trajectory[GROUP], iteration))
        self.likelihood.prepare(trajectory, sampler=self.sampler, policy=self.policy, keys=likelihood.keys)
        again = {key for key, source in self.plan.old.items() if source is None} - {*known}
        if again:
            self._add_twins(trajectory, [plain_key(key) for key in again], "old_")
        for key, source in self.plan.old.items():
            if source is not None:
                trajectory.set(key, self._recorded(trajectory, source))
        if self.plan.reference:
            with self.policy.reference():
                self._add_twins(trajectory, self.plan.reference, "ref_")
        return trajectory

    def _add_twins(self, trajectory: TensorDictBase, keys: Sequence[Key], prefix: str) -> None:
        """Runs the likelihood without gradients and stores its keys under names with a prefix."""
        for key, value in self.of_rollout(trajectory, keys, self.plan.likelihood).items():
            trajectory.set(twin_key(key, prefix), value)

    def _recorded(self, trajectory: TensorDictBase, source: Key) -> Tensor:
        """What the sampler recorded, at the selected steps."""
        if source[0] == "token":
            return pack_tokens(trajectory, trajectory[source], self.sampler.max_commits)
        values = gather_steps(trajectory[source], trajectory[SELECTED_STEP])
        return values.masked_fill(trajectory[SELECTED_WEIGHT] == 0, 0.0)

    def _add_correction(self, trajectory: TensorDictBase) -> tuple[dict[str, float], set[Key]]:
        """Adds ``("selected", "correction")``; returns its diagnostics, and old keys that the same forwards gave."""
        assert self.correction is not None
        scored = every_step(trajectory) if self.correction.every_step else trajectory
        log_prob = self.of_rollout(scored, [SELECTED_LOG_PROB], EXACT)[SELECTED_LOG_PROB]
        metrics = add_correction(trajectory, self.correction, scored, log_prob)
        same = self.likelihood.recorded.get(SELECTED_LOG_PROB) == STEP_LOG_PROB  # it computes just that
        if SELECTED_OLD_LOG_PROB not in self.plan.old or not same:
            return metrics, set()
        old = gather_steps(log_prob, trajectory[SELECTED_STEP]) if self.correction.every_step else log_prob
        trajectory.set(SELECTED_OLD_LOG_PROB, where_used(old, trajectory[SELECTED_WEIGHT] != 0))
        return metrics, {SELECTED_OLD_LOG_PROB}
