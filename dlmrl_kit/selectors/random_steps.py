"""Random steps: k of n steps uniformly without replacement, weighted by n / k so that the expectation is the full sum.

    E[ (n / k) * sum_{t in S} g_t ] = sum_t g_t

The Horvitz-Thompson estimator (1952) for a uniform sample; a baseline of EGSPO (arXiv 2603.12554).
"""

from __future__ import annotations

import itertools
import math

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Sizes, rebuilt
from dlmrl_kit.core.keys import SEED, STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.seeding import seeds_of, uniforms
from dlmrl_kit.selectors.base import LISTED_DRAWS, descending_rank
from dlmrl_kit.selectors.k_steps import KSteps


@register("selector", paper="Horvitz and Thompson 1952; a baseline in arXiv 2603.12554", unbiased=True)
class RandomSteps(KSteps):
    """Keeps k steps drawn uniformly without replacement, each with weight n / min(k, n).

    Arguments, writes, raises as ``KSteps``. Reads as it, and ``seed``.
    """

    scored_by = (SEED,)

    def resized(self, before: Sizes, after: Sizes) -> RandomSteps:
        """Keeps the same share of the steps, two at most: more have the same mean, but too many outcomes to list."""
        return rebuilt(self, k=min(before.scale_steps(self.k, after), LISTED_DRAWS))

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Keeps the k steps with the largest uniform noise: bool [B, T]."""
        valid = tensordict[STEP_VALID]
        noise = uniforms(seeds_of(tensordict, self), valid.shape[1], purpose="random steps")
        return (descending_rank(noise, valid) < self.k) & valid

    def weights(self, kept: Tensor, valid: Tensor) -> Tensor:
        """Returns the number of steps over the number of chosen ones: float64 [B, 1]."""
        return valid.sum(-1, keepdim=True).double() / kept.sum(-1, keepdim=True)

    def outcomes(self, tensordict: TensorDictBase) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Lists all subsets of min(k, n) steps, which are equally likely."""
        valid = tensordict[STEP_VALID]
        num_steps, count = valid.shape[-1], valid.sum(-1).clamp(max=self.k)
        sets = [s for size in sorted(set(count.tolist())) for s in itertools.combinations(range(num_steps), size)]
        found = []
        for chosen in sets:
            mask = torch.zeros_like(valid)
            mask[:, list(chosen)] = True
            possible = (mask <= valid).all(-1) & (count == len(chosen))
            ways = [math.comb(int(n), len(chosen)) or 1 for n in valid.sum(-1)]
            step, weight = self.packed(torch.where(possible[:, None], mask, valid), valid)
            found.append((step, weight, possible / torch.tensor(ways, dtype=torch.float64, device=valid.device)))
        return found
