r"""Token-level PPO (d1, arXiv 2504.12216): one ratio per committed token.

    rho_bkc = exp(log pi_bkc - log pi_old_bkc)
    L = -sum_bkc share_bkc w_bk min(rho_bkc A_bk, clip(rho_bkc, 1 - low, 1 + high) A_bk) / count

The tokens are those of the slots of non-zero weight; shares and count are the normaliser's: by default 1 and the number
of tokens, those of a slot counted with its weight.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    SELECTED_ADVANTAGE,
    SELECTED_OLD_TOKEN_LOG_PROB,
    SELECTED_TOKEN_LOG_PROB,
    SELECTED_TOKEN_MASK,
    SELECTED_WEIGHT,
)
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import (
    Objective,
    scored_tokens,
)
from dlmrl_kit.losses.clipped import DIAGNOSTICS, clipped_surrogate
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.normalisers.per_token import PerToken


@register(
    "loss",
    paper="arXiv 2504.12216",
    unbiased=False,
    scale="B / number of tokens",
    under="proportional to Reinforce before the first update, with token-wise exact log-probabilities",
)
class TokenPPO(Objective):
    """Clipped surrogate with the ratio of single tokens, averaged over the tokens of the batch (see ``normaliser``).

    With a fixed number of tokens per batch the mean only scales the gradient of the sum; a number that varies with the
    samples (rows that end early) biases it.

    Args:
        clip_low: the ratio is clipped at 1 - clip_low; in [0, 1], 1 leaves it free.
        clip_high: the ratio is clipped at 1 + clip_high; at least 0.
        normaliser: what the sum over tokens is divided by; None means ``PerToken()``.

    Reads ``("selected", "token_log_prob")`` (with gradient), ``("selected", "old_token_log_prob")`` and
    ``("selected", "token_mask")``, all [B, K, C]; ``("selected", "advantage")`` and ``("selected", "weight")``, both
    [B, K]. Returns ``loss_objective`` and, over the tokens of the slots of non-zero weight, ``ratio`` (mean),
    ``ratio_max``, ``clip_fraction`` (share where the clip binds) and ``approx_kl`` (estimate of KL(old || new)).
    ``count`` is the normaliser's.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2, normaliser: Normaliser | None = None) -> None:
        super().__init__(
            [
                SELECTED_TOKEN_LOG_PROB,
                SELECTED_OLD_TOKEN_LOG_PROB,
                SELECTED_TOKEN_MASK,
                SELECTED_ADVANTAGE,
                SELECTED_WEIGHT,
            ],
            DIAGNOSTICS,
        )
        check(0 <= clip_low <= 1, self, "clip_low", clip_low, "in [0, 1]")
        check(clip_high >= 0, self, "clip_high", clip_high, "at least 0")
        check(normaliser is None or isinstance(normaliser, Normaliser), self, "normaliser", normaliser, "a normaliser")
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.normaliser = normaliser if normaliser is not None else PerToken()
        self.slotwise = self.normaliser.slotwise

    def count(self, tensordict: TensorDictBase) -> Tensor:
        """The normaliser's denominator of this batch, a scalar."""
        return self.normaliser.count(scored_tokens(tensordict), tensordict[SELECTED_WEIGHT].detach())

    def units(self, tensordict: TensorDictBase) -> Tensor:
        """The number of tokens."""
        return scored_tokens(tensordict).sum()

    def token_advantage(self, tensordict: TensorDictBase) -> Tensor:
        """The advantage of each token, [B, K, C]: that of its slot."""
        return tensordict[SELECTED_ADVANTAGE][..., None].expand(tensordict[SELECTED_TOKEN_MASK].shape)

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the weighted sum of the surrogates of the tokens."""
        mask = scored_tokens(tensordict)
        surrogate = clipped_surrogate(
            tensordict[SELECTED_TOKEN_LOG_PROB],
            tensordict[SELECTED_OLD_TOKEN_LOG_PROB],
            self.token_advantage(tensordict),
            mask,
            self.clip_low,
            self.clip_high,
        )
        total = self.normaliser.total(surrogate.value, mask, tensordict[SELECTED_WEIGHT].detach())
        return -total, surrogate.diagnostics
