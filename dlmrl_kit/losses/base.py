r"""Losses are scalars to minimise, each a global numerator over a global count.

    loss(batch) = total(batch) / count(batch),    total and count additive over samples

so that micro-batches accumulate exactly, values and gradients alike:

    loss(batch) = sum_m loss(micro_m) * count(micro_m) / sum_m count(micro_m)

An entry of weight 0 is padding: it is replaced *before* any arithmetic, so whatever it holds (NaN and infinities
included) reaches neither the value nor the gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import LossModule

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import SELECTED_TOKEN_MASK, SELECTED_WEIGHT, SEQUENCE_LENGTH, Key
from dlmrl_kit.core.promises import Given, device_of, parts_fault, promises, shown, tensor_fault
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.normalisers.base import Normaliser

Measure = tuple[Tensor, Tensor]
"""Of each segment, [B, K], the sum of something over its units (itself, or its tokens), and their number."""


def weighted_sum(values: Tensor, weight: Tensor) -> Tensor:
    """Sums weight * value into a scalar; entries of weight 0 count exactly nothing, and weights get no gradient.

    Args:
        values, weight: the same shape.
    """
    return (where_used(values, weight != 0) * weight.detach()).sum()


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the scalar mean of ``values`` over ``mask``; 0 where the mask is empty."""
    return where_used(values, mask).sum() / mask.sum().clamp(min=1)


def scored_tokens(tensordict: TensorDictBase) -> Tensor:
    """Returns which tokens belong to segments of non-zero weight: bool [B, K, C]."""
    return tensordict[SELECTED_TOKEN_MASK] & (tensordict[SELECTED_WEIGHT] != 0)[..., None]


