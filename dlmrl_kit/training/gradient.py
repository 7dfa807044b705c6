"""The gradient of a minibatch: micro-batches, pieces of samples, and losses that couple the segments of a sample.

Every mean is a numerator over a global count, so cutting a minibatch into micro-batches (or processes) changes nothing.
Where a sample's segments do not fit in one pass, they are cut too: losses that are sums over segments are
back-propagated piece by piece; any other loss is differentiated with respect to the log-probabilities first, and these
in a second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.batches import micro_batches
from dlmrl_kit.core.keys import SELECTED_WEIGHT
from dlmrl_kit.losses.base import Term
from dlmrl_kit.training.log_probs import LogProbs


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
