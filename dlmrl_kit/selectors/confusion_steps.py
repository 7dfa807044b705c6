"""Zones of confusion (ATPO, arXiv 2511.15208): steps where entropy changes fast, and steps of a small margin.

    change_t = |H_t - H_{t-1}|,  0 in the first step,      margin_t = mean over the tokens of step t of p_1 - p_2

with p_1 >= p_2 the two largest probabilities of softmax(logits). The abstract names both signals and a hybrid of them;
how they are mixed is not in it, and the code was not available. Here a share of the k steps is that of the smallest
margins, and the others are those of the largest changes. ATPO averages its signals over the batch; here each sample is
ranked by itself, so that how a rollout is cut into batches changes no selection.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import STEP_MARGIN, STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import Distribution, descending_rank, entropy_key, valid_entropy
from dlmrl_kit.selectors.k_steps import KSteps


@register("selector", paper="arXiv 2511.15208", unbiased=False, under="drops steady and certain steps")
class ConfusionSteps(KSteps):
    """Keeps the steps of the largest change of entropy, then those of the smallest margin among the others.

    Args:
        k: steps per row; a row with fewer keeps them all.
        margin_share: share of the k steps that margins choose, in [0, 1], rounded to whole steps (half: up).
        distribution: whose entropy changes, as ``EntropyTopK``.

    Reads ``("step", "valid")`` bool [B, T], ``("step", "margin")`` and ``("step", "entropy")`` or ``("step",
    "model_entropy")``, [B, T]. Writes as ``KSteps``; ties go to the earlier step.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, k: int = 4, margin_share: float = 0.5, distribution: Distribution = "behaviour") -> None:
        super().__init__(k)
        check(0 <= margin_share <= 1, self, "margin_share", margin_share, "in [0, 1]")
        self.margin_share = margin_share
        self.distribution = distribution
        self.entropy = entropy_key(self, distribution)
        self.in_keys = [STEP_VALID, self.entropy, STEP_MARGIN]

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Keeps the steps that rank first by one signal or the other: bool [B, T]."""
        valid, entropy = tensordict[STEP_VALID], valid_entropy(tensordict, self.entropy)
        by_margin = int(self.margin_share * self.k + 0.5)
        change = entropy.diff(dim=-1, prepend=entropy[:, :1]).abs()
        changing = (descending_rank(change, valid) < self.k - by_margin) & valid
        others = valid & ~changing
        return changing | ((descending_rank(-tensordict[STEP_MARGIN].double(), others) < by_margin) & others)
