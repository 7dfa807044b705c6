r"""Losses that make an advantage the target of a log-ratio, by least squares, rather than the direction of a step.

    RelativeScore (RSPO, arXiv 2605.10218), relative to the reference:
        d_b = log pi_b - log pi_ref_b,    e_b = d_b - mean over the group of d
        L = beta / (2 B) sum_b (A_b / beta - e_b)^2

    GuidedSelfDistillation (GDSD, arXiv 2605.29398), relative to the old policy, one error per draw k of the masks:
        d_bk = clip(log pi_bk - log pi_old_bk, log(1 - clip), log(1 + clip)) / |o_b|
        L = (1/B) sum_b sum_k w_bk (psi A_b - d_bk)^2

In the first log pi_b = sum_k w_bk log pi_bk. Its minimum is pi ~ pi_ref exp(A / beta); its gradient is that of
Reinforce with the advantage A_b - beta e_b where advantages sum to zero over a group, so that an estimate that is too
high already pulls less. The second stops a draw where its log-ratio leaves the clip, as the released code does with a
clip of 0.0004, which leaves little but the first step on a rollout.
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    ADVANTAGE,
    GROUP,
    SELECTED_ADVANTAGE,
    SELECTED_LOG_PROB,
    SELECTED_OLD_LOG_PROB,
    SELECTED_REF_LOG_PROB,
    SELECTED_WEIGHT,
    SEQUENCE_LENGTH,
    Key,
)
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import group_sum, where_used
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import (
    Objective,
    mean_over,
    sequence_length,
    sequence_log_prob,
    used_sequences,
    weighted_sum,
)


@register(
    "loss",
    paper="arXiv 2605.10218",
    unbiased=True,
    under="before the first update, where the policy is the reference, with advantages that sum to zero over a group",
)
class RelativeScore(Objective):
    """Regresses the log-ratio of policy and reference, less its mean over the group, on advantage / beta.

    Args:
        beta: how strongly the policy is held to the reference; positive.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "ref_log_prob")`` and ``("selected", "weight")``,
    all [B, K], ``advantage`` [B] and ``group`` int64 [B]. Returns ``loss_objective`` and, over the samples that have a
    segment of non-zero weight, ``log_ratio`` (mean of d) and ``error`` (mean of |A / beta - e|). ``count`` is B.
    Minibatches hold whole groups.

    Raises:
        ValueError: a value out of range.
    """

    needs_groups = True

    def __init__(self, beta: float = 0.1) -> None:
        keys: list[Key] = [SELECTED_LOG_PROB, SELECTED_REF_LOG_PROB, SELECTED_WEIGHT, ADVANTAGE, GROUP]
        super().__init__(keys, ["log_ratio", "error"])
        check(0 < beta < math.inf, self, "beta", beta, "positive and finite")
        self.beta = beta

    def units(self, tensordict: TensorDictBase) -> Tensor:
        """Counts the samples that have a segment of non-zero weight."""
        return used_sequences(tensordict[SELECTED_WEIGHT]).sum()

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns beta / 2 times the sum of the squared errors."""
        weight, group = tensordict[SELECTED_WEIGHT], tensordict[GROUP]
        used = used_sequences(weight)
        reference = sequence_log_prob(tensordict[SELECTED_REF_LOG_PROB], weight).detach()
        log_ratio = sequence_log_prob(tensordict[SELECTED_LOG_PROB], weight) - reference
        size = group_sum(used.to(log_ratio.dtype), group).clamp(min=1)
        centred = log_ratio - group_sum(log_ratio, group) / size
        error = where_used(where_used(tensordict[ADVANTAGE], used).detach() / self.beta - centred, used)
        with torch.no_grad():
            diagnostics = {"log_ratio": mean_over(log_ratio, used), "error": mean_over(error.abs(), used)}
        return self.beta / 2 * error.square().sum(), diagnostics


@register("loss", paper="arXiv 2605.29398", unbiased=False, under="another objective")
class GuidedSelfDistillation(Objective):
    """Regresses each draw's log-ratio of policy and old policy, per token, on psi times the advantage.

    Args:
        psi: the log-ratio per token that an advantage of 1 asks for; positive.
        clip: the log-ratio of a draw is clipped at log(1 - clip) and log(1 + clip), behind which it gets no gradient;
            in (0, 1).

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "old_log_prob")``, ``("selected", "advantage")``
    and ``("selected", "weight")``, all [B, K], and ``("sequence", "length")`` int64 [B]. Returns ``loss_objective``
    and, over the segments of non-zero weight, ``log_ratio`` (mean, not clipped) and ``clip_fraction``. ``count`` is B.

    Raises:
        ValueError: a value out of range.
    """

    segmentwise = True

    def __init__(self, psi: float = 1.0, clip: float = 0.2) -> None:
        keys = [SELECTED_LOG_PROB, SELECTED_OLD_LOG_PROB, SELECTED_ADVANTAGE, SELECTED_WEIGHT, SEQUENCE_LENGTH]
        super().__init__(keys, ["log_ratio", "clip_fraction"])
        check(0 < psi < math.inf, self, "psi", psi, "positive and finite")
        check(0 < clip < 1, self, "clip", clip, "in (0, 1)")
        self.psi = psi
        self.clip = clip

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum of the squared errors of the draws."""
        weight = tensordict[SELECTED_WEIGHT]
        used = weight != 0
        old = where_used(tensordict[SELECTED_OLD_LOG_PROB], used).detach()
        log_ratio = where_used(tensordict[SELECTED_LOG_PROB], used) - old
        clipped = log_ratio.clamp(math.log1p(-self.clip), math.log1p(self.clip))
        target = self.psi * where_used(tensordict[SELECTED_ADVANTAGE], used).detach()
        error = target - clipped / sequence_length(tensordict)[:, None]
        with torch.no_grad():
            diagnostics = {
                "log_ratio": mean_over(log_ratio, used),
                "clip_fraction": mean_over((log_ratio != clipped).to(log_ratio.dtype), used),
            }
        return weighted_sum(error.square(), weight), diagnostics
