r"""PPO (arXiv 1707.06347, eq. 7) with one ratio per denoising step, or one per completion.

    rho = exp(log pi - log pi_old),    surrogate = min(rho A, clip(rho, 1 - low, 1 + high) A)

    StepPPO              L = -(1/B) sum_b sum_k w_bk surrogate_bk                          EGSPO, arXiv 2603.12554
    SequencePPO          L = -(1/B) sum_b surrogate_b,  log pi_b = sum_k w_bk log pi_bk
    LengthNormalisedPPO  the same with log rho_b / |o_b|                                   GSPO, ESPO
    PerTokenSequencePPO  L = -(1/B) sum_b surrogate_b / |o_b|                              GDPO

|o_b| is the number of completion tokens that the likelihood counts. A ratio that already moved further than the clip in
the direction that A asks for gets no gradient. Before the first update ratios are 1 up to the rounding of a forward in
other batches: a range of 0 would drop the gradient wherever rounding moved the ratio that way, about half of the time.

The released EGSPO code takes one selected step per micro-step and divides its loss by the number of tokens that a step
commits; here the steps are summed, so that before the first update the gradient is that of ``Reinforce``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.behaviour import MAX_LOG_RATIO
from dlmrl_kit.core.keys import (
    ADVANTAGE,
    SELECTED_ADVANTAGE,
    SELECTED_LOG_PROB,
    SELECTED_OLD_LOG_PROB,
    SELECTED_WEIGHT,
    SEQUENCE_LENGTH,
    Key,
)
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import (
    Average,
    Measure,
    Objective,
    by_segment,
    max_over,
    mean_over,
    sequence_length,
    sequence_log_prob,
    used_sequences,
    weighted_sum,
)

DIAGNOSTICS = ("ratio", "ratio_max", "clip_fraction", "approx_kl")


class Ratios(NamedTuple):
    """The ratios of units (steps, tokens or completions), without gradient; all of one shape.

    Attributes:
        ratio: what is clipped, such as rho.
        clipped: bool, where the clip binds.
        approx_kl: rho - 1 - log rho.
        mask: bool, of the units that count.
    """

    ratio: Tensor
    clipped: Tensor
    approx_kl: Tensor
    mask: Tensor

    @property
    def diagnostics(self) -> dict[str, Tensor]:
        """``DIAGNOSTICS``, scalars over the mask: the largest ratio, and means."""
        means = {name: mean_over(values, self.mask) for name, values in self._values().items()}
        largest = {"ratio_max": max_over(self.ratio, self.mask)}
        return {name: (means | largest)[name] for name in DIAGNOSTICS}

    def measures(self) -> dict[str, Measure]:
        """Returns what the means among the diagnostics are of, by segment."""
        return {name: by_segment(values, self.mask) for name, values in self._values().items()}

    def _values(self) -> dict[str, Tensor]:
        return {
            "ratio": self.ratio,
            "clip_fraction": self.clipped.to(self.ratio.dtype),
            "approx_kl": self.approx_kl,
        }


def ratios(ratio: Tensor, clipped: Tensor, log_ratio: Tensor, mask: Tensor) -> Ratios:
    """Returns ``Ratios`` of ratios that were clipped or not (bool) and the log-ratios that they come from."""
    with torch.no_grad():
        return Ratios(ratio.detach(), clipped, log_ratio.expm1() - log_ratio, mask)


class Surrogate(NamedTuple):
    """The clipped surrogate of each unit (step, token or completion).

    Attributes:
        value: min(rho A, clip(rho) A), 0 outside the mask.
        ratios: of the units.
    """

    value: Tensor
    ratios: Ratios


def clipped_surrogate(
    new: Tensor, old: Tensor, advantage: Tensor, mask: Tensor, clip_low: float, clip_high: float
) -> Surrogate:
    """Computes the surrogate of every unit (step, token or completion) in ``mask``.

    Args:
        new: log-probabilities with gradient, any shape.
        old, advantage, mask: the same shape; constants. What lies outside the mask (bool) is never used.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].

    Returns:
        The surrogate and the ratios rho, which are clipped where the gradient is 0; the mean of ``approx_kl`` is
        unbiased for KL(old || new) under samples of old, and never negative.
    """
    log_ratio = (where_used(new, mask) - where_used(old, mask).detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    advantage = where_used(advantage, mask).detach()
    ratio = log_ratio.exp()
    free, clipped = ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    return Surrogate(torch.minimum(free, clipped), ratios(ratio, free > clipped, log_ratio, mask))


class ClippedObjective(Objective):
    """Base class of losses that clip a ratio.

    Args:
        clip_low: the ratio is clipped at 1 - clip_low; in [0, 1], 1 leaves it free.
        clip_high: the ratio is clipped at 1 + clip_high; at least 0.
        in_keys: keys read.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, clip_low: float, clip_high: float, in_keys: Sequence[Key]) -> None:
        super().__init__(in_keys, DIAGNOSTICS)
        check(0 <= clip_low <= 1, self, "clip_low", clip_low, "in [0, 1]")
        check(clip_high >= 0, self, "clip_high", clip_high, "at least 0")
        self.clip_low = clip_low
        self.clip_high = clip_high


