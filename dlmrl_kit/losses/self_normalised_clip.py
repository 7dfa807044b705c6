r"""Self-normalised clipping (StableDRL, arXiv 2603.06743): ratios weigh the samples of a group, and weigh no gradient.

    c_b = clip(exp((log pi_b - log pi_old_b) / |o_b|), 1 - low, 1 + high),    without gradient
    L = -(1/B) sum_b G_b c_b / (sum over the group of c)  A_b log pi_b / |o_b|

with log pi_b = sum_k w_bk log pi_bk and G_b the samples of b's group: the mean over groups of a weighted mean over
their samples. PPO clips a ratio only where that lowers the objective: with A < 0, a ratio that the noise of an ELBO
made large goes through. Here it is clipped whatever A is, and the gradient stays within the hull of the samples' own.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.behaviour import MAX_LOG_RATIO
from dlmrl_kit.core.keys import (
    ADVANTAGE,
    GROUP,
    SELECTED_LOG_PROB,
    SELECTED_OLD_LOG_PROB,
    SELECTED_WEIGHT,
    SEQUENCE_LENGTH,
)
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import group_sum, where_used
from dlmrl_kit.losses.base import sequence_length, sequence_log_prob, used_sequences
from dlmrl_kit.losses.ppo import ClippedSequences, ratios


@register(
    "loss",
    paper="arXiv 2603.06743",
    unbiased=False,
    scale="1 / length",
    under="proportional to Reinforce before the first update where all completions have the same length",
)
class SelfNormalisedClip(ClippedSequences):
    """Weighs each completion's policy gradient with its clipped ratio over the sum of those of its group.

    Args:
        clip_low: the ratio is clipped at 1 - clip_low; in [0, 1], 1 leaves it free.
        clip_high: the ratio is clipped at 1 + clip_high; at least 0.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "old_log_prob")`` and ``("selected", "weight")``,
    all [B, K], ``advantage`` [B], ``group`` and ``("sequence", "length")`` int64 [B]. Returns ``loss_objective`` and,
    over the samples that have a segment of non-zero weight, ``ratio`` (mean), ``ratio_max``, ``clip_fraction`` (share
    whose ratio is clipped) and ``approx_kl``. ``count`` is B. Minibatches hold whole groups.

    Raises:
        ValueError: a value out of range.
    """

    needs_groups = True

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2) -> None:
        super().__init__(clip_low, clip_high, [GROUP, SEQUENCE_LENGTH])

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the sum over groups of their size times the weighted mean of A log pi / |o|."""
        weight, length = tensordict[SELECTED_WEIGHT], sequence_length(tensordict)
        used = used_sequences(weight)
        log_prob = sequence_log_prob(tensordict[SELECTED_LOG_PROB], weight) / length
        advantage = where_used(tensordict[ADVANTAGE], used).detach()
        with torch.no_grad():
            old = sequence_log_prob(tensordict[SELECTED_OLD_LOG_PROB], weight) / length
            log_ratio = (log_prob - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
            ratio = log_ratio.exp()
            clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
            share = group_shares(clipped, tensordict[GROUP], used)
            diagnostics = ratios(ratio, ratio != clipped, log_ratio, used).diagnostics
        return -(share * advantage * log_prob).sum(), diagnostics


def group_shares(mass: Tensor, group: Tensor, used: Tensor) -> Tensor:
    """Divides the mass of each used sample by the mean over those of its group: [B]; the others get 0.

    Args:
        mass: [B], not negative; a group whose mass is 0 throughout gets 0.
        group: int64 [B].
        used: bool [B].
    """
    mass = where_used(mass, used)
    total, size = group_sum(mass, group), group_sum(used.to(mass.dtype), group)
    return mass * size / total.masked_fill(total == 0, 1)
