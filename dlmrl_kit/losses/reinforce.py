r"""REINFORCE over the selected steps (Williams 1992; arXiv 2603.12554, the policy gradient of its denoising MDP).

    L = -(1/B) sum_b sum_k w_bk A_bk log pi_bk

A sum over steps and a mean over samples: with every step selected, exact log-probabilities and unbiased advantages,
minus its expected gradient is exactly grad J.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_ADVANTAGE, SELECTED_LOG_PROB, SELECTED_WEIGHT
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.losses.base import Objective, mean_over, weighted_sum


@register(
    "loss",
    paper="Williams 1992; arXiv 2603.12554",
    unbiased=True,
    under="on-policy; exact log-probabilities, unbiased advantages, weights that stand for every step",
)
class Reinforce(Objective):
    """Minimises minus advantage times log-probability (policy gradient), summed over steps, averaged over samples.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "advantage")`` and ``("selected", "weight")``,
    all [B, K]. Returns ``loss_objective`` and ``log_prob`` (mean over the segments of non-zero weight). ``count`` is B.
    """

    segmentwise = True

    def __init__(self) -> None:
        super().__init__([SELECTED_LOG_PROB, SELECTED_ADVANTAGE, SELECTED_WEIGHT], ["log_prob"])

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the sum of weight * advantage * log-probability."""
        weight = tensordict[SELECTED_WEIGHT]
        used = weight != 0
        log_prob = where_used(tensordict[SELECTED_LOG_PROB], used)
        advantage = where_used(tensordict[SELECTED_ADVANTAGE], used).detach()
        return -weighted_sum(advantage * log_prob, weight), {"log_prob": mean_over(log_prob, used)}