class ClippedSegments(ClippedObjective):
    """Base class of losses that clip the ratios of segments, or of their tokens. Arguments as ``ClippedObjective``."""

    @abstractmethod
    def surrogate(self, tensordict: TensorDictBase) -> Surrogate:
        """Returns the surrogate of each segment or token, [B, K] or [B, K, C]."""

    def measures(self, tensordict: TensorDictBase) -> Mapping[str, Measure]:
        """Returns ``ratio``, ``clip_fraction`` and ``approx_kl`` by segment."""
        with torch.no_grad():
            return self.surrogate(tensordict).ratios.measures()


@register(
    "loss",
    paper="arXiv 2603.12554",
    unbiased=True,
    under="before the first update on a batch, where its gradient is that of Reinforce, and as Reinforce",
)
class StepPPO(ClippedSegments):
    """Clips one ratio per denoising step (PPO); sums the surrogates over steps and averages over samples.

    Args:
        clip_low: the ratio is clipped at 1 - clip_low; in [0, 1], 1 leaves it free.
        clip_high: the ratio is clipped at 1 + clip_high; at least 0.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "old_log_prob")``, ``("selected", "advantage")``
    and ``("selected", "weight")``, all [B, K]. Returns ``loss_objective`` and, over the segments of non-zero weight,
    ``ratio`` (mean), ``ratio_max``, ``clip_fraction`` (share where the clip binds) and ``approx_kl`` (estimate of
    KL(old || new)). ``count`` is B.

    Raises:
        ValueError: a value out of range.
    """

    segmentwise = True

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.5) -> None:
        keys = [SELECTED_LOG_PROB, SELECTED_OLD_LOG_PROB, SELECTED_ADVANTAGE, SELECTED_WEIGHT]
        super().__init__(clip_low, clip_high, keys)

    def surrogate(self, tensordict: TensorDictBase) -> Surrogate:
        """Returns the surrogate of each selected step, [B, K]."""
        return clipped_surrogate(
            tensordict[SELECTED_LOG_PROB],
            tensordict[SELECTED_OLD_LOG_PROB],
            tensordict[SELECTED_ADVANTAGE],
            tensordict[SELECTED_WEIGHT] != 0,
            self.clip_low,
            self.clip_high,
        )

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the weighted sum of the surrogates of the selected steps."""
        surrogate = self.surrogate(tensordict)
        return -weighted_sum(surrogate.value, tensordict[SELECTED_WEIGHT]), surrogate.ratios.diagnostics


class ClippedSequences(ClippedObjective):
    """Base class of losses that clip the ratio of whole sequences. ``count`` is B.

    Args:
        clip_low: the ratio is clipped at 1 - clip_low; in [0, 1], 1 leaves it free.
        clip_high: the ratio is clipped at 1 + clip_high; at least 0.
        in_keys: keys read besides those named below.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "old_log_prob")`` and ``("selected", "weight")``,
    all [B, K], and ``advantage`` [B]. Returns ``loss_objective`` and, over the samples that have a segment of non-zero
    weight, ``ratio`` (mean), ``ratio_max``, ``clip_fraction`` (share where the clip binds) and ``approx_kl``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, clip_low: float, clip_high: float, in_keys: Sequence[Key] = ()) -> None:
        keys = [SELECTED_LOG_PROB, SELECTED_OLD_LOG_PROB, ADVANTAGE, SELECTED_WEIGHT, *in_keys]
        super().__init__(clip_low, clip_high, keys)

    def units(self, tensordict: TensorDictBase) -> Tensor:
        """Counts the samples that have a segment of non-zero weight."""
        return used_sequences(tensordict[SELECTED_WEIGHT]).sum()

    def surrogates(self, tensordict: TensorDictBase, divisor: Tensor | float = 1.0) -> Surrogate:
        """Returns the surrogate of each sample, [B], whose log-ratio is divided by ``divisor`` ([B] or a number)."""
        weight = tensordict[SELECTED_WEIGHT]
        return clipped_surrogate(
            sequence_log_prob(tensordict[SELECTED_LOG_PROB], weight) / divisor,
            sequence_log_prob(tensordict[SELECTED_OLD_LOG_PROB], weight) / divisor,
            tensordict[ADVANTAGE],
            used_sequences(weight),
            self.clip_low,
            self.clip_high,
        )


