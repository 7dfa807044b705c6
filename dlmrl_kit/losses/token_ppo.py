r"""Token-level PPO (d1, arXiv 2504.12216): one ratio per committed token.

    rho_bkc = exp(log pi_bkc - log pi_old_bkc)
    L = -sum_bkc share_bkc w_bk min(rho_bkc A_bk, clip(rho_bkc, 1 - low, 1 + high) A_bk) / count

The tokens are those of the segments of non-zero weight; shares and count are the normaliser's: by default 1 and the
number of tokens, those of a segment counted with its weight.

    TokenPPO            A_bk of the segment
    TokenAdvantagePPO   A_bkl, an advantage of its own for every token      TraceRL with a value model, arXiv 2509.06949
    ConfidenceTokenPPO  A_bk * pi_old_bkc, the token's probability when drawn                    MDPO, arXiv 2508.13148

At the sampling temperature pi_old is the confidence of MDPO's released code. Tokens that were drawn by chance then
count less than those that the policy was sure of.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    SELECTED_ADVANTAGE,
    SELECTED_OLD_TOKEN_LOG_PROB,
    SELECTED_TOKEN_ADVANTAGE,
    SELECTED_TOKEN_LOG_PROB,
    SELECTED_TOKEN_MASK,
    SELECTED_WEIGHT,
)
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import TokenAverage, scored_tokens
from dlmrl_kit.losses.ppo import ClippedSegments, Surrogate, clipped_surrogate
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.normalisers.means import PerToken
from dlmrl_kit.values.base import check_by_position


@register(
    "loss",
    paper="arXiv 2504.12216",
    unbiased=False,
    scale="B / number of tokens",
    under="proportional to Reinforce before the first update, with token-wise exact log-probabilities",
)
class TokenPPO(ClippedSegments):
    """Clips one ratio per token (PPO), and averages over the tokens of the batch (see ``normaliser``).

    With a fixed number of tokens per batch the mean only scales the gradient of the sum; a number that varies with the
    samples (rows that end early) biases it.

    Args:
        clip_low: the ratio is clipped at 1 - clip_low; in [0, 1], 1 leaves it free.
        clip_high: the ratio is clipped at 1 + clip_high; at least 0.
        normaliser: what the sum over tokens is divided by; None means ``PerToken()``.

    Reads ``("selected", "token_log_prob")`` (with gradient), ``("selected", "old_token_log_prob")`` and
    ``("selected", "token_mask")``, all [B, K, C]; ``("selected", "advantage")`` and ``("selected", "weight")``, both
    [B, K]. Returns ``loss_objective`` and, over the tokens of the segments of non-zero weight, ``ratio`` (mean),
    ``ratio_max``, ``clip_fraction`` (share where the clip binds) and ``approx_kl`` (estimate of KL(old || new)).
    ``count`` is the normaliser's.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2, normaliser: Normaliser | None = None) -> None:
        keys = [
            SELECTED_TOKEN_LOG_PROB,
            SELECTED_OLD_TOKEN_LOG_PROB,
            SELECTED_TOKEN_MASK,
            SELECTED_ADVANTAGE,
            SELECTED_WEIGHT,
        ]
        super().__init__(clip_low, clip_high, keys)
        check(normaliser is None or isinstance(normaliser, Normaliser), self, "normaliser", normaliser, "a normaliser")
        self.normaliser: Normaliser = normaliser if normaliser is not None else PerToken()
        self.segmentwise = self.normaliser.segmentwise
        self.average = TokenAverage(self.normaliser)

    def units(self, tensordict: TensorDictBase) -> Tensor:
        """Counts the tokens."""
        return scored_tokens(tensordict).sum()

    def token_advantage(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the advantage of each token, [B, K, C]: that of its segment."""
        return tensordict[SELECTED_ADVANTAGE][..., None].expand(tensordict[SELECTED_TOKEN_MASK].shape)

    def surrogate(self, tensordict: TensorDictBase) -> Surrogate:
        """Returns the surrogate of each token, [B, K, C]."""
        return clipped_surrogate(
            tensordict[SELECTED_TOKEN_LOG_PROB],
            tensordict[SELECTED_OLD_TOKEN_LOG_PROB],
            self.token_advantage(tensordict),
            scored_tokens(tensordict),
            self.clip_low,
            self.clip_high,
        )

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the normaliser's sum of the surrogates of the tokens."""
        surrogate = self.surrogate(tensordict)
        total = self.average.of_tokens(surrogate.value, surrogate.ratios.mask, tensordict)
        return -total, surrogate.ratios.diagnostics


@register(
    "loss",
    paper="arXiv 2509.06949",
    unbiased=False,
    scale="B / number of tokens",
    under="as TokenPPO, with unbiased advantages of tokens",
)
class TokenAdvantagePPO(TokenPPO):
    """Clips one ratio per token, with an advantage of each token's own.

    Use it with likelihoods of segments (``StepMerge``), whose tokens are by position, as the advantages are.

    Arguments, returns as ``TokenPPO``. Reads ``("selected", "token_advantage")`` [B, K, L] instead of
    ``("selected", "advantage")``.

    Raises:
        ValueError: a value out of range; when run, tokens that are not by position.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2, normaliser: Normaliser | None = None) -> None:
        super().__init__(clip_low, clip_high, normaliser)
        self.in_keys = [SELECTED_TOKEN_ADVANTAGE if key == SELECTED_ADVANTAGE else key for key in self.in_keys]

    def token_advantage(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the advantage of each token, [B, K, L]."""
        check_by_position(self, tensordict[SELECTED_TOKEN_MASK], tensordict[SELECTED_TOKEN_ADVANTAGE])
        return tensordict[SELECTED_TOKEN_ADVANTAGE]


@register(
    "loss",
    paper="arXiv 2508.13148",
    unbiased=False,
    under="weights every token with its own probability",
)
class ConfidenceTokenPPO(TokenPPO):
    """Clips one ratio per token, weighted with the token's probability under the old policy.

    Arguments, reads, returns, raises as ``TokenPPO``.
    """

    def token_advantage(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the advantage of the segment times the token's confidence, [B, K, C]."""
        old = where_used(tensordict[SELECTED_OLD_TOKEN_LOG_PROB], scored_tokens(tensordict)).detach()
        return super().token_advantage(tensordict) * old.exp()
