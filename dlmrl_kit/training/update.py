"""The update: old and reference log-probabilities, then minibatches of micro-batches down the loss.

Every mean is a numerator over a global count, so cutting a minibatch into micro-batches (or processes) changes nothing.
Where a sample's slots do not fit in one pass, they are cut too: losses that are sums over slots are descended piece by
piece; any other loss is differentiated with respect to the log-probabilities first, and these in a second pass.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Algorithm, dataflow
from dlmrl_kit.algorithm.dataflow import plain_key, twin_key
from dlmrl_kit.core import seeding
from dlmrl_kit.core.errors import TrainingError
from dlmrl_kit.core.keys import (
    COMPLETION_IDS,
    GROUP,
    PROMPT_MASK,
    SELECTED_LOG_PROB,
    SELECTED_OLD_LOG_PROB,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_LOG_PROB,
)
from dlmrl_kit.core.trajectory import every_step, gather_steps
from dlmrl_kit.corrections.apply import add_correction, corrected
from dlmrl_kit.likelihoods.base import pack_tokens
from dlmrl_kit.likelihoods.step_log_prob import StepLogProb
from dlmrl_kit.losses.base import Objective, keep
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.training.pieces import micro_batches, restored, shuffled, slot_pieces
from dlmrl_kit.training.start import trained


@dataclass
class Totals:
    """Weighted sums of metrics over the micro-batches of an update; metrics named ``*_max`` keep their maximum."""

    sums: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: float, weight: float = 1.0) -> None:
        """Adds a value with a weight."""
        if name.endswith("_max"):
            self.sums[name] = max(self.sums.get(name, value), value)
            self.weights[name] = 1.0
            return
        self.sums[name] = self.sums.get(name, 0.0) + value * weight
        self.weights[name] = self.weights.get(name, 0.0) + weight

    def add_part(self, name: str, value: float) -> None:
        """Adds to the sum of a value that was added with its weight before."""
        self.sums[name] += value

    def merge(self, other: Totals) -> None:
        """Adds what another one holds."""
        for name, value in other.sums.items():
            if other.weights[name]:
                self.add(name, value / other.weights[name], other.weights[name])

    def means(self) -> dict[str, float]:
        """Weighted mean of each metric."""
        return {name: self.sums[name] / self.weights[name] for name in self.sums if self.weights[name]}


class Updater:
    """Descends an algorithm's loss on rollouts.

    Args:
        algorithm: with its plan.
        policy: the denoiser being trained.
        optimiser, scheduler: of torch.
    """

    def __init__(self, algorithm: Algorithm, policy: Policy, optimiser: Any, scheduler: Any) -> None:
        self.algorithm = algorithm
        self.plan = algorithm.plan
        self.trainer = algorithm.trainer
        self.policy = policy
        self.optimiser = optimiser
        self.scheduler = scheduler
        self.parameters = list(trained(policy, algorithm.components).values())
        self.terms: list[Any] = [algorithm.loss, *algorithm.regularisers]
        self.whole_groups = any(term.needs_groups for term in self.terms)
        self.slotwise = all(term.slotwise for term in self.terms)
        self._labels = _labels(self.terms)
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.correction_metrics: dict[str, float] = {}

    @property
    def estimators(self) -> list[Any]:
        """What is computed under the current policy for the terms: the likelihood and the value models."""
        return [self.algorithm.likelihood, *self.algorithm.values]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision, if the trainer asks for it."""
        if self.trainer.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.policy.device.type, dtype=torch.bfloat16)

    def prepare(self, trajectory: TensorDictBase) -> TensorDictBase:
        """Adds what stays fixed during the update, and applies the correction to the weights."""
        return corrected(self.score(trajectory))

    def score(self, trajectory: TensorDictBase) -> TensorDictBase:
        """Adds what stays fixed during the update: old and reference log-probabilities, token slots, correction.

        For an estimator that draws new masks in each pass, all of it once for each further pass, under
        ``("pass", "1")``, ``("pass", "2")`` ...
        """
        known = self._add_correction(trajectory) if self.algorithm.correction is not None else set()
        if not self.algorithm.likelihood.redraw:
            return self._prepare(trajectory, 0, known)
        passes = [self._prepare(trajectory.copy(), i) for i in range(1, self.trainer.inner_iterations)]
        shared = set(trajectory.keys(True, True)) - {dataflow.ITERATION}
        self._prepare(trajectory, 0)
        for i, extra in enumerate(passes, 1):
            trajectory.set(("pass", str(i)), extra.exclude(*shared))
        return trajectory

    def _prepare(self, trajectory: TensorDictBase, iteration: int, known: Collection[Any] = ()) -> TensorDictBase:
        likelihood = self.algorithm.likelihood
        if dataflow.ITERATION in likelihood.in_keys:
            trajectory.set(dataflow.ITERATION, torch.full_like(trajectory[GROUP], iteration))
        likelihood.prepare(trajectory, sampler=self.algorithm.sampler, policy=self.policy)
        recomputed = {key for key, source in self.plan.old.items() if source is None} - {*known}
        if recomputed:
            self._add_twins(trajectory, [plain_key(key) for key in recomputed], "old_")
        for key, source in self.plan.old.items():
            if source is not None:
                trajectory.set(key, self._recorded(trajectory, source))
        if self.plan.reference:
            with self.policy.reference():
                self._add_twins(trajectory, self.plan.reference, "ref_")
        return trajectory

    def _add_correction(self, trajectory: TensorDictBase) -> set[Any]:
        """Adds ``("selected", "correction")``; returns old keys that it could add as well, from the same forwards."""
        correction, likelihood = self.algorithm.correction, self.algorithm.likelihood
        scored = every_step(trajectory) if correction.every_step else trajectory
        log_prob = self._all_values(scored, [SELECTED_LOG_PROB], StepLogProb())[SELECTED_LOG_PROB]
        self.correction_metrics = add_correction(trajectory, correction, scored, log_prob)
        if SELECTED_OLD_LOG_PROB not in self.plan.old or type(likelihood) is not StepLogProb:
            return set()
        old = gather_steps(log_prob, trajectory[SELECTED_STEP]) if correction.every_step else log_prob
        trajectory.set(SELECTED_OLD_LOG_PROB, keep(old, trajectory[SELECTED_WEIGHT] != 0))
        return {SELECTED_OLD_LOG_PROB}

    def _recorded(self, trajectory: TensorDictBase, source: Any) -> Tensor:
        if source[0] == "token":
            return pack_tokens(trajectory, trajectory[source], self.algorithm.sampler.max_commits)
        values = gather_steps(trajectory[source], trajectory[SELECTED_STEP])
        return values.masked_fill(trajectory[SELECTED_WEIGHT] == 0, 0.0)

    def _add_twins(self, trajectory: TensorDictBase, keys: Any, prefix: str) -> None:
        """Runs the likelihood without gradients and stores its keys under names with a prefix."""
        for key, value in self._all_values(trajectory, keys, self.algorithm.likelihood).items():
            trajectory.set(twin_key(key, prefix), value)

    def _all_values(self, trajectory: TensorDictBase, keys: Any, estimator: Any) -> dict[Any, Tensor]:
        """Keys of an estimator for a whole rollout, micro-batch by micro-batch, without gradients: [B, K, ...] each."""
        rows, pieces = [], []
        for index, micro in micro_batches(trajectory, self.trainer.micro_batch_size, False):
            rows.append(index)
            pieces.append(self._values(micro, keys, [estimator]))
        return {key: restored([piece[key] for piece in pieces], rows) for key in keys}

    def _estimate(self, micro: TensorDictBase, estimators: Sequence[Any] | None = None) -> TensorDictBase:
        """Adds what the likelihood and the value models write."""
        for part in self.estimators if estimators is None else estimators:
            micro = part(micro, policy=self.policy, sampler=self.algorithm.sampler)
        return micro

    def _pieces(self, micro: TensorDictBase) -> list[tuple[Tensor, TensorDictBase]]:
        """The micro-batch cut between slots so that each piece keeps to the token budget; one piece without budget."""
        budget = self.trainer.micro_batch_tokens
        length = int(micro[PROMPT_MASK].any(0).sum()) + micro[COMPLETION_IDS].shape[1] if budget else 0
        slots = max(budget // (length * self.algorithm.likelihood.copies), 1) if budget else 0
        if not slots or int((micro[SELECTED_WEIGHT] != 0).sum()) <= slots:
            return [(torch.arange(len(micro), device=micro[GROUP].device), micro)]
        return slot_pieces(micro, slots)

    def _values(self, micro: TensorDictBase, keys: Any, estimators: Sequence[Any] | None = None) -> dict[Any, Tensor]:
        """Keys of the estimators for a micro-batch, without gradients: [B, K, ...] each."""
        found: dict[Any, Tensor] = {}
        for rows, piece in self._pieces(micro):
            with torch.no_grad(), self.autocast():
                estimated = self._estimate(piece.copy(), estimators)
            for key in keys:
                value = estimated[key]
                whole = found.setdefault(key, value.new_zeros((len(micro), *value.shape[1:])))
                whole.index_add_(0, rows, value)
        return found

    def tolerance(self) -> float:
        """How far recorded and recomputed log-probabilities may be apart: by rounding, coarser in half precision."""
        full = all(p.dtype in (torch.float32, torch.float64) for p in self.policy.parameters())
        return 1e-3 if full and self.trainer.precision == "float32" else 0.1

    def check_old(self, trajectory: TensorDictBase) -> float:
        """Compares recorded with recomputed log-probabilities before the first update.

        Returns:
            The largest difference among the first micro-batch's selected steps.

        Raises:
            TrainingError: more than one step in a hundred disagrees, so the old/new ratio would not start at 1.
        """
        tolerance = self.tolerance()
        largest = 0.0
        for again, recorded, used, source, name in self._both(trajectory):
            difference = (again - recorded).abs()[used]
            if difference.numel() == 0:
                continue
            largest = max(largest, difference.max().item())
            share = (~(difference <= tolerance)).float().mean().item()  # NaN disagrees too
            if share > 0.01:
                raise TrainingError(
                    f"old and new log-probabilities disagree before the first update: {share:.0%} of the selected "
                    f"steps differ by more than {tolerance:g} (largest {largest:.3g}). "
                    f"{name} does not compute what {type(self.algorithm.sampler).__name__} recorded as {source}"
                )
        return largest

    def _both(self, trajectory: TensorDictBase) -> Iterator[tuple[Tensor, Tensor, Tensor, Any, str]]:
        """Log-probabilities computed again, as recorded, where they count, the sampler's key, and what computed them.

        With a correction, those of the distribution that was sampled from: a cache keeps whole states, so few at once.
        """
        sampler, size = self.algorithm.sampler, self.trainer.micro_batch_size
        if self.algorithm.correction is not None:
            micro = trajectory[: max(size // trajectory[SELECTED_WEIGHT].shape[1], 1)].copy()
            recorded = gather_steps(micro[STEP_LOG_PROB], micro[SELECTED_STEP])
            with torch.no_grad(), self.autocast(), sampler.as_sampled(self.policy):
                again = self._estimate(micro, [StepLogProb()])[SELECTED_LOG_PROB]
            yield again, recorded, micro[SELECTED_WEIGHT] > 0, STEP_LOG_PROB, "the distribution it samples from"
            return
        micro = trajectory[:size].copy()
        with torch.no_grad(), self.autocast():
            estimated = self._estimate(micro)
        used = estimated[SELECTED_WEIGHT] > 0
        for key, source in self.plan.old.items():
            if source is not None:
                yield estimated[plain_key(key)], estimated[key], used, source, type(self.algorithm.likelihood).__name__

    def minibatches(self, trajectory: TensorDictBase, update: int) -> Iterator[TensorDictBase]:
        """The samples of a rollout in random order, cut into minibatches, once per inner iteration."""
        for iteration in range(self.trainer.inner_iterations):
            generator = seeding.generator("cpu", self.trainer.seed, update, "minibatches", iteration)
            for part in shuffled(trajectory, self.trainer.minibatches, generator, self.whole_groups):
                minibatch = trajectory[part]
                redrawn = minibatch.pop("pass", None)
                if redrawn is not None and iteration > 0:
                    minibatch.update(redrawn[str(iteration)])
                if len(minibatch):
                    yield minibatch

    def update(self, trajectory: TensorDictBase, update: int) -> dict[str, float]:
        """All optimiser steps on one rollout; returns metrics.

        Raises:
            TrainingError: too many steps in a row with a non-finite loss or gradient.
        """
        totals = Totals()
        for minibatch in self.minibatches(trajectory, update):
            found = Totals()
            with self.policy.fused():
                loss = self._backward(minibatch, found)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.trainer.max_grad_norm).item()
            totals.add("learning_rate", self.scheduler.get_last_lr()[0])
            if math.isfinite(loss) and math.isfinite(norm):
                self.optimiser.step()
                self.scheduler.step()
                self.skipped_in_a_row = 0
                totals.merge(found)
                totals.add("loss", loss)
                totals.add("grad_norm", norm)
            else:
                self._skip(loss, norm)
            self.optimiser.zero_grad(set_to_none=True)
        return {**self.correction_metrics, **totals.means(), "skipped": float(self.skipped)}

    def _backward(self, minibatch: TensorDictBase, totals: Totals) -> float:
        """Accumulates the gradient of the minibatch's loss; returns the loss."""
        counts = [float(term.count(minibatch)) for term in self.terms]
        for term, labels in zip(self.terms, self._labels, strict=True):
            for name in _additive(term):
                totals.add(labels[name], 0.0)
        loss = 0.0
        for _, micro in micro_batches(minibatch, self.trainer.micro_batch_size, self.whole_groups):
            pieces = self._pieces(micro)
            if len(pieces) == 1:
                loss += self._descend(self._live(micro), counts, totals)
            elif self.slotwise:
                loss += sum(self._descend(self._live(piece), counts, totals) for _, piece in pieces)
            else:
                loss += self._descend_in_two_passes(micro, pieces, counts, totals)
        return loss

    def _live(self, micro: TensorDictBase) -> TensorDictBase:
        """Adds what the estimators compute under the current policy, with gradients."""
        with self.autocast():
            if self.plan.live_reference:
                self._add_live_reference(micro)
            return self._estimate(micro)

    def _descend(self, micro: TensorDictBase, counts: list[float], totals: Totals) -> float:
        """Back-propagates this micro-batch's share of the loss; returns it."""
        outputs = [term(micro) for term in self.terms]
        shares = [_share(float(t.count(micro)), count) for t, count in zip(self.terms, counts, strict=True)]
        total = torch.stack([_loss(output) * share for output, share in zip(outputs, shares, strict=True)]).sum()
        if total.requires_grad or bool((micro[SELECTED_WEIGHT] != 0).any()):
            total.backward()
        for term, output, share, labels in zip(self.terms, outputs, shares, self._labels, strict=True):
            for name, value in output.items():
                if name in _additive(term):
                    totals.add_part(labels[name], value.item() * share)
                else:
                    totals.add(labels.get(name, name), value.item(), float(term.units(micro)))
        return total.item()

    def _descend_in_two_passes(
        self,
        micro: TensorDictBase,
        pieces: list[tuple[Tensor, TensorDictBase]],
        counts: list[float],
        totals: Totals,
    ) -> float:
        """The same for a loss that couples the slots of a sample: only one piece's graph is in memory at a time.

        The loss is differentiated with respect to what the estimators write, computed without a graph; then each piece
        is computed again and back-propagates these derivatives.
        """
        if self.plan.live_reference:
            self._add_live_reference(micro)
        keys = [key for part in self.estimators for key in part.written_keys() if key not in micro.keys(True, True)]
        leaves = {key: value.requires_grad_() for key, value in self._values(micro, keys).items()}
        for key, leaf in leaves.items():
            micro.set(key, leaf)
        loss = self._descend(micro, counts, totals)
        for rows, piece in pieces:
            estimated = self._live(piece)
            parts = [(estimated[key] * leaf.grad[rows]).sum() for key, leaf in leaves.items() if leaf.grad is not None]
            if parts:
                torch.stack(parts).sum().backward()
        return loss

    def _add_live_reference(self, micro: TensorDictBase) -> None:
        with torch.no_grad(), self.policy.reference():
            estimated = self._estimate(micro.copy())
        for key in self.plan.live_reference:
            micro.set(twin_key(key, "ref_"), estimated[key])

    def _skip(self, loss: float, norm: float) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.trainer.max_skipped:
            raise TrainingError(
                f"{self.skipped_in_a_row} optimiser steps in a row had a non-finite loss ({loss}) or gradient norm "
                f"({norm}); training stopped before the weights are lost. Lower Trainer.learning_rate or "
                "Trainer.max_grad_norm, or look at the advantages; the last checkpoint is intact"
            )


def _loss(output: TensorDictBase) -> Tensor:
    """Sum of the entries of a loss module's output whose names start with ``loss_``."""
    return torch.stack([value for name, value in output.items() if name.startswith("loss_")]).sum()


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _additive(term: Any) -> list[str]:
    """What a term returns as a numerator over its count: all of a regulariser's values, the loss of an objective."""
    return [name for name in term.out_keys if name.startswith("loss_") or not isinstance(term, Objective)]


def _labels(terms: list[Any]) -> list[dict[str, str]]:
    """Names of each term's metrics: its own, with a number where a term before it has the same (``kl``, ``kl/2``)."""
    taken: set[str] = set()
    labels = []
    for term in terms:
        names = {}
        for key in term.out_keys:
            label, number = key, 1
            while label in taken:
                number += 1
                label = f"{key}/{number}"
            names[key] = label
        taken |= set(names.values())
        labels.append(names)
    return labels
