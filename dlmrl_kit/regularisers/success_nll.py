r"""Negative log-likelihood of successes (LightningRL, arXiv 2603.13319): imitate what was right.

    loss = coefficient * sum over the tokens of successes of share w (-log pi) / count

with shares and count of all tokens, as in the loss beside it. LightningRL divides by the tokens of successes alone.
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import REWARD, SELECTED_TOKEN_LOG_PROB
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.core.validate import check
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.regularisers.base import TokenRegulariser


@register("regulariser", paper="arXiv 2603.13319")
class SuccessNLL(TokenRegulariser):
    """Penalises the negative log-likelihood (nats) of the tokens of samples that succeeded.

    Args:
        coefficient: multiplies the mean; at least 0.
        success: the lowest reward of a success.
        normaliser: what the sum over tokens is divided by; None: what the loss is divided by.

    Reads ``("selected", "token_log_prob")`` (with gradient) and ``("selected", "token_mask")`` [B, K, C],
    ``("selected", "weight")`` [B, K] and ``reward`` [B]. Returns ``loss_nll`` and ``success_nll`` (before it is
    multiplied).

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, coefficient: float = 0.1, success: float = 1.0, normaliser: Normaliser | None = None) -> None:
        super().__init__(coefficient, [SELECTED_TOKEN_LOG_PROB, REWARD], "loss_nll", "success_nll", normaliser)
        check(math.isfinite(success), self, "success", success, "finite")
        self.success = success

    def per_token(self, tensordict: TensorDictBase, mask: Tensor) -> Tensor:
        """Returns -log pi of the tokens of successes, [B, K, C], 0 elsewhere."""
        succeeded = (tensordict[REWARD] >= self.success)[:, None, None]
        return torch.where(succeeded, -where_used(tensordict[SELECTED_TOKEN_LOG_PROB], mask), 0.0)
