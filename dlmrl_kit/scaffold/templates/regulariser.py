"""Holds the log-probabilities of the steps near zero."""

from __future__ import annotations

from dlmrl_kit import register
from dlmrl_kit.core.keys import SELECTED_LOG_PROB, SELECTED_WEIGHT
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.regularisers.base import StepRegulariser
from tensordict import TensorDictBase
from torch import Tensor


@register("regulariser")
class AcmeRegulariser(StepRegulariser):
    """Penalises the squared log-probability of the selected steps.

    Args:
        coefficient: multiplies the mean; at least 0.

    Reads ``("selected", "log_prob")`` (with gradient) and ``("selected", "weight")``, both [B, K]. Returns
    ``loss_acme`` and ``acme_square`` (before it is multiplied).

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, coefficient: float = 0.001) -> None:
        super().__init__(coefficient, [SELECTED_LOG_PROB], "loss_acme", "acme_square")

    def per_step(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the penalty of each selected step, [B, K], with gradient."""
        used = tensordict[SELECTED_WEIGHT] != 0  # what stands elsewhere may be anything
        return where_used(tensordict[SELECTED_LOG_PROB], used) ** 2
