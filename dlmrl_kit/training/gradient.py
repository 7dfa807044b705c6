"""Computes log-probabilities and gradients under the policy in pieces that fit in memory.

``LogProbs`` runs the likelihood and the value models on the selected segments, under the current, the old and the
reference policy. ``Gradient`` back-propagates a minibatch in micro-batches. Every mean is a numerator over the count of
the whole minibatch, so the cut does not change the gradient.

A sample whose segments do not fit in one pass is cut between segments. A loss that is a sum over segments is then
back-propagated piece by piece. Any other loss is first differentiated with respect to the log-probabilities of all
segments; a second pass back-propagates these derivatives piece by piece.

Several processes each take the samples of a minibatch that they have sampled. Counts are added up before, gradients and
metrics after, so that the cut into processes does not change the gradient either.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import GradientEstimator
from dlmrl_kit.algorithm.dataflow import Plan
from dlmrl_kit.algorithm.stages import Stage
from dlmrl_kit.core.keys import (
    COMPLETION_IDS,
    GROUP,
    ITERATION,
    LATER_PASSES,
    PROMPT_MASK,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_LOG_PROB,
    STEP_VALID,
    Key,
)
from dlmrl_kit.core.phases import phase
from dlmrl_kit.core.policy import Policy, autocast
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.trajectory import every_step, gather_steps, micro_batches, restored, segment_pieces
from dlmrl_kit.corrections.apply import add_correction, of_selected
from dlmrl_kit.corrections.base import Correction, Drift
from dlmrl_kit.likelihoods.steps import pack_tokens
from dlmrl_kit.losses.base import Term
from dlmrl_kit.training.not_finite import blame_term
from dlmrl_kit.training.recompute import of_selection

T = TypeVar("T")

Scores = Callable[[TensorDictBase], Mapping[Key, Tensor]]
"""Computes keys [B, K, ...] of the segments of a batch, 0 where the weight is, without changing the batch."""


class LogProbs:
    """Runs the likelihood and the value models of an algorithm, with or without gradients.

    Args:
        algorithm: the components.
        plan: says which keys of them are read.
        policy: the denoiser.
        micro_batch_size: the most samples in one forward pass.
        micro_batch_tokens: the most prompt and completion tokens in one pass, over all states scored; None: no limit.
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
        """Within the context forwards run in bfloat16, if that is the precision."""
        return autocast(self.policy, self.precision)

    def run(self, batch: TensorDictBase, models: Iterable[Stage] | None = None) -> TensorDictBase:
        """Adds the keys of the likelihood and the value models, or of ``models``, with gradients where enabled."""
        for model in self.models if models is None else models:
            asked = {"keys": model.keys} if model.component.optional_keys else {}
            batch = model.component.forward(batch, policy=self.policy, sampler=self.sampler, **asked)
        return batch

    def live(self, micro: TensorDictBase) -> TensorDictBase:
        """Adds what a loss reads of a micro-batch: keys under the current policy, and the live reference keys."""
        with self.autocast():
            if self.plan.live_reference:
                self.add_live_reference(micro)
            return self.run(micro)

    def add_live_reference(self, micro: TensorDictBase) -> None:
        """Adds the ``ref_`` keys that are too large to store with a trajectory."""
        with torch.no_grad(), self.policy.reference():
            found = self.run(micro.copy())
        for key, twin in self.plan.live_reference.items():
            micro.set(twin, found[key])

    def pieces(self, micro: TensorDictBase) -> list[tuple[Tensor, TensorDictBase]]:
        """Cuts a micro-batch between segments so that each piece holds at most ``micro_batch_tokens``.

        Returns:
            Row indices and rows of each piece, as ``core.trajectory.segment_pieces``.
        """
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
        """Computes keys of the models for a micro-batch without gradients, in pieces: [B, K, ...] each."""
        return self._in_pieces(micro, partial(self._estimates, keys=[*keys], models=models))

    def _estimates(
        self, batch: TensorDictBase, keys: Iterable[Key], models: Sequence[Stage] | None
    ) -> dict[Key, Tensor]:
        estimated = self.run(batch.copy(), models)
        return {key: estimated[key] for key in keys}

    def _in_pieces(self, micro: TensorDictBase, scores: Scores) -> dict[Key, Tensor]:
        """Computes scores of a micro-batch without gradients, in pieces: [B, K, ...] each."""
        found: dict[Key, Tensor] = {}
        for rows, piece in self.pieces(micro):
            with torch.no_grad(), self.autocast():
                values = scores(piece)
            for key, value in values.items():
                whole = found.setdefault(key, value.new_zeros((len(micro), *value.shape[1:])))
                whole.index_add_(0, rows, value)  # a segment is 0 in every piece but its own
        return found

    def of_rollout(self, trajectory: TensorDictBase, scores: Scores) -> dict[Key, Tensor]:
        """Computes scores of a whole rollout, by micro-batches and without gradients: [B, K, ...] each."""
        rows, found = [], []
        for index, micro in micro_batches(trajectory, self.size, False):
            rows.append(index)
            found.append(self._in_pieces(micro, scores))
        return {key: restored([values[key] for values in found], rows) for key in found[0]}

    def add_fixed(self, trajectory: TensorDictBase, passes: int = 1, exact: bool = False) -> Drift:
        """Adds what stays fixed during an update: old and reference log-probabilities, token masks, a correction.

        A likelihood that draws new masks in each of several ``passes`` over the rollout gets these keys once for each
        pass, those of the later passes under ``(LATER_PASSES, "1")``, ...

        Args:
            trajectory: [B], a rollout.
            passes: over the rollout.
            exact: whether it was sampled from the policy itself although there is a correction, which then needs no
                forwards.

        Returns:
            How far the rollout is from the policy, as the correction found it; nothing without one.
        """
        drift = Drift()
        if not len(trajectory):
            return drift
        if self.correction is not None:
            drift = self._add_correction(trajectory, self.correction, exact)
        if not self.likelihood.redraw:
            self._add_fixed(trajectory, 0)
            return drift
        # The later passes come first: the keys of pass 0 would stand in the way of theirs.
        later = [self._add_fixed(trajectory.copy(), i) for i in range(1, passes)]
        shared = set(trajectory.keys(True, True)) - {ITERATION}
        self._add_fixed(trajectory, 0)
        for i, extra in enumerate(later, 1):
            trajectory.set((LATER_PASSES, str(i)), extra.exclude(*shared))
        return drift

    def _add_fixed(self, trajectory: TensorDictBase, iteration: int) -> TensorDictBase:
        likelihood = self.plan.likelihood
        if ITERATION in self.likelihood.in_keys:
            trajectory.set(ITERATION, torch.full_like(trajectory[GROUP], iteration))
        self.likelihood.prepare(trajectory, sampler=self.sampler, policy=self.policy, keys=likelihood.keys)
        if self.plan.computed_old:
            self._add_twins(trajectory, self.plan.computed_old)
        if self.correction is None:
            self._add_old(trajectory, partial(self._recorded, trajectory))
        if self.plan.reference:
            with self.policy.reference():
                self._add_twins(trajectory, self.plan.reference)
        return trajectory

    def _add_twins(self, trajectory: TensorDictBase, twins: Mapping[Key, Key]) -> None:
        """Runs the likelihood without gradients and stores each key of ``twins`` under the name it maps to."""
        scores = partial(self._estimates, keys=[*twins], models=[self.plan.likelihood])
        for key, value in self.of_rollout(trajectory, scores).items():
            trajectory.set(twins[key], value)

    def _add_old(self, trajectory: TensorDictBase, known: Callable[[Key], Tensor]) -> None:
        """Stores the old values that need no forward of their own: ``known`` returns those of a sampler's key."""
        for key, source in self.plan.old.items():
            if source is not None:
                trajectory.set(key, known(source))

    def _recorded(self, trajectory: TensorDictBase, source: Key) -> Tensor:
        """Returns what the sampler recorded as ``source``, at the selected steps; 0 where the weight is."""
        if source[0] == "token":
            return pack_tokens(trajectory, trajectory[source], self.sampler.max_commits)
        values = gather_steps(trajectory[source], trajectory[SELECTED_STEP])
        return values.masked_fill(trajectory[SELECTED_WEIGHT] == 0, 0.0)

    def _add_correction(self, trajectory: TensorDictBase, correction: Correction, exact: bool) -> Drift:
        """Adds ``("selected", "correction")``, and the old values that are known with it; returns the drift."""
        scored = every_step(trajectory) if correction.every_step else trajectory
        if exact:  # what was recorded is the policy's
            known = {key: self._recorded(scored, key) for key in self.plan.scored_again}
        else:
            again = partial(of_selection, policy=self.policy, sampler=self.sampler, keys=self.plan.scored_again)
            known = self.of_rollout(scored, again)
        self._add_old(trajectory, lambda source: of_selected(trajectory, correction, known[source]))
        return add_correction(trajectory, correction, scored, known[STEP_LOG_PROB])


