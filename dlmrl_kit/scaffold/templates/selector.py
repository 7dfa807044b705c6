"""Selects the steps of above-average entropy."""

from __future__ import annotations

from dlmrl_kit import register
from dlmrl_kit.core.keys import STEP_ENTROPY, STEP_VALID
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import Selector, descending_rank, valid_entropy
from tensordict import TensorDictBase
from torch import Tensor


@register("selector", unbiased=False)
class AcmeSelector(Selector):
    """Keeps the steps whose entropy is at least ``factor`` times the average of their row, and the highest one.

    Args:
        factor: at least 0; 0 keeps every step.

    Reads ``("step", "valid")`` bool [B, T] and ``("step", "entropy")`` [B, T], in nats.
    Writes ``("selected", "step")`` int64 [B, K], ``("selected", "weight")`` [B, K].

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(STEP_ENTROPY)
        check(factor >= 0, self, "factor", factor, "at least 0")
        self.factor = factor

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Chooses steps: bool [B, T]."""
        valid, entropy = tensordict[STEP_VALID], valid_entropy(tensordict)
        average = entropy.sum(-1, keepdim=True) / valid.sum(-1, keepdim=True)
        highest = descending_rank(entropy, valid) == 0
        return valid & (highest | (entropy >= self.factor * average))
