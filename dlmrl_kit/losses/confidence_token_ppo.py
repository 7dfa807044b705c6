r"""Token PPO weighted by the sampler's confidence (MDPO, arXiv 2508.13148).

    L = -sum_bkc share_bkc w_bk c_bkc min(rho_bkc A_bk, clip(rho_bkc, 1 - low, 1 + high) A_bk) / count,
    c_bkc = pi_old_bkc

c is the probability with which the sampler drew the token, a constant; at the sampling temperature it is the confidence
of the released code. Tokens that were drawn by chance then count less than those the policy was sure of.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_OLD_TOKEN_LOG_PROB
from dlmrl_kit.core.registry import register
from dlmrl_kit.losses.base import keep, scored_tokens
from dlmrl_kit.losses.token_ppo import TokenPPO


@register(
    "loss",
    paper="arXiv 2508.13148",
    unbiased=False,
    under="weights every token with its own probability",
)
class ConfidenceTokenPPO(TokenPPO):
    """Clipped surrogate with the ratio of single tokens, each weighted with its probability under the old policy.

    Arguments, reads, returns, raises as ``TokenPPO``.
    """

    def token_advantage(self, tensordict: TensorDictBase) -> Tensor:
        """The advantage of the slot times the token's confidence, [B, K, C]."""
        old = keep(tensordict[SELECTED_OLD_TOKEN_LOG_PROB], scored_tokens(tensordict)).detach()
        return super().token_advantage(tensordict) * old.exp()
