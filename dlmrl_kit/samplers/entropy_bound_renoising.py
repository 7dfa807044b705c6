r"""Entropy-bounded acceptance (EB-Sampler, arXiv 2505.24857) with renoising, as DiffusionGemma decodes.

Sort the positions of the canvas by entropy, H_1 <= H_2 <= ...; position k is accepted iff

    H_1 + ... + H_{k-1} <= bound

so that the accepted tokens are nearly independent of each other. All other positions get new random tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.canvas import State
from dlmrl_kit.samplers.renoising import RenoisingSampler


@register("sampler", paper="arXiv 2505.24857")
class EntropyBoundRenoising(RenoisingSampler):
    """Accepts the most certain positions of the canvas and renoises the others; for models of uniform noise.

    The defaults are those of DiffusionGemma in transformers (``DiffusionGemmaGenerationConfig``).

    Args:
        completion_length, block_length, top_k, top_p: as ``Sampler``; a block is a canvas of the model.
        steps: denoising steps of a block, at most.
        entropy_bound: in nats.
        first_temperature, last_temperature: the predictions' temperature falls linearly from one towards the other.
        confidence_threshold: a block is finished once the mean entropy of its canvas (nats) is below this and the most
            probable tokens are those of the step before; 0 always takes all ``steps``.
        temperature: divides the logits once more before tokens are drawn, not where positions are accepted; 0 draws
            the most probable tokens.
        stop_at_eos: a row ends once a finished block holds the end of the text.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        completion_length: int,
        block_length: int | None = None,
        steps: int = 48,
        entropy_bound: float = 0.1,
        first_temperature: float = 0.8,
        last_temperature: float = 0.4,
        confidence_threshold: float = 0.005,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop_at_eos: bool = True,
    ) -> None:
        super().__init__(
            completion_length,
            steps,
            block_length,
            first_temperature,
            last_temperature,
            temperature,
            top_k,
            top_p,
            stop_at_eos,
        )
        check(0 < entropy_bound < math.inf, self, "entropy_bound", entropy_bound, "positive and finite")
        check(
            0 <= confidence_threshold < math.inf,
            self,
            "confidence_threshold",
            confidence_threshold,
            "at least 0 and finite",
        )
        self.entropy_bound = entropy_bound
        self.confidence_threshold = confidence_threshold

    def accepted(self, entropies: Tensor) -> Tensor:
        """Accepts the positions of lowest entropy while the sum of the entropies before them is within the bound."""
        values, order = entropies.sort(dim=-1, stable=True)
        before = values.cumsum(-1) - values
        within = (before <= self.entropy_bound) & values.isfinite()
        return torch.zeros_like(within).scatter(-1, order, within)

    def finished(self, entropies: Tensor, best: Tensor, state: State) -> Tensor:
        """Finishes a block of low mean entropy whose most probable tokens are the same as in the step before."""
        canvas = entropies.isfinite()
        mean = entropies.masked_fill(~canvas, 0.0).sum(-1) / canvas.sum(-1)
        same = ((state.previous == best) | ~canvas).all(-1)
        return same & (mean < self.confidence_threshold)
