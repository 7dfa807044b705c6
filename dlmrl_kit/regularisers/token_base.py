r"""KL regularisers of single tokens: summed over the scored tokens, divided as a normaliser says.

    loss = coefficient * sum_bkc share_bkc w_bk k(d_bkc) / count,    d = log pi - log reference of one token

The tokens are those of the slots of non-zero weight; shares and count are the normaliser's.
"""

from __future__ import annotations

from typing import Literal

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    SELECTED_OLD_TOKEN_LOG_PROB,
    SELECTED_REF_TOKEN_LOG_PROB,
    SELECTED_TOKEN_LOG_PROB,
    SELECTED_TOKEN_MASK,
    SELECTED_WEIGHT,
)
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import (
    keep,
    scored_tokens,
)
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.normalisers.per_token import PerToken
from dlmrl_kit.regularisers.base import Regulariser, compared


class TokenKLEstimator(Regulariser):
    """Base class of estimators of KL(pi || reference) from the log-probabilities of single tokens.

    Args:
        coefficient: multiplies the mean; at least 0.
        to: ``"reference"``, the frozen reference policy, or ``"old"``, the policy that generated the batch.
        normaliser: what the sum over tokens is divided by; None means ``PerToken()``.

    Reads ``("selected", "token_log_prob")`` (with gradient), ``("selected", "ref_token_log_prob")`` or
    ``("selected", "old_token_log_prob")``, ``("selected", "token_mask")``, all [B, K, C], and
    ``("selected", "weight")`` [B, K]. Returns ``loss_kl`` and ``kl`` (``loss_kl_old`` and ``kl_old`` for ``"old"``).
    ``count`` is the normaliser's.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        coefficient: float = 0.04,
        to: Literal["reference", "old"] = "reference",
        normaliser: Normaliser | None = None,
    ) -> None:
        name, other = compared(self, to, SELECTED_REF_TOKEN_LOG_PROB, SELECTED_OLD_TOKEN_LOG_PROB)
        super().__init__(coefficient, [SELECTED_TOKEN_LOG_PROB, other, SELECTED_TOKEN_MASK], f"loss_{name}", name)
        check(normaliser is None or isinstance(normaliser, Normaliser), self, "normaliser", normaliser, "a normaliser")
        self.to_key = other
        self.normaliser = normaliser if normaliser is not None else PerToken()
        self.slotwise = self.normaliser.slotwise

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """The estimator at log pi - log reference, element-wise."""
        raise NotImplementedError

    def count(self, tensordict: TensorDictBase) -> Tensor:
        """The normaliser's denominator of this batch, a scalar."""
        return self.normaliser.count(scored_tokens(tensordict), tensordict[SELECTED_WEIGHT].detach())

    def total(self, tensordict: TensorDictBase) -> Tensor:
        """The normaliser's numerator of the estimates."""
        mask = scored_tokens(tensordict)
        log_ratio = keep(tensordict[SELECTED_TOKEN_LOG_PROB], mask) - keep(tensordict[self.to_key], mask).detach()
        return self.normaliser.total(self.estimate(log_ratio), mask, tensordict[SELECTED_WEIGHT].detach())
