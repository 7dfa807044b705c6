r"""PPO with the length-normalised ratio of whole completions (GSPO, arXiv 2507.18071; ESPO, arXiv 2512.03759).

    rho_b = exp((log pi_b - log pi_old_b) / |o_b|),    log pi_b = sum_k w_bk log pi_bk
    L = -(1/B) sum_b min(rho_b A_b, clip(rho_b, 1 - low, 1 + high) A_b)

|o_b| is the number of completion tokens that the likelihood counts. The ratio is the geometric mean of those of single
tokens, so that one clip fits completions of any length.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SEQUENCE_LENGTH
from dlmrl_kit.core.registry import register
from dlmrl_kit.losses.sequence_base import ClippedSequences, sequence_length


@register(
    "loss",
    paper="arXiv 2507.18071; arXiv 2512.03759",
    unbiased=False,
    scale="1 / length",
    under="proportional to Reinforce before the first update where all completions have the same length",
)
class LengthNormalisedPPO(ClippedSequences):
    """Clipped surrogate whose log-ratio is divided by the length of the completion, averaged over samples.

    Arguments as ``ClippedSequences``. Reads ``("sequence", "length")`` int64 [B] besides what ``ClippedSequences``
    reads; returns what it returns.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2) -> None:
        super().__init__(clip_low, clip_high, [SEQUENCE_LENGTH])

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the sum of the surrogates of the samples."""
        surrogate = self.surrogates(tensordict, divisor=sequence_length(tensordict))
        return -surrogate.value.sum(), surrogate.diagnostics