def of_all(value: T, processes: Processes) -> list[T]:
    """Returns the values of all processes: of one alone its own, without asking."""
    return [value] if processes.world == 1 else processes.gather(value)


@dataclass
class Totals:
    """Collects metrics over micro-batches, minibatches and processes: weighted sums, the maximum if named ``*_max``.

    Args:
        processes: over which ``means`` are taken.
    """

    processes: Processes = ALONE
    sums: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    by_step: dict[str, Tensor] = field(default_factory=dict)
    """Of this process, on the policy's device: by name, for each denoising step, a sum and its number, [2, T]."""

    def add(self, name: str, value: float, weight: float = 1.0) -> None:
        """Adds a value of a metric with its weight."""
        if name.endswith("_max"):
            self.sums[name] = max(self.sums.get(name, value), value)
            self.weights[name] = 1.0
            return
        self.sums[name] = self.sums.get(name, 0.0) + value * weight
        self.weights[name] = self.weights.get(name, 0.0) + weight

    def add_sum(self, name: str, value: float, weight: float) -> None:
        """Adds a sum of values, of which there are ``weight``."""
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.weights[name] = self.weights.get(name, 0.0) + weight

    def open(self, name: str) -> None:
        """Announces a metric that is a sum over all processes, each of which must do so; ``add_part`` adds to it."""
        self.add_sum(name, 0.0, 1 / self.processes.world)

    def add_part(self, name: str, value: float) -> None:
        """Adds a summand to a metric that was opened."""
        self.sums[name] += value

    def add_by_step(self, name: str, values: Tensor, step: Tensor, length: int) -> None:
        """Adds sums and numbers of segments, [2, B, K], to those of the steps, int64 [B, K], at which they start."""
        sums = values.new_zeros(2, length, dtype=torch.float64)
        sums.scatter_add_(1, step.flatten().expand(2, -1), values.double().flatten(1))
        self.by_step[name] = self.by_step.get(name, 0.0) + sums

    def merge(self, other: Totals) -> None:
        """Adds all metrics of another collection."""
        for name, values in other.by_step.items():
            self.by_step[name] = self.by_step.get(name, 0.0) + values
        for name, value in other.sums.items():
            if other.weights[name]:
                self.add(name, value / other.weights[name], other.weights[name])

    def means(self) -> dict[str, float]:
        """Returns the weighted mean of each metric over all processes, or its maximum if it is named ``*_max``."""
        whole = Totals()
        for sums, weights in of_all((self.sums, self.weights), self.processes):
            for name, value in sums.items():
                if name.endswith("_max"):
                    whole.add(name, value)
                else:
                    whole.add_sum(name, value, weights[name])
        return {name: whole.sums[name] / whole.weights[name] for name in whole.sums if whole.weights[name]}


