"""The interface of demonstrators, which write completions for examples of a task."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor

from dlmrl_kit.core.dependencies import Dependent
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.promises import Given, promises, shown
from dlmrl_kit.core.validate import clipped
from dlmrl_kit.tasks.base import Example


def _completions(result: object, given: Given) -> str:
    wanted = "it should be a list of texts with their probabilities, [(text, probability), ...]"
    if not isinstance(result, list) or not result:
        return f"{shown(result)}; {wanted}"
    for entry in result:
        pair = isinstance(entry, tuple) and len(entry) == 2
        if not pair or not isinstance(entry[0], str) or not isinstance(entry[1], float | int):
            return f"{clipped(repr(entry))} in its list; {wanted}"
    probabilities = [probability for _, probability in result]
    if not all(p >= 0 for p in probabilities) or not math.isclose(math.fsum(probabilities), 1, abs_tol=1e-4):
        return f"probabilities {clipped(repr(probabilities))}; they should be at least 0 and sum to 1"
    return ""


class Demonstrator(Dependent, ABC):
    """Writes completions of examples, good or bad, for a denoiser to be pre-trained on."""

    @abstractmethod
    @promises(_completions)
    def demonstrations(self, example: Example) -> list[tuple[str, float]]:
        """Returns possible completions of an example with their probabilities, which sum to 1.

        There must be equally many for every example of a task.
        """


def field_of(example: Example, name: str) -> str:
    """Returns a text from an example's ``meta``.

    Raises:
        RecipeError: there is no text of this name.
    """
    text = example.meta.get(name)
    if not isinstance(text, str):
        known = ", ".join(repr(key) for key in example.meta) or "nothing"
        raise RecipeError(f"an example has no text {name!r} (prompt {example.prompt!r}); it has {known}")
    return text


def encode_completions(policy: Policy, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Encodes texts as completions of a policy, filled with its ``filler_id`` behind their end.

    Returns:
        int64 [N, length] on the policy's device, and the number of tokens of each text, int64 [N].

    Raises:
        RecipeError: a text of more than ``length`` tokens, one that ends before its end, or one that
            ``Vocabulary.text_tokens`` refuses, such as one with characters that are not in the vocabulary.
    """
    try:
        encoded = policy.text_tokens(texts)
    except RecipeError as error:
        raise RecipeError(f"a demonstration cannot be written: {error}") from error
    tokens = [len(row) for row in encoded]
    if max(tokens) > length:
        raise RecipeError(
            f"a demonstration has {max(tokens)} tokens, more than the sampler's completion_length = {length}"
        )
    ends = {*policy.eos_ids}
    for text, row in zip(texts, encoded, strict=True):
        if any(token in ends and behind not in ends for token, behind in pairwise(row)):
            raise RecipeError(f"the demonstration {text!r} has an end of text in its middle")
    padded = torch.tensor([row + [policy.filler_id] * (length - len(row)) for row in encoded], device=policy.device)
    return padded, torch.tensor(tokens, device=policy.device)
