"""The base class of demonstrators: completions of a puzzle with the probability of each."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.tasks.base import Example


class Demonstrator(ABC):
    """Writes demonstrations, good or bad, for puzzles of a task."""

    @abstractmethod
    def demonstrations(self, example: Example) -> list[tuple[str, float]]:
        """Possible completions of a puzzle and their probabilities, which sum to 1; as many for every puzzle."""


def field_of(example: Example, name: str) -> str:
    """A text among what the task tells about an example (``Example.meta``).

    Raises:
        RecipeError: there is none of this name.
    """
    text = example.meta.get(name)
    if not isinstance(text, str):
        known = ", ".join(repr(key) for key in example.meta) or "nothing"
        raise RecipeError(f"an example has no text {name!r} (prompt {example.prompt!r}); it has {known}")
    return text


def encode_completions(policy: Policy, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Completions as a policy would write them: end-of-text tokens fill what is left (padding if there are none).

    Returns:
        int64 [N, length] on the policy's device, and the number of tokens of each text, int64 [N].

    Raises:
        RecipeError: a text of more than ``length`` tokens, or one with characters that are not in the vocabulary.
    """
    encoded = policy.tokenizer(texts, add_special_tokens=False)["input_ids"]
    tokens = [len(row) for row in encoded]
    if max(tokens) > length:
        raise RecipeError(
            f"a demonstration has {max(tokens)} tokens, more than the sampler's completion_length = {length}"
        )
    unknown = policy.tokenizer.unk_token_id
    if unknown is not None and (foreign := [text for text, row in zip(texts, encoded, strict=True) if unknown in row]):
        raise RecipeError(f"the policy's tokenizer has no tokens for some of the demonstration {foreign[0]!r}")
    padded = torch.tensor([row + [policy.filler_id] * (length - len(row)) for row in encoded], device=policy.device)
    return padded, torch.tensor(tokens, device=policy.device)
