r"""Sequence-level PPO (arXiv 1707.06347): the whole completion is one action, with one ratio.

    rho_b = exp(log pi_b - log pi_old_b),    log pi_b = sum_k w_bk log pi_bk
    L = -(1/B) sum_b min(rho_b A_b, clip(rho_b, 1 - low, 1 + high) A_b)

The ratio of a long completion moves by the sum of what its tokens move; ``LengthNormalisedPPO`` divides that by the
length before it is exponentiated.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.losses.sequence_base import ClippedSequences


@register(
    "loss",
    paper="arXiv 1707.06347",
    unbiased=True,
    under="before the first update on a batch, where its gradient is that of Reinforce, and as Reinforce",
)
class SequencePPO(ClippedSequences):
    """Clipped surrogate with the ratio of whole completions, averaged over samples.

    Arguments, reads, returns as ``ClippedSequences``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2) -> None:
        super().__init__(clip_low, clip_high)

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the sum of the surrogates of the samples."""
        surrogate = self.surrogates(tensordict)
        return -surrogate.value.sum(), surrogate.diagnostics
