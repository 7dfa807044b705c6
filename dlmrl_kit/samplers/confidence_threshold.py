"""Confidence threshold (Fast-dLLM, arXiv 2505.22618): commit everything the model is sure of, at least one position."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.core.behaviour import confidence_of
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import StateScoreSampler
from dlmrl_kit.samplers.view import View, highest


@register("sampler", paper="arXiv 2505.22618")
class ConfidenceThreshold(StateScoreSampler):
    """Commits all positions whose best token has probability at least ``threshold``; at least the most confident one.

    Args:
        completion_length: L, number of positions to fill.
        threshold: on max_v softmax(logits)[v], in (0, 1].
        block_length, temperature, top_k, top_p, stop_at_eos: as ``Sampler``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        completion_length: int,
        threshold: float = 0.9,
        block_length: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop_at_eos: bool = True,
    ) -> None:
        super().__init__(completion_length, 1, block_length, temperature, top_k, top_p, stop_at_eos)
        check(0 < threshold <= 1, self, "threshold", threshold, "in (0, 1]")
        self.threshold = threshold

    @property
    def max_commits(self) -> int:
        """A step may commit a whole block."""
        return self.block_length

    def committed(self, view: View, generator: torch.Generator | None) -> Tensor:
        """Positions at or above the threshold; the most confident one where there is none."""
        best = view.dense(view.certainty.best, -torch.inf)
        bar = confidence_of(self.threshold)
        return highest(best, view.allowed, torch.ones_like(view.allowed[:, 0], dtype=torch.int64)) | (best >= bar)