def max_over(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the scalar maximum of ``values`` over ``mask``; 0 where the mask is empty."""
    kept = values[mask]
    return kept.max() if kept.numel() else values.new_zeros(())


def by_segment(values: Tensor, mask: Tensor) -> Measure:
    """Sums over each segment, [B, K] each: values of its own or of its tokens where ``mask``, and their number.

    Args:
        values, mask: [B, K] or [B, K, C].
    """
    dims = tuple(range(2, mask.dim()))
    summed, number = where_used(values.detach(), mask), mask.to(values.dtype)
    return (summed.sum(dims), number.sum(dims)) if dims else (summed, number)


def used_sequences(weight: Tensor) -> Tensor:
    """Returns the samples that have a segment of non-zero weight: bool [B] from [B, K]."""
    return (weight != 0).any(-1)


def sequence_log_prob(log_prob: Tensor, weight: Tensor) -> Tensor:
    """Sums the segments of each sample with their weights: [B] from [B, K] and [B, K]; weights get no gradient."""
    return (where_used(log_prob, weight != 0) * weight.detach()).sum(-1)


def sequence_length(tensordict: TensorDictBase) -> Tensor:
    """Returns the length of each completion in tokens, at least 1, as a real number: [B]."""
    return tensordict[SEQUENCE_LENGTH].clamp(min=1).to(tensordict[SELECTED_WEIGHT].dtype)


class Average:
    """Says what a loss divides by. Regularisers beside it divide by the same: here by the number of samples B.

    Attributes:
        reads: keys read besides the weight.
        segmentwise: whether a sample may be cut between segments for ``of_steps`` and ``of_tokens``.
        cuts_sequences: the same for ``of_sequences`` of what is linear in the segments.
    """

    reads: Sequence[Key] = ()
    segmentwise: bool = True
    cuts_sequences: bool = True

    def count(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the denominator of a batch, a scalar: here its number of samples, int64."""
        weight = tensordict[SELECTED_WEIGHT]
        return torch.full((), weight.shape[0], dtype=torch.int64, device=weight.device)

    def of_steps(self, values: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Returns the numerator, a scalar, of a quantity of each segment, [B, K]: here its weighted sum."""
        return weighted_sum(values, tensordict[SELECTED_WEIGHT])

    def of_tokens(self, values: Tensor, mask: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Returns the numerator of a quantity of each token, [B, K, C]: that of its sums over ``mask`` by segment."""
        return self.of_steps(where_used(values, mask).sum(-1), tensordict)

    def of_sequences(self, values: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Returns the numerator of a quantity of each sample, [B]: here the sum of it per token of the completion."""
        return (values / sequence_length(tensordict)).sum()


class TokenAverage(Average):
    """The average over tokens of a normaliser; what is one number for a segment or a sample is spread over its tokens.

    Args:
        normaliser: how much each token counts, and the denominator.
    """

    reads = (SELECTED_TOKEN_MASK,)
    cuts_sequences = False

    def __init__(self, normaliser: Normaliser) -> None:
        self.normaliser = normaliser
        self.segmentwise = normaliser.segmentwise

    def count(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the normaliser's denominator."""
        return self.normaliser.count(scored_tokens(tensordict), tensordict[SELECTED_WEIGHT].detach())

    def of_tokens(self, values: Tensor, mask: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Returns the normaliser's numerator."""
        return self.normaliser.total(values, mask, tensordict[SELECTED_WEIGHT].detach())

    def of_steps(self, values: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Spreads the value of each segment evenly over its tokens."""
        mask = scored_tokens(tensordict)
        each = values / mask.sum(-1).clamp(min=1)
        return self.of_tokens(each[..., None].expand(mask.shape), mask, tensordict)

    def of_sequences(self, values: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Spreads the value of each sample evenly over its tokens."""
        mask, weight = scored_tokens(tensordict), tensordict[SELECTED_WEIGHT].detach()
        tokens = (mask.sum(-1) * weight).sum(-1)
        each = values / tokens.masked_fill(tokens == 0, 1)
        return self.of_tokens(each[:, None, None].expand(mask.shape), mask, tensordict)


def _number(result: object, given: Given) -> str:
    return tensor_fault(result, "number", (), device=device_of(given["tensordict"]))


def _numerator(result: Any, given: Given) -> str:
    if fault := parts_fault(result, "the numerator", "diagnostics"):
        return fault
    device, (total, diagnostics) = device_of(given["tensordict"]), result
    if not isinstance(diagnostics, dict):
        return f"{shown(diagnostics)} as diagnostics; it should be a dict of tensors by name"
    faults = [tensor_fault(total, "real", (), device=device, name="the numerator")]
    faults += [tensor_fault(value, "number", (), device=device, name=repr(key)) for key, value in diagnostics.items()]
    return next(filter(None, faults), "")


def _measures(result: Any, given: Given) -> str:
    if not isinstance(result, Mapping):
        return f"{shown(result)}; it should be a mapping of names to pairs of tensors"
    weight, named = given["tensordict"][SELECTED_WEIGHT], given["self"].out_keys
    for name, measure in result.items():
        if name not in named:
            return f"sums of {shown(name)}, which is not in its out_keys: {', '.join(named)}"
        if fault := parts_fault(measure, f"the sums of {name!r}", "their numbers"):
            return fault
        for part in measure:
            if fault := tensor_fault(part, "number", weight.shape, device=weight.device, name=repr(name)):
                return fault
    return ""


def _values(result: Any, given: Given) -> str:
    if result is None:
        return ""
    if fault := parts_fault(result, "the values", "which of them count"):
        return fault
    weight = given["tensordict"][SELECTED_WEIGHT]
    values, mask = result
    device, shape = weight.device, weight.shape
    of_tokens = isinstance(mask, Tensor) and mask.dim() > weight.dim() and mask.shape[: weight.dim()] == shape
    if fault := tensor_fault(mask, "bool", mask.shape if of_tokens else shape, device=device, name="which count"):
        return fault
    return tensor_fault(values, "number", mask.shape, device=device, name="the values")


class Term(Component, LossModule):
    """Base class of what is minimised: a TorchRL ``LossModule`` without sub-networks that is also a ``Component``.

    ``forward`` returns a new TensorDict of scalars without batch dimensions; only the key that starts with ``loss_``
    carries a gradient.

    Args:
        in_keys: keys read.
        out_keys: keys of the returned TensorDict, the loss first.
    """

    segmentwise: bool = False
    """Whether ``total`` is a sum over the selected segments of a sample, so that a sample may be cut between them."""
    needs_groups: ClassVar[bool] = False
    """Whether a minibatch must hold whole groups."""

    def __init__(self, in_keys: Sequence[Key], out_keys: Sequence[str]) -> None:
        super().__init__()
        self.in_keys: list[Key] = list(in_keys)
        self.out_keys: list[str] = list(out_keys)

    factor: float = 1.0
    """The mean is multiplied by this."""
    average: Average = Average()
    """What the term is divided by."""
    mean_key: str | None = None
    """The key under which the mean is returned before it is multiplied; None: it is not."""

    @property
    def additive_keys(self) -> list[str]:
        """Keys of ``forward`` whose values are numerators over ``count``, so that they add up over micro-batches."""
        return [key for key in (self.out_keys[0], self.mean_key) if key is not None]

    @abstractmethod
    @promises(_numerator)
    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the numerator, a scalar with gradient that sums over samples, and diagnostics: means over units."""

    def multiplier(self, tensordict: TensorDictBase) -> Tensor | float:
        """Returns what the mean of this batch is multiplied by, here ``factor``."""
        return self.factor

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Computes the term, its mean before it is multiplied, and its diagnostics: scalars by ``out_keys``."""
        total, diagnostics = self.total(tensordict)
        mean = self.mean(total, tensordict)
        scalars = {self.out_keys[0]: self.multiplier(tensordict) * mean}
        if self.mean_key is not None:
            scalars[self.mean_key] = mean.detach()
        return TensorDict({**scalars, **{name: value.detach() for name, value in diagnostics.items()}})

    def beside(self, loss: Objective) -> Term:
        """Returns the term as it is minimised with a loss, such as with the loss's denominator; here itself."""
        return self

    @promises(_measures)
    def measures(self, tensordict: TensorDictBase) -> Mapping[str, Measure]:
        """Returns what the term knows of single segments, by the metric, one of ``out_keys``, that it adds up to.

        Here what ``mean_key`` is the mean of, if ``values`` says it. There is no gradient.
        """
        if self.mean_key is None:
            return {}
        with torch.no_grad():
            found = self.values(tensordict)
        return {} if found is None else {self.mean_key: by_segment(*found)}

    @promises(_values)
    def values(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor] | None:
        """Returns what is averaged of each segment, [B, K], or token, [B, K, C], and which count; None: neither."""
        return None

    @promises(_number)
    def units(self, tensordict: TensorDictBase) -> Tensor:
        """Counts the units that diagnostics are means over, here the used segments: an integer scalar."""
        return (tensordict[SELECTED_WEIGHT] != 0).sum()

    @promises(_number)
    def count(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the denominator of this batch, a scalar: that of ``average``."""
        return self.average.count(tensordict)

    def mean(self, total: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Divides ``total`` by the count of this batch; 0 where there is nothing to count."""
        count = self.count(tensordict)
        return total / count.masked_fill(count == 0, 1)


class Objective(Term):
    """Base class of losses. Subclasses implement ``total``, and set ``average`` where it is not that over samples.

    Args:
        in_keys: keys read.
        diagnostics: names of the scalars that ``total`` returns beside the numerator.

    Writes ``loss_objective`` (scalar, to be minimised) and the diagnostics (scalars, detached).
    """

    def __init__(self, in_keys: Sequence[Key], diagnostics: Sequence[str] = ()) -> None:
        super().__init__(in_keys, ["loss_objective", *diagnostics])
