r"""The gradient of a loss on one batch, in parts by the denoising step at which a selected segment starts.

    g = sum over steps t of g_t,    g_t = sum over the segments k that start at t of  d loss / d y_k * d y_k / d theta

with y_k what likelihood and value models write of segment k. By the chain rule this is exact for any loss, also one
that couples the segments of a sample: it is differentiated by the y_k once, and g_t back-propagates these derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from dlmrl_kit.core.keys import SELECTED_STEP, SELECTED_WEIGHT, Key
from dlmrl_kit.core.trajectory import micro_batches
from dlmrl_kit.losses.base import Term
from dlmrl_kit.training.gradient import LogProbs, loss_of


class StepGradients:
    """Back-propagates the parts of a loss's gradient.

    Args:
        loss: the loss, or another term.
        log_probs: computes the keys that it reads.
        batch: complete, as the loss reads it but for these keys; its mean is over all of it.
    """

    def __init__(self, loss: Term, log_probs: LogProbs, batch: TensorDictBase) -> None:
        self.log_probs = log_probs
        count = float(loss.count(batch))
        pieces = micro_batches(batch, log_probs.size, loss.needs_groups) if count else ()
        self._parts = [self._differentiated(loss, micro, count) for _, micro in pieces]

    def _differentiated(
        self, loss: Term, micro: TensorDictBase, count: float
    ) -> tuple[TensorDictBase, dict[Key, Tensor]]:
        """Returns the samples, and the derivatives of their share of the loss by what the models write."""
        log_probs, known = self.log_probs, set(micro.keys(True, True))
        written = [key for model in log_probs.models for key in model.writes if key not in known]
        full = micro.copy()
        if log_probs.plan.live_reference:
            log_probs.add_live_reference(full)
        leaves = {key: value.requires_grad_() for key, value in log_probs.without_gradient(micro, written).items()}
        for key, leaf in leaves.items():
            full.set(key, leaf)
        share = float(loss.count(full)) / count
        total = loss_of(loss.forward(full)) * share
        if not total.requires_grad:  # nothing is selected
            return micro, {}
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return micro, {key: value for key, value in zip(leaves, found, strict=True) if value is not None}

    def backward(self, step: int | None = None) -> None:
        """Adds the part of a step to the parameters' gradients; None: the whole gradient."""
        for micro, derivatives in self._parts:
            weight = micro[SELECTED_WEIGHT]
            mine = weight != 0 if step is None else (weight != 0) & (micro[SELECTED_STEP] == step)
            rows = mine.any(-1).nonzero().squeeze(-1)
            if not len(rows):
                continue
            some = micro[rows].copy().set(SELECTED_WEIGHT, torch.where(mine, weight, 0.0)[rows])
            for index, piece in self.log_probs.pieces(some):
                estimated = self.log_probs.live(piece)
                parts = [(estimated[key] * value[rows[index]]).sum() for key, value in derivatives.items()]
                total = torch.stack(parts).sum() if parts else weight.new_zeros(())
                if total.requires_grad:
                    total.backward()


class GradientMoments:
    """Mean and second moment of the gradients of independent batches, of which only the sum is kept.

    Args:
        parameters: whose gradients are taken.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.batches = 0
        self._sum: list[Tensor] = [torch.zeros_like(p) for p in self.parameters]
        self._second = 0.0

    def take(self) -> None:
        """Takes the parameters' gradients as those of another batch, and clears them."""
        found = [p.grad for p in self.parameters]
        self._second += _squared([g for g in found if g is not None])
        for total, gradient in zip(self._sum, found, strict=True):
            if gradient is not None:
                total += gradient
        for p in self.parameters:
            p.grad = None
        self.batches += 1

    @property
    def norm(self) -> float:
        """Root mean square of the norm of a batch's gradient."""
        return math.sqrt(self._second / self.batches)

    @property
    def signal(self) -> float:
        """Norm of the expected gradient: the root of an unbiased estimate of its square, 0 where that is negative."""
        n = self.batches
        return math.sqrt(max(0.0, (_squared(self._sum) - self._second) / (n * (n - 1))))

    @property
    def noise(self) -> float:
        """Root of the trace of the covariance of a batch's gradient, from an unbiased estimate of the trace."""
        n = self.batches
        return math.sqrt(max(0.0, (self._second - _squared(self._sum) / n) / (n - 1)))

    @property
    def ratio(self) -> float | None:
        """Signal to noise; None where there is neither."""
        return self.signal / self.noise if self.noise else None


def chance_ratio(batches: int) -> float:
    """Returns the ratio of signal to noise that a gradient without signal exceeds with a probability of 5%, at most.

    Of normal noise in one direction it is exactly 5%, by Student's t; noise in many directions stays below more often
    (Szekely and Bakirov 2003, extremal probabilities for Gaussian quadratic forms).
    """
    from scipy.stats import t

    return math.sqrt(max(0.0, float(t.ppf(0.975, batches - 1)) ** 2 - 1.0) / batches)


def _squared(tensors: Sequence[Tensor]) -> float:
    return math.fsum(float(torch.linalg.vector_norm(t, dtype=torch.float64)) ** 2 for t in tensors)
