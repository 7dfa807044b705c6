"""Entropy importance sampling: k draws with replacement in proportion to entropy, weighted back to the full sum.

    q_t = (1 - floor) * H_t / sum_s H_s + floor / n,    weight = 1 / (k q_t)
    E[ sum_k weight_k g_{step_k} ] = sum_t g_t

The unbiased relative of EGSPO's top-k; a cousin of AGRPO's importance sampling (arXiv 2510.04019), which weights back
to the mean over steps and stratifies over the batch.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SEED, STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import Distribution, entropy_key, valid_entropy
from dlmrl_kit.selectors.drawn_steps import DrawnSteps


@register("selector", paper="cousin of arXiv 2510.04019", unbiased=True)
class EntropyImportance(DrawnSteps):
    """Draws k steps with replacement, about in proportion to entropy, weighted so that the sum stays unbiased.

    Args:
        k: draws per row, whatever its number of steps.
        floor: share of the uniform distribution in q, in (0, 1]; bounds the weights by n / (k floor). A row without
            any entropy is drawn from uniformly.
        distribution: whose entropy, as ``EntropyTopK``; AGRPO's release has that of the behaviour distribution.

    Reads ``("step", "valid")`` bool [B, T], ``("step", "entropy")`` or ``("step", "model_entropy")``, [B, T], and
    ``seed`` int64 [B].
    Writes ``("selected", "step")`` int64 [B, k], steps may repeat; ``("selected", "weight")`` [B, k], 1 / (k q_t).

    Raises:
        ValueError: a value out of range.
    """

    purpose = "entropy importance"

    def __init__(self, k: int = 4, floor: float = 0.05, distribution: Distribution = "behaviour") -> None:
        super().__init__(k)
        check(0 < floor <= 1, self, "floor", floor, "in (0, 1]")
        self.floor = floor
        self.distribution = distribution
        self.entropy = entropy_key(self, distribution)
        self.in_keys = [STEP_VALID, self.entropy, SEED]

    def probabilities(self, tensordict: TensorDictBase) -> Tensor:
        """Returns q_t, float64 [B, T]; 0 past the end of a row."""
        valid, entropy = tensordict[STEP_VALID], valid_entropy(tensordict, self.entropy)
        uniform = valid.double() / valid.sum(-1, keepdim=True)
        total = entropy.sum(-1, keepdim=True)
        share = torch.where(total > 0, entropy / total, uniform)
        return (1 - self.floor) * share + self.floor * uniform

    def importance(self, q: Tensor, step: Tensor) -> Tensor:
        """Returns 1 / (k q_t) for the drawn steps, float64 [B, k]."""
        return 1 / (self.k * q.gather(-1, step))
