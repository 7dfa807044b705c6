"""Confidence threshold (Fast-dLLM, arXiv 2505.22618): commit every position that the model is sure of.

    S = { i : max_v softmax(logits_i)[v] >= threshold },  or the one position where it is largest if S is empty

S depends on the state alone, so the exact log-probability is that of the tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlmrl_kit.core.behaviour import confidence_of
from dlmrl_kit.core.component import Sizes
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import Sampler, View
from dlmrl_kit.samplers.mask import StateScoreSampler, highest


@register("sampler", paper="arXiv 2505.22618")
class ConfidenceThreshold(StateScoreSampler):
    """Commits all positions whose best token has probability at least ``threshold``; at least the most confident one.

    Args:
        completion_length, block_length, temperature, top_k, top_p, stop_at_eos: as ``Sampler``.
        threshold: on max_v softmax(logits)[v], in (0, 1].

    Raises:
        ValueError: a value out of range.
    """

    @with_parameters_of(Sampler)
    def __init__(self, completion_length: int, *decoding: Any, threshold: float = 0.9, **named: Any) -> None:
        super().__init__(completion_length, 1, *decoding, **named)
        check(0 < threshold <= 1, self, "threshold", threshold, "in (0, 1]")
        self.threshold = threshold

    def resized(self, before: Sizes, after: Sizes) -> Sampler:
        """As ``Sampler``: how many positions a step commits is none of its settings."""
        return Sampler.resized(self, before, after)

    @property
    def max_commits(self) -> int:
        """A step may commit a whole block."""
        return self.block_length

    def committed(self, view: View) -> Tensor:
        """Returns the positions at or above the threshold; the most confident one where there is none: bool [B, L]."""
        best = view.dense(view.certainty.best, -torch.inf)
        bar = confidence_of(self.threshold)
        return highest(best, view.allowed, torch.ones_like(view.allowed[:, 0], dtype=torch.int64)) | (best >= bar)
