"""A small denoiser with random weights."""

from __future__ import annotations

from dlmrl_kit import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.policies.transformers_policy import TransformersPolicy


@register("policy")
class AcmePolicy(PolicySource):
    """A bidirectional Llama over single characters, given by one number.

    Args:
        size: 1 for 16 hidden units and one layer; each further one adds as much.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, size: int = 1) -> None:
        check(1 <= size <= 64, self, "size", size, "from 1 to 64")
        self.size = size

    def load(self) -> TransformersPolicy:
        """Builds the model (weights from torch's global generator) and its tokenizer, on the CPU."""
        return CharacterLlama(hidden_size=16 * self.size, num_layers=self.size, num_heads=self.size).load()
