"""The update: old and reference log-probabilities, then minibatches of micro-batches down the loss.

Every mean is a numerator over a global count, so cutting a minibatch into micro-batches (or processes) changes nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit import seeding
from dlmrl_kit.algorithm import Algorithm
from dlmrl_kit.dataflow import plain_key, twin_key
from dlmrl_kit.errors import TrainingError
from dlmrl_kit.likelihoods.base import pack_tokens
from dlmrl_kit.losses.base import Objective, Term
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.trajectory import gather_steps


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
        self.parameters = [p for _, p in policy.trainable()]
        self.terms: list[Any] = [algorithm.loss, *algorithm.regularisers]
        self._labels = _labels(self.terms)
        self.skipped = 0
        self.skipped_in_a_row = 0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision, if the trainer asks for it."""
        if self.trainer.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.policy.device.type, dtype=torch.bfloat16)

    def prepare(self, trajectory: TensorDictBase) -> TensorDictBase:
        """Adds what stays fixed during the update: old and reference log-probabilities, token slots."""
        likelihood = self.algorithm.likelihood
        likelihood.prepare(trajectory, sampler=self.algorithm.sampler)
        recomputed = {key for key, source in self.plan.old.items() if source is None}
        if recomputed:
            self._add_twins(trajectory, [plain_key(key) for key in recomputed], "old_")
        for key, source in self.plan.old.items():
            if source is not None:
                trajectory.set(key, self._recorded(trajectory, source))
        if self.plan.reference:
            with self.policy.reference():
                self._add_twins(trajectory, self.plan.reference, "ref_")
        return trajectory

    def _recorded(self, trajectory: TensorDictBase, source: Any) -> Tensor:
        if source[0] == "token":
            return pack_tokens(trajectory, trajectory[source], self.algorithm.sampler.max_commits)
        values = gather_steps(trajectory[source], trajectory["selected", "step"])
        return values.masked_fill(trajectory["selected", "weight"] == 0, 0.0)

    def _add_twins(self, trajectory: TensorDictBase, keys: Any, prefix: str) -> None:
        """Runs the likelihood without gradients and stores its keys under names with a prefix."""
        pieces = []
        for micro in trajectory.split(self.trainer.micro_batch_size):
            with torch.no_grad(), self.autocast():
                estimated = self._estimate(micro.copy())
            pieces.append({key: estimated[key] for key in keys})
        for key in keys:
            trajectory.set(twin_key(key, prefix), torch.cat([piece[key] for piece in pieces]))

    def _estimate(self, micro: TensorDictBase) -> TensorDictBase:
        return self.algorithm.likelihood(micro, policy=self.policy, sampler=self.algorithm.sampler)

    def check_old(self, trajectory: TensorDictBase) -> float:
        """Compares recorded with recomputed log-probabilities before the first update.

        Returns:
            The largest difference among the first micro-batch's selected steps.

        Raises:
            TrainingError: more than one step in a hundred disagrees, so the old/new ratio would not start at 1.
        """
        micro = trajectory[: self.trainer.micro_batch_size].copy()
        with torch.no_grad(), self.autocast():
            estimated = self._estimate(micro)
        tolerance = 1e-3 if self.trainer.precision == "float32" else 0.1
        largest = 0.0
        for key, source in self.plan.old.items():
            if source is None:
                continue
            difference = (estimated[plain_key(key)] - estimated[key]).abs()[estimated["selected", "weight"] > 0]
            if difference.numel() == 0:
                continue
            largest = max(largest, difference.max().item())
            share = (~(difference <= tolerance)).float().mean().item()  # NaN disagrees too
            if share > 0.01:
                raise TrainingError(
                    f"old and new log-probabilities disagree before the first update: {share:.0%} of the selected "
                    f"steps differ by more than {tolerance:g} (largest {largest:.3g}). "
                    f"{type(self.algorithm.likelihood).__name__} does not compute what "
                    f"{type(self.algorithm.sampler).__name__} recorded as {source}"
                )
        return largest

    def minibatches(self, trajectory: TensorDictBase, update: int) -> Iterator[TensorDictBase]:
        """The samples of a rollout in random order, cut into minibatches, once per inner iteration."""
        rows = trajectory.shape[0]
        for iteration in range(self.trainer.inner_iterations):
            generator = seeding.generator("cpu", self.trainer.seed, update, "minibatches", iteration)
            order = torch.randperm(rows, generator=generator).to(self.policy.device)
            for part in order.tensor_split(self.trainer.minibatches):  # chunk() may give fewer parts than asked for
                yield trajectory[part]

    def update(self, trajectory: TensorDictBase, update: int) -> dict[str, float]:
        """All optimiser steps on one rollout; returns metrics.

        Raises:
            TrainingError: too many steps in a row with a non-finite loss or gradient.
        """
        totals = Totals()
        for minibatch in self.minibatches(trajectory, update):
            found = Totals()
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
        return {**totals.means(), "skipped": float(self.skipped)}

    def _backward(self, minibatch: TensorDictBase, totals: Totals) -> float:
        """Accumulates the gradient of the minibatch's loss; returns the loss."""
        counts = [float(term.count(minibatch)) for term in self.terms]
        units = [_units(term, minibatch) for term in self.terms]
        loss = 0.0
        for micro in minibatch.split(self.trainer.micro_batch_size):
            micro = micro.copy()
            with self.autocast():
                if self.plan.live_reference:
                    self._add_live_reference(micro)
                micro = self._estimate(micro)
            outputs = [term(micro) for term in self.terms]
            shares = [_share(float(t.count(micro)), count) for t, count in zip(self.terms, counts, strict=True)]
            total = torch.stack([_loss(output) * share for output, share in zip(outputs, shares, strict=True)]).sum()
            if total.requires_grad or bool((micro["selected", "weight"] != 0).any()):
                total.backward()
            loss += total.item()
            for term, output, share, unit, labels in zip(self.terms, outputs, shares, units, self._labels, strict=True):
                weight = _share(_units(term, micro), unit)
                for name, value in output.items():
                    totals.add(labels.get(name, name), value.item(), share if name.startswith("loss_") else weight)
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


def _units(term: Any, batch: TensorDictBase) -> float:
    """What a term's metrics are means over: what it counts; selected steps for a loss that counts samples."""
    if isinstance(term, Objective) and type(term).count is Term.count:
        return float((batch["selected", "weight"] != 0).sum())
    return float(term.count(batch))


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
