r"""Losses: scalars to descend, each a global numerator over a global count.

    loss(batch) = total(batch) / count(batch),    total and count additive over samples

so micro-batches accumulate exactly, values and gradients alike:

    loss(batch) = sum_m loss(micro_m) * count(micro_m) / sum_m count(micro_m)

A slot of weight 0 is padding: it is replaced *before* any arithmetic, so whatever it holds (NaN and infinities
included) reaches neither the value nor the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import LossModule

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import SELECTED_TOKEN_MASK, SELECTED_WEIGHT, Key


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where ``mask``, 0 elsewhere; what is dropped gets gradient 0 even if it is not finite."""
    return torch.where(mask, values, 0.0)


def weighted_sum(values: Tensor, weight: Tensor) -> Tensor:
    """Scalar sum of weight * value; slots of weight 0 count exactly nothing, and weights get no gradient.

    Args:
        values, weight: the same shape.
    """
    return (keep(values, weight != 0) * weight.detach()).sum()


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Scalar mean of ``values`` over ``mask``; 0 where the mask is empty."""
    return keep(values, mask).sum() / mask.sum().clamp(min=1)


def scored_tokens(tensordict: TensorDictBase) -> Tensor:
    """The tokens of the slots of non-zero weight: bool [B, K, C]."""
    return tensordict[SELECTED_TOKEN_MASK] & (tensordict[SELECTED_WEIGHT] != 0)[..., None]


def max_over(values: Tensor, mask: Tensor) -> Tensor:
    """Scalar maximum of ``values`` over ``mask``; 0 where the mask is empty."""
    kept = values[mask]
    return kept.max() if kept.numel() else values.new_zeros(())


class Term(Component, LossModule):
    """Base class of what is descended: a TorchRL ``LossModule`` without sub-networks that is also a ``Component``.

    ``forward`` returns a new TensorDict of scalars without batch dimensions; only the key that starts with ``loss_``
    carries a gradient.

    Args:
        in_keys: keys read.
        out_keys: keys of the returned TensorDict, the loss first.
    """

    slotwise: bool = False
    """Whether ``total`` is a sum over the slots of a sample, so that a sample may be cut between its slots."""
    needs_groups: ClassVar[bool] = False
    """Whether a minibatch must hold whole groups."""

    def __init__(self, in_keys: Sequence[Key], out_keys: Sequence[Key]) -> None:
        super().__init__()
        self.in_keys: list[Any] = list(in_keys)
        self.out_keys: list[Any] = list(out_keys)

    def count(self, tensordict: TensorDictBase) -> Tensor:
        """The denominator of this batch, an int64 scalar: its number of samples B."""
        weight = tensordict[SELECTED_WEIGHT]
        return torch.full((), weight.shape[0], dtype=torch.int64, device=weight.device)

    def mean(self, total: Tensor, tensordict: TensorDictBase) -> Tensor:
        """``total`` over the count of this batch; 0 where there is nothing to count."""
        count = self.count(tensordict)
        return total / count.masked_fill(count == 0, 1)


class Objective(Term):
    """Base class of losses. Subclasses implement ``total``, and ``count`` where it is not the number of samples.

    Args:
        in_keys: keys read.
        diagnostics: names of the scalars that ``total`` returns beside the numerator.

    Writes ``loss_objective`` (scalar, to be descended) and the diagnostics (scalars, detached).
    """

    def __init__(self, in_keys: Sequence[Key], diagnostics: Sequence[str] = ()) -> None:
        super().__init__(in_keys, ["loss_objective", *diagnostics])

    def units(self, tensordict: TensorDictBase) -> Tensor:
        """How many units the diagnostics are means over, here the used slots: an integer scalar."""
        return (tensordict[SELECTED_WEIGHT] != 0).sum()

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The numerator of the loss (a scalar, a plain sum over samples) and the diagnostics."""
        raise NotImplementedError

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The loss of this batch and its diagnostics."""
        total, diagnostics = self.total(tensordict)
        scalars = {name: value.detach() for name, value in diagnostics.items()}
        return TensorDict({"loss_objective": self.mean(total, tensordict), **scalars})
