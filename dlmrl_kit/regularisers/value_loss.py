r"""Clipped value loss (PPO, as in arXiv 2005.12729; TraceRL, arXiv 2509.06949): what a value model descends.

    loss = coefficient * sum_bkl share_bkl w_bk 1/2 max( (V - G)^2, (V_old + clip(V - V_old, -c, c) - G)^2 ) / count

V, V_old and G are the value, the value before the update and the return of each token.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    SELECTED_OLD_VALUE,
    SELECTED_RETURN,
    SELECTED_TOKEN_MASK,
    SELECTED_VALUE,
    SELECTED_WEIGHT,
)
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import keep, scored_tokens
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.normalisers.per_token import PerToken
from dlmrl_kit.regularisers.base import Regulariser
from dlmrl_kit.values.base import check_by_position


@register("regulariser", paper="arXiv 2509.06949; arXiv 2005.12729")
class ValueLoss(Regulariser):
    """Squared error of the values of tokens, no smaller than with the change of the value clipped.

    Args:
        coefficient: multiplies the mean; at least 0.
        clip: a value that moved further than this towards its return gets no gradient; at least 0.
        normaliser: what the sum over tokens is divided by; None means ``PerToken()``.

    Reads ``("selected", "value")`` (with gradient), ``("selected", "old_value")`` and ``("selected", "return")``, all
    [B, K, L] by position; ``("selected", "token_mask")`` of a likelihood of segments, and ``("selected", "weight")``
    [B, K]. Returns ``loss_value`` and ``value_error`` (before it is multiplied). ``count`` is the normaliser's.

    Raises:
        ValueError: a value out of range; when run, tokens that are not by position.
    """

    def __init__(self, coefficient: float = 1.0, clip: float = 0.2, normaliser: Normaliser | None = None) -> None:
        super().__init__(
            coefficient,
            [SELECTED_VALUE, SELECTED_OLD_VALUE, SELECTED_RETURN, SELECTED_TOKEN_MASK],
            "loss_value",
            "value_error",
        )
        check(clip >= 0, self, "clip", clip, "at least 0")
        check(normaliser is None or isinstance(normaliser, Normaliser), self, "normaliser", normaliser, "a normaliser")
        self.clip = clip
        self.normaliser = normaliser if normaliser is not None else PerToken()
        self.slotwise = self.normaliser.slotwise

    def count(self, tensordict: TensorDictBase) -> Tensor:
        """The normaliser's denominator of this batch, a scalar."""
        return self.normaliser.count(scored_tokens(tensordict), tensordict[SELECTED_WEIGHT].detach())

    def total(self, tensordict: TensorDictBase) -> Tensor:
        """The normaliser's numerator of the errors."""
        check_by_position(self, tensordict[SELECTED_TOKEN_MASK], tensordict[SELECTED_VALUE])
        mask = scored_tokens(tensordict)
        value = keep(tensordict[SELECTED_VALUE], mask)
        old, target = (keep(tensordict[key], mask).detach() for key in (SELECTED_OLD_VALUE, SELECTED_RETURN))
        clipped = old + (value - old).clamp(-self.clip, self.clip)
        error = 0.5 * torch.maximum((value - target).square(), (clipped - target).square())
        return self.normaliser.total(error, mask, tensordict[SELECTED_WEIGHT].detach())
