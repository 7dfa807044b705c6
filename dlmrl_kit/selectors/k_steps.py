"""Selectors of k steps of each row by their place in time: the first, the last, evenly spaced (arXiv 2603.12554).

``FirstK`` and ``LastK`` are ablations of EGSPO, ``UniformSteps`` is one of its baselines:

    step_j = round(j * (n - 1) / (k - 1))    for j = 0 .. k - 1, with k = n in a row of fewer than k steps
"""

from __future__ import annotations

from typing import ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Sizes, rebuilt
from dlmrl_kit.core.keys import STEP_VALID, Key
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import Selector


class KSteps(Selector):
    """Base class of selectors that keep k steps of each row.

    Args:
        k: steps per row; a row with fewer keeps them all.

    Reads ``("step", "valid")`` bool [B, T], and what the subclass lists in ``scored_by``.
    Writes ``("selected", "step")`` int64 [B, K], ``("selected", "weight")`` [B, K], K = min(k, T).

    Raises:
        ValueError: a value out of range.
    """

    scored_by: ClassVar[tuple[Key, ...]] = ()
    """Keys that the choice depends on besides which steps happened."""

    def __init__(self, k: int = 4) -> None:
        super().__init__(*self.scored_by)
        check(isinstance(k, int) and k >= 1, self, "k", k, "an integer, at least 1")
        self.k = self.max_selected = k

    def resized(self, before: Sizes, after: Sizes) -> KSteps:
        """Keeps the same share of the steps."""
        return rebuilt(self, k=before.scale_steps(self.k, after))


@register("selector", unbiased=False, under="drops the later steps")
class FirstK(KSteps):
    """Keeps the first k steps of each row, with weight 1: most of the completion is still masked in them.

    Arguments, reads, writes, raises as ``KSteps``.
    """

    nested = True

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Keeps the steps before k: bool [B, T]."""
        valid = tensordict[STEP_VALID]
        return (torch.arange(valid.shape[-1], device=valid.device) < self.k) & valid


@register("selector", unbiased=False, under="drops the earlier steps")
class LastK(KSteps):
    """Keeps the last k steps of each row, with weight 1: little is still masked in them.

    Arguments, reads, writes, raises as ``KSteps``.
    """

    nested = True

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Keeps the steps from n - k on: bool [B, T]."""
        valid = tensordict[STEP_VALID]
        first = valid.sum(-1, keepdim=True) - self.k
        return (torch.arange(valid.shape[-1], device=valid.device) >= first) & valid


@register("selector", paper="arXiv 2603.12554", unbiased=False, under="drops the steps in between")
class UniformSteps(KSteps):
    """Keeps k distinct, evenly spaced steps from the first to the last, with weight 1; k = 1 keeps the middle one.

    Arguments, reads, writes, raises as ``KSteps``.
    """

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Keeps the evenly spaced steps, rounded half up in integers: bool [B, T]."""
        valid = tensordict[STEP_VALID]
        last = valid.sum(-1, keepdim=True) - 1
        gaps = last.clamp(max=self.k - 1)
        j = torch.minimum(torch.arange(valid.shape[-1], device=valid.device), gaps)
        spaced = torch.where(gaps > 0, (2 * j * last + gaps) // (2 * gaps).clamp(min=1), last // 2)
        return torch.zeros_like(valid).scatter(-1, spaced, True)