class Gradient:
    """Back-propagates the sum of the loss and the regularisers.

    Args:
        terms: the loss and the regularisers.
        log_probs: computes the keys that they read.
        processes: over which counts are added up.
    """

    def __init__(self, terms: Sequence[Term], log_probs: LogProbs, processes: Processes = ALONE) -> None:
        self.terms = list(terms)
        self.log_probs = log_probs
        self.processes = processes
        self.whole_groups = any(term.needs_groups for term in self.terms)
        self.segmentwise = all(term.segmentwise for term in self.terms)
        self._labels = _labels(self.terms)

    def accumulate(self, minibatch: TensorDictBase, totals: Totals) -> float:
        """Adds the gradient of a minibatch's loss to the parameters' gradients, and metrics to ``totals``.

        Args:
            minibatch: this process's samples of it, possibly none.
            totals: collects the metrics.

        Returns:
            The loss of the minibatch, over the samples of all processes.
        """
        own = _numbers([term.count(minibatch) for term in self.terms]) if len(minibatch) else [0.0] * len(self.terms)
        counts = [sum(parts) for parts in zip(*of_all(own, self.processes), strict=True)]
        for term, labels in zip(self.terms, self._labels, strict=True):
            for name in term.additive_keys:
                totals.open(labels[name])  # one minibatch, to which each micro-batch adds its share
        loss = 0.0
        pieces_of = micro_batches(minibatch, self.log_probs.size, self.whole_groups) if len(minibatch) else ()
        with self.log_probs.policy.in_step():
            for _, micro in pieces_of:
                pieces = self.log_probs.pieces(micro)
                if len(pieces) == 1:
                    loss += self._backward(self.log_probs.live(micro), counts, totals)
                elif self.segmentwise:
                    loss += sum(self._backward(self.log_probs.live(piece), counts, totals) for _, piece in pieces)
                else:
                    loss += self._backward_in_two_passes(micro, pieces, counts, totals)
        return sum(of_all(loss, self.processes))

    def _backward(self, micro: TensorDictBase, counts: Sequence[float], totals: Totals) -> float:
        """Back-propagates a micro-batch's share of the minibatch's loss; returns the share.

        Raises:
            ComponentError: it is not finite, and that comes from a term of a plugin.
        """
        outputs = [term.forward(micro) for term in self.terms]
        parts = _numbers([term.count(micro) for term in self.terms])
        shares = [_share(part, count) for part, count in zip(parts, counts, strict=True)]
        total = torch.stack([loss_of(output) * share for output, share in zip(outputs, shares, strict=True)]).sum()
        # With nothing selected there may be no graph. With something selected there must be one: backward says if not.
        if total.requires_grad or bool((micro[SELECTED_WEIGHT] != 0).any()):
            with phase("backward"):
                self.log_probs.policy.backward(total)
        for term, labels in zip(self.terms, self._labels, strict=True):
            for name, measure in term.measures(micro).items():
                length = micro[STEP_VALID].shape[1]
                totals.add_by_step(labels[name], torch.stack(measure).detach(), micro[SELECTED_STEP], length)
        measured = [[t.units(micro), *output.values()] for t, output in zip(self.terms, outputs, strict=True)]
        found, *numbers = _numbers([total, *itertools.chain(*measured)])
        if not math.isfinite(found):
            for term, output in zip(self.terms, outputs, strict=True):
                blame_term(term, micro, dict(output.items()))
        for term, output, share, labels in zip(self.terms, outputs, shares, self._labels, strict=True):
            units = numbers.pop(0)
            for name, _ in output.items():
                if name in term.additive_keys:
                    totals.add_part(labels[name], numbers.pop(0) * share)
                else:
                    totals.add(labels.get(name, name), numbers.pop(0), units)
        return found

    def _backward_in_two_passes(
        self,
        micro: TensorDictBase,
        pieces: list[tuple[Tensor, TensorDictBase]],
        counts: Sequence[float],
        totals: Totals,
    ) -> float:
        """Does the same for a loss that couples the segments of a sample, with the graph of one piece at a time.

        The keys of the models are computed without a graph, and the loss is differentiated with respect to them. Then
        each piece is computed again with a graph and back-propagates these derivatives: the chain rule in two parts.
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
                    log_probs.policy.backward(torch.stack(parts).sum())
        return loss


def loss_of(output: TensorDictBase) -> Tensor:
    """Sums the scalars of a term's output whose names start with ``loss_``."""
    return torch.stack([value for name, value in output.items() if name.startswith("loss_")]).sum()


def _numbers(scalars: Sequence[Tensor]) -> list[float]:
    """Reads scalars together, so that a GPU is waited for once."""
    return torch.stack([scalar.detach().double() for scalar in scalars]).tolist()


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


TAKEN = frozenset(
    (
        *("reward", "accuracy", "mixed_groups", "entropy", "tokens", "steps", "kept", "selected_steps"),
        *("learning_rate", "loss", "grad_norm", "skipped", "seconds", "cpu_seconds", "tokens_per_second"),
        *("update", "selected", "advantage"),  # of steps.jsonl
    )
)
"""Metrics of a run, and entries of its ``steps.jsonl``, that are not its terms'."""


def _labels(terms: Sequence[Term]) -> list[dict[str, str]]:
    """Names the metrics of each term; a name that the run or an earlier term has gets a number (``kl``, ``kl/2``)."""
    taken = {*TAKEN}
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
