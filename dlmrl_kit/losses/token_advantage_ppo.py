r"""Token-level PPO with an advantage of its own for every token (TraceRL with a value model, arXiv 2509.06949).

    L = -sum_bkl share_bkl w_bk min(rho_bkl A_bkl, clip(rho_bkl, 1 - low, 1 + high) A_bkl) / count

As ``TokenPPO``, which gives all tokens of a slot the slot's advantage.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_ADVANTAGE, SELECTED_TOKEN_ADVANTAGE, SELECTED_TOKEN_MASK
from dlmrl_kit.core.registry import register
from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.values.base import check_by_position


@register(
    "loss",
    paper="arXiv 2509.06949",
    unbiased=False,
    scale="B / number of tokens",
    under="as TokenPPO, with unbiased advantages of tokens",
)
class TokenAdvantagePPO(TokenPPO):
    """Clipped surrogate with ratio and advantage of single tokens.

    For likelihoods of segments (``StepMerge``), whose tokens are by position, as the advantages are.

    Arguments, returns as ``TokenPPO``. Reads ``("selected", "token_advantage")`` [B, K, L] instead of
    ``("selected", "advantage")``.

    Raises:
        ValueError: a value out of range; when run, tokens that are not by position.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2, normaliser: Normaliser | None = None) -> None:
        super().__init__(clip_low, clip_high, normaliser)
        self.in_keys = [SELECTED_TOKEN_ADVANTAGE if key == SELECTED_ADVANTAGE else key for key in self.in_keys]

    def token_advantage(self, tensordict: TensorDictBase) -> Tensor:
        """The advantage of each token, [B, K, L]."""
        check_by_position(self, tensordict[SELECTED_TOKEN_MASK], tensordict[SELECTED_TOKEN_ADVANTAGE])
        return tensordict[SELECTED_TOKEN_ADVANTAGE]
