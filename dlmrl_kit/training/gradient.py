"""What an update computes under the policy, in pieces that fit in memory: log-probabilities, and the gradient.

``LogProbs`` runs likelihood and value models on the selected segments under the current, the old and the reference
policy. ``Gradient`` back-propagates a minibatch. Every mean is a numerator over a global count, so cutting a minibatch
into micro-batches (or processes) changes nothing. Where a sample's segments do not fit in one pass, it is cut between
them: losses that are sums over segments are back-propagated piece by piece; any other loss is differentiated with
respect to the log-probabilities first, and these in a second pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import GradientEstimator
from dlmrl_kit.algorithm.dataflow import Plan, Stage
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
from dlmrl_kit.core.phases import phase
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.trajectory import every_step, gather_steps, micro_batches, restored, segment_pieces, where_used
from dlmrl_kit.corrections.apply import add_correction
from dlmrl_kit.likelihoods.steps import StepLogProb, pack_tokens
from dlmrl_kit.losses.base import Term

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
        algorithm: GradientEstimator,
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
        for key, twin in self.plan.live_reference.items():
            micro.set(twin, found[key])

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
        again = {key: old for key, old in self.plan.computed_old.items() if old not in known}
        if again:
            self._add_twins(trajectory, again)
        for key, source in self.plan.old.items():
            if source is not None:
                trajectory.set(key, self._recorded(trajectory, source))
        if self.plan.reference:
            with self.policy.reference():
                self._add_twins(trajectory, self.plan.reference)
        return trajectory

    def _add_twins(self, trajectory: TensorDictBase, twins: Mapping[Key, Key]) -> None:
        """Runs the likelihood without gradients and stores its keys under other names, those of ``twins``."""
        for key, value in self.of_rollout(trajectory, list(twins), self.plan.likelihood).items():
            trajectory.set(twins[key], value)

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


class Gradient:
    """Back-propagates the sum of some terms.

    Args:
        terms: the loss and the regularisers.
        log_probs: computes what they read.
    """

    def __init__(self, terms: Sequence[Term], log_probs: LogProbs) -> None:
        self.terms = list(terms)
        self.log_probs = log_probs
        self.whole_groups = any(term.needs_groups for term in self.terms)
        self.segmentwise = all(term.segmentwise for term in self.terms)
        self._labels = _labels(self.terms)

    def accumulate(self, minibatch: TensorDictBase, totals: Totals) -> float:
        """Adds the gradient of the minibatch's loss to the parameters; returns the loss, and adds metrics."""
        counts = [float(term.count(minibatch)) for term in self.terms]
        for term, labels in zip(self.terms, self._labels, strict=True):
            for name in term.additive_keys:
                totals.add(labels[name], 0.0)
        loss = 0.0
        for _, micro in micro_batches(minibatch, self.log_probs.size, self.whole_groups):
            pieces = self.log_probs.pieces(micro)
            if len(pieces) == 1:
                loss += self._backward(self.log_probs.live(micro), counts, totals)
            elif self.segmentwise:
                loss += sum(self._backward(self.log_probs.live(piece), counts, totals) for _, piece in pieces)
            else:
                loss += self._backward_in_two_passes(micro, pieces, counts, totals)
        return loss

    def _backward(self, micro: TensorDictBase, counts: Sequence[float], totals: Totals) -> float:
        """Back-propagates this micro-batch's share of the loss; returns it."""
        outputs = [term(micro) for term in self.terms]
        shares = [_share(float(t.count(micro)), count) for t, count in zip(self.terms, counts, strict=True)]
        total = torch.stack([loss_of(output) * share for output, share in zip(outputs, shares, strict=True)]).sum()
        if total.requires_grad or bool((micro[SELECTED_WEIGHT] != 0).any()):
            with phase("backward"):
                total.backward()
        for term, output, share, labels in zip(self.terms, outputs, shares, self._labels, strict=True):
            for name, value in output.items():
                if name in term.additive_keys:
                    totals.add_part(labels[name], value.item() * share)
                else:
                    totals.add(labels.get(name, name), value.item(), float(term.units(micro)))
        return total.item()

    def _backward_in_two_passes(
        self,
        micro: TensorDictBase,
        pieces: list[tuple[Tensor, TensorDictBase]],
        counts: Sequence[float],
        totals: Totals,
    ) -> float:
        """The same for a loss that couples the segments of a sample: only one piece's graph is in memory at a time.

        The loss is differentiated with respect to what the models write, computed without a graph; then each piece is
        computed again and back-propagates these derivatives.
        """
        log_probs = self.log_probs
        if log_probs.plan.live_reference:
            log_probs.add_live_reference(micro)
        written = [key for model in log_probs.models for key in model.writes if key not in micro.keys(True, True)]
        leaves = {key: value.requires_grad_() for key, value in log_probs.without_gradient(micro, written).items()}
        for key, leaf in leaves.items():
            micro.set(key, leaf)
        loss = self._backward(micro, counts, totals)
        for rows, piece in pieces:
            estimated = log_probs.live(piece)
            parts = [(estimated[key] * leaf.grad[rows]).sum() for key, leaf in leaves.items() if leaf.grad is not None]
            if parts:
                with phase("backward"):
                    torch.stack(parts).sum().backward()
        return loss


def loss_of(output: TensorDictBase) -> Tensor:
    """Sum of the entries of a term's output whose names start with ``loss_``."""
    return torch.stack([value for name, value in output.items() if name.startswith("loss_")]).sum()


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _labels(terms: Sequence[Term]) -> list[dict[str, str]]:
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
