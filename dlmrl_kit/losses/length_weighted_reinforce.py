r"""REINFORCE divided by the tokens of the batch (SPG, arXiv 2510.09541): no ratio, no clip.

    L = -sum_b sum_k w_bk A_bk log pi_bk / sum_b |o_b|

SPG weights the log-probability per token of each sample by its length, and divides by the sum of all lengths: in terms
of the log-probability of the whole completion, the sum over samples divided by the number of tokens.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_ADVANTAGE, SELECTED_LOG_PROB, SELECTED_WEIGHT, SEQUENCE_LENGTH
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.losses.base import Average, Objective, mean_over, used_sequences, weighted_sum


class OverTokens(Average):
    """Sums over segments and samples, divided by the tokens of the completions."""

    reads = (SEQUENCE_LENGTH,)

    def count(self, tensordict: TensorDictBase) -> Tensor:
        """Sums the lengths of the samples that have a segment of non-zero weight: an int64 scalar."""
        return (tensordict[SEQUENCE_LENGTH].clamp(min=1) * used_sequences(tensordict[SELECTED_WEIGHT])).sum()

    def of_sequences(self, values: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Sums the values, [B], of the samples."""
        return values.sum()


@register(
    "loss",
    paper="arXiv 2510.09541",
    unbiased=False,
    scale="B / number of tokens",
    under="proportional to Reinforce; a number of tokens that varies with the samples biases it",
)
class LengthWeightedReinforce(Objective):
    """Minimises minus advantage times log-probability, summed over the batch and divided by its tokens.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "advantage")`` and ``("selected", "weight")``,
    all [B, K], and ``("sequence", "length")`` int64 [B]. Returns ``loss_objective`` and ``log_prob`` (mean over the
    segments of non-zero weight). ``count`` is the tokens of the samples that have a segment of non-zero weight.
    """

    segmentwise = True
    average = OverTokens()

    def __init__(self) -> None:
        super().__init__([SELECTED_LOG_PROB, SELECTED_ADVANTAGE, SELECTED_WEIGHT, SEQUENCE_LENGTH], ["log_prob"])

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the sum of weight * advantage * log-probability."""
        weight = tensordict[SELECTED_WEIGHT]
        used = weight != 0
        log_prob = where_used(tensordict[SELECTED_LOG_PROB], used)
        advantage = where_used(tensordict[SELECTED_ADVANTAGE], used).detach()
        return -weighted_sum(advantage * log_prob, weight), {"log_prob": mean_over(log_prob, used)}
