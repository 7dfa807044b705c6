r"""Clipped value loss (PPO, as in arXiv 2005.12729; TraceRL, arXiv 2509.06949): what a value model minimises.

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
)
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.core.validate import check
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.regularisers.base import TokenRegulariser
from dlmrl_kit.values.base import check_by_position


@register("regulariser", paper="arXiv 2509.06949; arXiv 2005.12729")
class ValueLoss(TokenRegulariser):
    """Trains a value model by the squared error of its values, whose change in an update is clipped.

    Args:
        coefficient: multiplies the mean; at least 0.
        clip: a value that moved further than this towards its return gets no gradient; at least 0.
        normaliser: what the sum over tokens is divided by; None: what the loss is divided by, see ``TokenRegulariser``.

    Reads ``("selected", "value")`` (with gradient), ``("selected", "old_value")`` and ``("selected", "return")``, all
    [B, K, L] by position; ``("selected", "token_mask")`` of a likelihood of segments, and ``("selected", "weight")``
    [B, K]. Returns ``loss_value`` and ``value_error`` (before it is multiplied). ``count`` is the normaliser's.

    Raises:
        ValueError: a value out of range; when run, tokens that are not by position.
    """

    def __init__(self, coefficient: float = 1.0, clip: float = 0.2, normaliser: Normaliser | None = None) -> None:
        keys = [SELECTED_VALUE, SELECTED_OLD_VALUE, SELECTED_RETURN]
        super().__init__(coefficient, keys, "loss_value", "value_error", normaliser)
        check(clip >= 0, self, "clip", clip, "at least 0")
        self.clip = clip

    def per_token(self, tensordict: TensorDictBase, mask: Tensor) -> Tensor:
        """Returns the error of each token's value, [B, K, L]."""
        check_by_position(self, tensordict[SELECTED_TOKEN_MASK], tensordict[SELECTED_VALUE])
        value = where_used(tensordict[SELECTED_VALUE], mask)
        old, target = (where_used(tensordict[key], mask).detach() for key in (SELECTED_OLD_VALUE, SELECTED_RETURN))
        clipped = old + (value - old).clamp(-self.clip, self.clip)
        return 0.5 * torch.maximum((value - target).square(), (clipped - target).square())
