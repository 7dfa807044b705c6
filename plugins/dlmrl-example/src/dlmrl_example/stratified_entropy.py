"""Stratified entropy sampling: time is cut into k stretches, and one step of each is drawn in proportion to entropy.

    q_t = (1 - floor) * H_t / sum_{s in stratum(t)} H_s + floor / |stratum(t)|,    weight = 1 / q_t
    E[ sum_k weight_k g_{step_k} ] = sum over strata of sum_{t in stratum} g_t = sum_t g_t

Every stretch of the trajectory is trained exactly once per sample and no step twice, which draws over the whole
trajectory (the kit's ``EntropyImportance``) do not promise: the part of their variance that comes from which stretch
was drawn is gone (stratified sampling; Cochran, Sampling Techniques, 1977, chapter 5).
"""

from __future__ import annotations

import itertools

import torch
from dlmrl_kit import register
from dlmrl_kit.core.component import Sizes, rebuilt
from dlmrl_kit.core.keys import SEED, STEP_ENTROPY, STEP_VALID
from dlmrl_kit.core.seeding import uniforms
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import LISTED_DRAWS, Selector, valid_entropy
from tensordict import TensorDictBase
from torch import Tensor


@register("selector", paper="stratified sampling, Cochran 1977; cousin of arXiv 2510.04019", unbiased=True)
class StratifiedEntropy(Selector):
    """Draws one step from each of k equal stretches of a row, with probability q_t as above, weight 1 / q_t.

    Args:
        k: stretches; a row of n < k steps is cut into n, so that all its steps are kept, with weight 1.
        floor: share of the uniform distribution in q, in (0, 1]; bounds a weight by the length of its stretch over
            floor. A stretch without any entropy is drawn from uniformly.

    Reads ``("step", "valid")`` bool [B, T], ``("step", "entropy")`` [B, T], ``seed`` int64 [B].
    Writes ``("selected", "step")`` int64 [B, K], ascending and distinct; ``("selected", "weight")`` [B, K];
    K = min(k, T).

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, k: int = 4, floor: float = 0.2) -> None:
        super().__init__(STEP_ENTROPY, SEED)
        check(isinstance(k, int) and k >= 1, self, "k", k, "an integer, at least 1")
        check(0 < floor <= 1, self, "floor", floor, "in (0, 1]")
        self.k = k
        self.floor = floor
        self.max_selected = k

    def resized(self, before: Sizes, after: Sizes) -> StratifiedEntropy:
        """Scales k with the number of steps, to at most ``LISTED_DRAWS``, so that all outcomes can be listed."""
        return rebuilt(self, k=min(before.scale_steps(self.k, after), LISTED_DRAWS))

    def strata(self, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Returns how many strata each row has, int64 [B, 1], and the stratum of each step, int64 [B, T]; K at padding.

        Step t of n is in stratum floor(t * strata / n), so that sizes differ by one at most.
        """
        steps = valid.sum(-1, keepdim=True).clamp(min=1)
        number = steps.clamp(max=self.k)
        time = torch.arange(valid.shape[-1], device=valid.device)
        return number, (time * number // steps).masked_fill(~valid, min(self.k, valid.shape[-1]))

    def probabilities(self, tensordict: TensorDictBase) -> Tensor:
        """Returns q_t, float64 [B, T], which sums to 1 over each stratum and is 0 past the end of a row."""
        valid, entropy = tensordict[STEP_VALID], valid_entropy(tensordict)
        _, stratum = self.strata(valid)
        size, total = _sum_by(valid.double(), stratum, self.k), _sum_by(entropy, stratum, self.k)
        share = torch.where(total > 0, entropy / total, 1 / size)
        return ((1 - self.floor) * share + self.floor / size).masked_fill(~valid, 0)

    def choose(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Draws steps int64 [B, K], with weights float64 [B, K]."""
        valid, q = tensordict[STEP_VALID], self.probabilities(tensordict)
        number, _ = self.strata(valid)
        steps = valid.sum(-1, keepdim=True)
        entry = torch.arange(min(self.k, valid.shape[-1]), device=q.device)
        noise = uniforms(tensordict[SEED], len(entry), purpose="stratified entropy")
        # The cumulative distribution rises by 1 over each stratum: it is inverted at j + noise for stratum j.
        step = torch.searchsorted(q.cumsum(-1), entry + noise, right=True)
        first = (entry * steps + number - 1) // number  # the first step with floor(t * number / steps) = entry
        last = ((entry + 1) * steps + number - 1) // number - 1
        step = torch.minimum(torch.maximum(step, first), last)  # cumulative sums round: not into the next stratum
        used = entry < number
        step = step.masked_fill(~used, 0)
        return step, used / q.gather(-1, step)

    def outcomes(self, tensordict: TensorDictBase) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Lists every selection that ``choose`` can make: steps [B, K], weights [B, K], probability [B]."""
        valid, q = tensordict[STEP_VALID], self.probabilities(tensordict)
        number, stratum = self.strata(valid)
        found = []
        for size in sorted(set(number.flatten().tolist())):
            entry = torch.arange(size, device=q.device)
            for steps in itertools.combinations(range(valid.shape[-1]), size):
                step = torch.tensor(steps, device=q.device).expand(len(q), -1)
                possible = ((stratum.gather(-1, step) == entry) & (number == size)).all(-1)
                step = step.masked_fill(~possible[:, None], 0)
                chance = q.gather(-1, step)
                found.append((step, 1 / chance, chance.prod(-1) * possible))
        return found


def _sum_by(values: Tensor, stratum: Tensor, k: int) -> Tensor:
    """Sums values [B, T] over the steps in the same stratum as each step: [B, T]."""
    sums = values.new_zeros(len(values), min(k, values.shape[-1]) + 1).scatter_add(-1, stratum, values)
    return sums.gather(-1, stratum)
