r"""Token-level PPO (d1, arXiv 2504.12216): one ratio per committed token.

    rho_bkc = exp(log pi_bkc - log pi_old_bkc)
    L = -sum_bkc share_bkc w_bk min(rho_bkc A_bk, clip(rho_bkc, 1 - low, 1 + high) A_bk) / count

The tokens are those of the slots of non-zero weight; shares and count are the normaliser's (1 and their weighted number).
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.component import Key
from dlmrl_kit.losses.base import ADVANTAGE, TOKEN_MASK, WEIGHT, Objective, keep
from dlmrl_kit.losses.clipped import DIAGNOSTICS, clipped_surrogate
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.normalisers.per_token import PerToken
from dlmrl_kit.registry import register
from dlmrl_kit.validate import check

TOKEN_LOG_PROB: Key = ("selected", "token_log_prob")
OLD_TOKEN_LOG_PROB: Key = ("selected", "old_token_log_prob")


@register(
    "loss",
    paper="arXiv 2504.12216",
    unbiased=False,
    scale="B / number of tokens",
    under="proportional to Reinforce before the first update, with token-wise exact log-probabilities",
)
class TokenPPO(Objective):
    """Clipped surrogate with the ratio of single tokens, averaged over all tokens of the batch or as ``normaliser`` says.

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
        super().__init__([TOKEN_LOG_PROB, OLD_TOKEN_LOG_PROB, TOKEN_MASK, ADVANTAGE, WEIGHT], DIAGNOSTICS)
        check(0 <= clip_low <= 1, self, "clip_low", clip_low, "in [0, 1]")
        check(clip_high >= 0, self, "clip_high", clip_high, "at least 0")
        self.clip_low = clip_low
        check(normaliser is None or isinstance(normaliser, Normaliser), self, "normaliser", normaliser, "a normaliser")
        self.clip_high = clip_high
        self.normaliser = normaliser if normaliser is not None else PerToken()
        self.slotwise = self.normaliser.slotwise

    def tokens(self, tensordict: TensorDictBase) -> Tensor:
        """The tokens that count: bool [B, K, C]."""
        return tensordict[TOKEN_MASK] & (tensordict[WEIGHT] != 0)[..., None]

    def units(self, tensordict: TensorDictBase) -> Tensor:
        """The number of tokens."""
        return self.tokens(tensordict).sum()

    def count(self, tensordict: TensorDictBase) -> Tensor:
        """The normaliser's denominator of this batch, a scalar."""
        return self.normaliser.count(self.tokens(tensordict), tensordict[WEIGHT].detach())

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the weighted sum of the surrogates of the tokens."""
        mask = self.tokens(tensordict)
        surrogate = clipped_surrogate(
            tensordict[TOKEN_LOG_PROB],
            tensordict[OLD_TOKEN_LOG_PROB],
            tensordict[ADVANTAGE][..., None].expand(mask.shape),
            mask,
            self.clip_low,
            self.clip_high,
        )
        weight = tensordict[WEIGHT].detach()
        shares = keep(weight[..., None], mask) * self.normaliser.shares(mask, weight)
        return -(shares * surrogate.value).sum(), surrogate.diagnostics
