"""Selectors of the k steps of a row with the largest score: entropy (EGSPO, arXiv 2603.12554) or |advantage| (MDPO).

MDPO's released code (arXiv 2508.13148) ranks steps by the sum of |A_t| over its local batch, which holds one sample.
Here each sample is ranked by itself: how a rollout is cut into batches changes no selection, and rows of different
length need no common steps.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import STEP_ADVANTAGE, STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.selectors.base import Distribution, descending_rank, entropy_key, valid_entropy
from dlmrl_kit.selectors.k_steps import KSteps


@register("selector", paper="arXiv 2603.12554", unbiased=False, under="drops the steps of low entropy")
class EntropyTopK(KSteps):
    """Keeps the k steps of largest mean entropy H_t, with weight 1; ties go to the earlier step.

    Args:
        k: steps per row; a row with fewer keeps them all.
        distribution: whose entropy: ``"behaviour"``, the distribution that tokens are drawn from, or ``"model"``,
            softmax(logits) at temperature 1 and without filters, as EGSPO's release has it. At other temperatures the
            two can rank steps differently.

    Reads ``("step", "valid")`` bool [B, T], and ``("step", "entropy")`` or ``("step", "model_entropy")``, [B, T].
    Writes as ``KSteps``.

    Raises:
        ValueError: a value out of range.
    """

    nested = True

    def __init__(self, k: int = 4, distribution: Distribution = "behaviour") -> None:
        super().__init__(k)
        self.distribution = distribution
        self.entropy = entropy_key(self, distribution)
        self.in_keys = [STEP_VALID, self.entropy]

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Keeps the k steps that rank first: bool [B, T]."""
        valid = tensordict[STEP_VALID]
        return (descending_rank(valid_entropy(tensordict, self.entropy), valid) < self.k) & valid


@register("selector", paper="arXiv 2508.13148", unbiased=False, under="drops the steps of small advantage")
class TopAbsoluteAdvantage(KSteps):
    """Keeps the k steps whose advantage is farthest from 0, with weight 1; ties go to the earlier step.

    Needs an advantage that is known before steps are chosen, such as ``IntermediateReward``. Arguments, writes, raises
    as ``KSteps``. Reads ``("step", "valid")`` bool [B, T], ``("step", "advantage")`` [B, T].
    """

    scored_by = (STEP_ADVANTAGE,)

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Keeps the k steps that rank first: bool [B, T]."""
        valid = tensordict[STEP_VALID]
        return (descending_rank(tensordict[STEP_ADVANTAGE].abs(), valid) < self.k) & valid
