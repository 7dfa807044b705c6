"""Entropy top-k (EGSPO, arXiv 2603.12554): the k steps of a row with the largest mean entropy H_t."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import STEP_ENTROPY, STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import Selector, descending_rank, valid_entropy


@register("selector", paper="arXiv 2603.12554", unbiased=False, under="drops the steps of low entropy")
class EntropyTopK(Selector):
    """Keeps the k steps of largest entropy, with weight 1; ties go to the earlier step.

    Args:
        k: steps per row; a row with fewer keeps them all.

    Reads ``("step", "valid")`` bool [B, T], ``("step", "entropy")`` [B, T].
    Writes ``("selected", "step")`` int64 [B, K], ``("selected", "weight")`` [B, K], K = min(k, T).

    Raises:
        ValueError: a value out of range.
    """

    nested = True

    def __init__(self, k: int = 8) -> None:
        super().__init__(STEP_ENTROPY)
        check(isinstance(k, int) and k >= 1, self, "k", k, "an integer, at least 1")
        self.k = self.slots = k

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        """The k steps that rank first, bool [B, T]."""
        valid = tensordict[STEP_VALID]
        return (descending_rank(valid_entropy(tensordict), valid) < self.k) & valid
