r"""Entropy bound: drop the steps of lowest entropy while what is dropped sums to at most epsilon nats.

With H_t summed over the positions committed in step t, a step adds at most

    E || A_t grad log pi ||  <=  max|A| * max||grad logit|| * E || e_v - p ||_1  <=  B * H_t,
    E || e_v - p ||_1 = 2 (1 - sum_v p_v^2) <= 2 H(p),    B = 2 * max|A| * max||grad logit||

to the policy gradient, for samplers that choose positions from the state alone: dropping steps changes it by at most
B * (sum of dropped entropies) <= B * epsilon. This follows EGSPO's entropy argument (arXiv 2603.12554); the bound is
this project's.

The expectation is over the tokens of a step given its state, so the bound is exact for a choice that does not depend on
them. The ranking here compares all steps of a row, and the entropies of later steps do depend on them: what a step adds
is still at most B * H_t wherever it may be dropped, but steps dropped in different futures of a state add up.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import STEP_ENTROPY, STEP_NUM_COMMITTED, STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import (
    Selector,
    descending_rank,
    tail_sum,
    valid_entropy,
)


@register("selector", paper="arXiv 2603.12554 (bound: this project)", unbiased=False, under="bias bounded by epsilon")
class EntropyBound(Selector):
    """Drops the lowest-entropy steps of a row as long as their entropies sum to at most ``epsilon``; weight 1.

    Args:
        epsilon: nats that may be dropped per row, at least 0 (0 drops steps without entropy only). At least one step
            is kept; among equal entropies the later step is dropped first.

    The entropy is that of the behaviour distribution, for which alone the bound holds.

    Reads ``("step", "valid")`` bool [B, T], ``("step", "entropy")`` [B, T], ``("step", "num_committed")`` int64 [B, T].
    Writes ``("selected", "step")`` int64 [B, K], ``("selected", "weight")`` [B, K], K = the most any row keeps.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, epsilon: float = 1.0) -> None:
        super().__init__(STEP_ENTROPY, STEP_NUM_COMMITTED)
        check(epsilon >= 0, self, "epsilon", epsilon, "at least 0")
        self.epsilon = epsilon

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Keeps all but the longest tail of the ranking that holds at most epsilon; steps past the end hold nothing."""
        summed = valid_entropy(tensordict) * tensordict[STEP_NUM_COMMITTED]
        rank = descending_rank(summed, tensordict[STEP_VALID])
        return (tail_sum(summed, rank) > self.epsilon) | (rank == 0)
