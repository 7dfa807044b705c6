r"""Step-level PPO (EGSPO, arXiv 2603.12554): one ratio per denoising step, asymmetric clip.

    rho_bk = exp(log pi_bk - log pi_old_bk)
    L = -(1/B) sum_b sum_k w_bk min(rho_bk A_bk, clip(rho_bk, 1 - low, 1 + high) A_bk)

The released EGSPO code takes one selected step per micro-step and divides its loss by the number of tokens a step
commits; here the steps are summed, so that before the first update the gradient is that of ``Reinforce``.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_ADVANTAGE, SELECTED_LOG_PROB, SELECTED_OLD_LOG_PROB, SELECTED_WEIGHT
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import Objective, weighted_sum
from dlmrl_kit.losses.clipped import DIAGNOSTICS, clipped_surrogate


@register(
    "loss",
    paper="arXiv 2603.12554",
    unbiased=True,
    under="before the first update on a batch, where its gradient is that of Reinforce, and as Reinforce",
)
class StepPPO(Objective):
    """Clipped surrogate with the ratio of whole steps, summed over steps, averaged over samples.

    Args:
        clip_low: the ratio is clipped at 1 - clip_low; in [0, 1], 1 leaves it free.
        clip_high: the ratio is clipped at 1 + clip_high; at least 0.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "old_log_prob")``, ``("selected", "advantage")``
    and ``("selected", "weight")``, all [B, K]. Returns ``loss_objective`` and, over the slots of non-zero weight,
    ``ratio`` (mean), ``ratio_max``, ``clip_fraction`` (share where the clip binds) and ``approx_kl`` (estimate of
    KL(old || new)). ``count`` is B.

    Raises:
        ValueError: a value out of range.
    """

    slotwise = True

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.5) -> None:
        super().__init__([SELECTED_LOG_PROB, SELECTED_OLD_LOG_PROB, SELECTED_ADVANTAGE, SELECTED_WEIGHT], DIAGNOSTICS)
        check(0 <= clip_low <= 1, self, "clip_low", clip_low, "in [0, 1]")
        check(clip_high >= 0, self, "clip_high", clip_high, "at least 0")
        self.clip_low = clip_low
        self.clip_high = clip_high

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the weighted sum of the surrogates of the selected steps."""
        weight = tensordict[SELECTED_WEIGHT]
        surrogate = clipped_surrogate(
            tensordict[SELECTED_LOG_PROB],
            tensordict[SELECTED_OLD_LOG_PROB],
            tensordict[SELECTED_ADVANTAGE],
            weight != 0,
            self.clip_low,
            self.clip_high,
        )
        return -weighted_sum(surrogate.value, weight), surrogate.diagnostics
