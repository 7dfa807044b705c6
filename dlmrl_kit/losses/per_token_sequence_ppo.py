r"""Sequence-level PPO divided by the length of the completion (GDPO, arXiv 2510.08554).

    rho_b = exp(log pi_b - log pi_old_b),    log pi_b = sum_k w_bk log pi_bk
    L = -(1/B) sum_b min(rho_b A_b, clip(rho_b, 1 - low, 1 + high) A_b) / |o_b|

The length divides the surrogate and not the log-ratio, which is that of the whole completion.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SEQUENCE_LENGTH
from dlmrl_kit.core.registry import register
from dlmrl_kit.losses.sequence_base import ClippedSequences, sequence_length


@register(
    "loss",
    paper="arXiv 2510.08554",
    unbiased=False,
    scale="1 / length",
    under="proportional to Reinforce before the first update where all completions have the same length",
)
class PerTokenSequencePPO(ClippedSequences):
    """Clipped surrogate with the ratio of whole completions, divided by their length, averaged over samples.

    Arguments as ``ClippedSequences``. Reads ``("sequence", "length")`` int64 [B] besides what ``ClippedSequences``
    reads; returns what it returns.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, clip_low: float = 0.5, clip_high: float = 0.5) -> None:
        super().__init__(clip_low, clip_high, [SEQUENCE_LENGTH])

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the sum of the surrogates of the samples, each over its length."""
        surrogate = self.surrogates(tensordict)
        return -(surrogate.value / sequence_length(tensordict)).sum(), surrogate.diagnostics
