"""Entropy coverage (ada-EGSPO, arXiv 2603.12554): keep as many steps as it takes to cover a share of the entropy.

    the smallest set S with sum_{t in S} H_t >= alpha * sum_t H_t

Every row gets its own number of steps; the released code takes the largest number in the batch for all rows.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Sizes, rebuilt
from dlmrl_kit.core.keys import STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import Distribution, Selector, descending_rank, entropy_key, tail_sum, valid_entropy

_ROUNDING = 1 + 1e-9  # sums that are equal on paper differ by less: such a step is not needed


@register("selector", paper="arXiv 2603.12554", unbiased=False, under="drops the steps of low entropy")
class EntropyCoverage(Selector):
    """Keeps the fewest steps whose entropies cover a share ``alpha`` of the row's entropy, with weight 1.

    Args:
        alpha: share to cover, in (0, 1]; 1 keeps every step of nonzero entropy. At least one step is kept.
        max_steps: upper limit per row; None means none.
        distribution: whose entropy, as ``EntropyTopK``: ``"behaviour"``, or ``"model"`` as in the release.

    Reads ``("step", "valid")`` bool [B, T], and ``("step", "entropy")`` or ``("step", "model_entropy")``, [B, T].
    Writes ``("selected", "step")`` int64 [B, K], ``("selected", "weight")`` [B, K], K = the most any row keeps.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self, alpha: float = 0.7, max_steps: int | None = None, distribution: Distribution = "behaviour"
    ) -> None:
        super().__init__()
        self.distribution = distribution
        self.entropy = entropy_key(self, distribution)
        self.in_keys = [STEP_VALID, self.entropy]
        check(0 < alpha <= 1, self, "alpha", alpha, "in (0, 1]")
        check(
            max_steps is None or (isinstance(max_steps, int) and max_steps >= 1),
            self,
            "max_steps",
            max_steps,
            "an integer, at least 1, or None",
        )
        self.alpha = alpha
        self.max_steps = max_steps

    def resized(self, before: Sizes, after: Sizes) -> EntropyCoverage:
        """Covers the same share of the entropy, with the same share of the steps at most."""
        most = None if self.max_steps is None else before.scale_steps(self.max_steps, after)
        return rebuilt(self, max_steps=most)

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Keeps the steps without which less than alpha would be covered: bool [B, T].

        A step is needed iff it and all steps ranked behind it hold more than a share 1 - alpha, up to rounding.
        Steps past the end rank last and hold nothing.
        """
        entropy = valid_entropy(tensordict, self.entropy)
        rank = descending_rank(entropy, tensordict[STEP_VALID])
        spare = (1 - self.alpha) * entropy.sum(-1, keepdim=True) * _ROUNDING
        kept = (tail_sum(entropy, rank) > spare) | (rank == 0)
        if self.max_steps is not None:
            kept &= rank < self.max_steps
        return kept
