r"""Exact KL of the behaviour distributions at the committed positions (arXiv 2603.12554, its exact variant).

    value_bk = sum over committed positions of sum_v p(v) (log p(v) - log p_reference(v))

A sum over the vocabulary; the released code averages over it, which shrinks the term by the vocabulary size.
"""

from __future__ import annotations

from collections.abc import Mapping

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.behaviour import LOG_ZERO
from dlmrl_kit.core.keys import SELECTED_DISTRIBUTION, SELECTED_REF_DISTRIBUTION, SELECTED_TOKEN_MASK, SELECTED_WEIGHT
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.losses.base import Measure
from dlmrl_kit.regularisers.base import StepRegulariser


def categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns KL(p || q) in nats for log-probabilities [..., V], with gradient in p: [...].

    Tokens with p = 0 (log-probability -inf) count 0 in value and gradient; where q = 0 < p, log q is ``LOG_ZERO``.
    """
    possible = log_p != -float("inf")
    finite = where_used(log_p, possible)
    return where_used(finite.exp() * (finite - log_q.detach().clamp(min=LOG_ZERO)), possible).sum(-1)


@register("regulariser", paper="arXiv 2603.12554")
class KLExact(StepRegulariser):
    """Sums KL(pi || reference) over the vocabulary at every committed position, with its exact gradient.

    It is the KL of the tokens given the state and the positions committed; the choice of positions is not part of it.
    Needs the whole distribution of every committed position in memory.

    Args:
        coefficient: multiplies the mean; at least 0.

    Reads ``("selected", "distribution")`` (log-probabilities with gradient, -inf where filtered),
    ``("selected", "ref_distribution")``, both [B, K, C, V], ``("selected", "token_mask")`` [B, K, C] and
    ``("selected", "weight")`` [B, K]. Returns ``loss_kl`` and ``kl``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, coefficient: float = 0.04) -> None:
        super().__init__(
            coefficient, [SELECTED_DISTRIBUTION, SELECTED_REF_DISTRIBUTION, SELECTED_TOKEN_MASK], "loss_kl", "kl"
        )

    def per_step(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the KL of each selected step, [B, K], summed over its committed positions."""
        mask = tensordict[SELECTED_TOKEN_MASK] & (tensordict[SELECTED_WEIGHT] != 0)[..., None]
        kl = categorical_kl(tensordict[SELECTED_DISTRIBUTION][mask], tensordict[SELECTED_REF_DISTRIBUTION][mask])
        return kl.new_zeros(mask.shape).masked_scatter(mask, kl).sum(-1)

    def measures(self, tensordict: TensorDictBase) -> Mapping[str, Measure]:
        """Returns nothing: to know the KL of single steps would take another pass over the vocabulary."""
        return {}
