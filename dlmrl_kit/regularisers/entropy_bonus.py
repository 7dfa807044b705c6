r"""Entropy bonus (A3C, arXiv 1602.01783): keeps the policy from collapsing.

    loss = -coefficient * (1/B) sum_b sum_k w_bk H_bk

H is the entropy of the behaviour distribution, averaged over the positions that step k of sample b commits.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_ENTROPY
from dlmrl_kit.core.registry import register
from dlmrl_kit.regularisers.base import StepRegulariser


@register("regulariser", paper="arXiv 1602.01783")
class EntropyBonus(StepRegulariser):
    """Rewards the entropy (nats) of the behaviour distribution in the selected steps.

    Args:
        coefficient: multiplies the mean; at least 0.

    Reads ``("selected", "entropy")`` (with gradient) and ``("selected", "weight")``, both [B, K]. Returns
    ``loss_entropy`` and ``entropy_bonus`` (before it is multiplied, positive).

    Raises:
        ValueError: a value out of range.
    """

    sign = -1.0

    def __init__(self, coefficient: float = 0.01) -> None:
        super().__init__(coefficient, [SELECTED_ENTROPY], "loss_entropy", "entropy_bonus")

    def per_step(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the entropy of each selected step, [B, K]."""
        return tensordict[SELECTED_ENTROPY]
