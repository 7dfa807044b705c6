r"""Losses of whole sequences: the slots of a sample together make one log-probability.

    log pi_b = sum_k w_bk log pi_bk

With ``AllSteps`` (weight 1) this is the sum over denoising steps; with ``WholeSequence(draws=M)`` (weight 1 / M) the
mean over M Monte Carlo draws, an ELBO for instance. A sample without a slot of non-zero weight counts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    ADVANTAGE,
    SELECTED_LOG_PROB,
    SELECTED_OLD_LOG_PROB,
    SELECTED_WEIGHT,
    SEQUENCE_LENGTH,
    Key,
)
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import (
    Objective,
    keep,
)
from dlmrl_kit.losses.clipped import DIAGNOSTICS, Surrogate, clipped_surrogate


def used_sequences(weight: Tensor) -> Tensor:
    """The samples that have a slot of non-zero weight: bool [B] from [B, K]."""
    return (weight != 0).any(-1)


def sequence_log_prob(log_prob: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum over the slots of each sample: [B] from [B, K] and [B, K]; weights get no gradient."""
    return (keep(log_prob, weight != 0) * weight.detach()).sum(-1)


def sequence_length(tensordict: TensorDictBase) -> Tensor:
    """The length of each completion in tokens, at least 1, as a real number: [B]."""
    return tensordict[SEQUENCE_LENGTH].clamp(min=1).to(tensordict[SELECTED_WEIGHT].dtype)


class ClippedSequences(Objective):
    """Base class of losses that clip the ratio of whole sequences. ``count`` is B.

    Args:
        clip_low: the ratio is clipped at 1 - clip_low; in [0, 1], 1 leaves it free.
        clip_high: the ratio is clipped at 1 + clip_high; at least 0.
        in_keys: keys read besides those named below.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "old_log_prob")`` and ``("selected", "weight")``,
    all [B, K], and ``advantage`` [B]. Returns ``loss_objective`` and, over the samples that have a slot of non-zero
    weight, ``ratio`` (mean), ``ratio_max``, ``clip_fraction`` (share where the clip binds) and ``approx_kl``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, clip_low: float, clip_high: float, in_keys: Sequence[Key] = ()) -> None:
        super().__init__([SELECTED_LOG_PROB, SELECTED_OLD_LOG_PROB, ADVANTAGE, SELECTED_WEIGHT, *in_keys], DIAGNOSTICS)
        check(0 <= clip_low <= 1, self, "clip_low", clip_low, "in [0, 1]")
        check(clip_high >= 0, self, "clip_high", clip_high, "at least 0")
        self.clip_low = clip_low
        self.clip_high = clip_high

    def units(self, tensordict: TensorDictBase) -> Tensor:
        """The number of samples that have a slot of non-zero weight."""
        return used_sequences(tensordict[SELECTED_WEIGHT]).sum()

    def surrogates(self, tensordict: TensorDictBase, divisor: Tensor | float = 1.0) -> Surrogate:
        """The clipped surrogate of each sample, [B]; ``divisor`` [B]: of the log-ratio, before it is exponentiated."""
        weight = tensordict[SELECTED_WEIGHT]
        return clipped_surrogate(
            sequence_log_prob(tensordict[SELECTED_LOG_PROB], weight) / divisor,
            sequence_log_prob(tensordict[SELECTED_OLD_LOG_PROB], weight) / divisor,
            tensordict[ADVANTAGE],
            used_sequences(weight),
            self.clip_low,
            self.clip_high,
        )