@register(
    "loss",
    paper="arXiv 1707.06347",
    unbiased=True,
    under="before the first update on a batch, where its gradient is that of Reinforce, and as Reinforce",
)
class SequencePPO(ClippedSequences):
    """Clips one ratio per completion (PPO), and averages the surrogates over samples.

    Arguments, reads, returns as ``ClippedSequences``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2) -> None:
        super().__init__(clip_low, clip_high)

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the sum of the surrogates of the samples."""
        surrogate = self.surrogates(tensordict)
        return -surrogate.value.sum(), surrogate.ratios.diagnostics


@register(
    "loss",
    paper="arXiv 2507.18071; arXiv 2512.03759",
    unbiased=False,
    scale="1 / length",
    under="proportional to Reinforce before the first update where all completions have the same length",
)
class LengthNormalisedPPO(ClippedSequences):
    """Clips one ratio per completion, whose logarithm is divided by the completion's length (GSPO, ESPO).

    Arguments as ``ClippedSequences``. Reads ``("sequence", "length")`` int64 [B] besides what ``ClippedSequences``
    reads; returns what it returns.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2) -> None:
        super().__init__(clip_low, clip_high, [SEQUENCE_LENGTH])

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the sum of the surrogates of the samples."""
        surrogate = self.surrogates(tensordict, divisor=sequence_length(tensordict))
        return -surrogate.value.sum(), surrogate.ratios.diagnostics


class PerTokenOfCompletion(Average):
    """Sums over the segments of a sample, divided by the completion's length; means over samples."""

    reads = (SEQUENCE_LENGTH,)

    def of_steps(self, values: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Returns the weighted sum of the values, [B, K], each divided by its sample's length."""
        return super().of_steps(values / sequence_length(tensordict)[:, None], tensordict)


@register(
    "loss",
    paper="arXiv 2510.08554",
    unbiased=False,
    scale="1 / length",
    under="proportional to Reinforce before the first update where all completions have the same length",
)
class PerTokenSequencePPO(ClippedSequences):
    """Clips one ratio per completion, and divides the surrogate by the completion's length (GDPO).

    Arguments as ``ClippedSequences``. Reads ``("sequence", "length")`` int64 [B] besides what ``ClippedSequences``
    reads; returns what it returns.

    Raises:
        ValueError: a value out of range.
    """

    average = PerTokenOfCompletion()

    def __init__(self, clip_low: float = 0.5, clip_high: float = 0.5) -> None:
        super().__init__(clip_low, clip_high, [SEQUENCE_LENGTH])

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the sum of the surrogates of the samples, each divided by its length."""
        surrogate = self.surrogates(tensordict)
        return -(surrogate.value / sequence_length(tensordict)).sum(), surrogate.ratios.diagnostics
