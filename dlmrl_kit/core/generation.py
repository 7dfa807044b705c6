"""From prompts to texts, with a policy and whatever decodes from it; no task, no reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import COMPLETION_IDS, SEED, Key
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.prompt import Prompt
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.core.trajectory import cut, length_order, restored

BATCH_SIZE = 64
"""Completions that are decoded at once."""


class Decoder(ABC):
    """Interface of what completes prompts: every sampler does."""

    completion_length: int
    """L, positions of a completion."""

    @abstractmethod
    def decode(self, prompt: TensorDictBase, *, policy: Policy) -> dict[Key, Tensor]:
        """Completes each row by itself; returns ``completion_ids`` int64 [B, L] among others."""


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Returns a list of prompts, given one or several."""
    if isinstance(prompts, str):
        return [prompts]
    messages = [part for part in prompts if isinstance(part, dict)]
    return [messages] if messages else [part for part in prompts if not isinstance(part, dict)]


def prompt_rows(
    policy: Policy, prompts: Sequence[Prompt], completion_length: int, seed: int = 0, copies: int = 1
) -> TensorDict:
    """Encodes prompts, ``copies`` rows of each, with a seed for each row.

    Args:
        policy: its tokenizer encodes them.
        prompts: texts, or conversations.
        completion_length: positions that a completion takes.
        seed: of the noise.
        copies: rows of each prompt, next to each other.

    Returns:
        TensorDict [len(prompts) * copies] with ``prompt_ids``, ``prompt_mask`` and ``seed``, on the policy's device.

    Raises:
        RecipeError: as ``Vocabulary.prompt_tokens``.
    """
    rows = []
    for number, prompt in enumerate(prompts, 1):
        try:
            rows += [policy.prompt_tokens(prompt, completion_length)] * copies
        except RecipeError as error:
            raise RecipeError(f"prompt {number}: {error}" if len(prompts) > 1 else str(error)) from error
    seeds = sample_seeds(len(rows), policy.device, seed, "generate")
    return TensorDict({**policy.padded(rows), SEED: seeds}, [len(rows)])


def generate(
    policy: Policy,
    prompts: Sequence[Prompt],
    sampler: Decoder,
    *,
    seed: int = 0,
    samples: int = 1,
    batch_size: int = BATCH_SIZE,
) -> list[list[str]]:
    """Completes prompts.

    Args:
        policy: the denoiser.
        prompts: texts, or conversations.
        sampler: decodes.
        seed: of the noise; the same seed gives the same texts, in batches of any size.
        samples: completions of each prompt.
        batch_size: completions decoded at once.

    Returns:
        For each prompt its completions, up to their end, without special tokens.

    Raises:
        RecipeError: a prompt that the policy cannot read; as ``Vocabulary.prompt_tokens``.
    """
    if not prompts:
        return []
    batch = prompt_rows(policy, prompts, sampler.completion_length, seed, samples)
    rows, pieces = [], []
    for index, piece in cut(batch, batch_size, length_order(batch, batch_size)):
        rows.append(index)
        pieces.append(sampler.decode(piece, policy=policy)[COMPLETION_IDS])
    texts = policy.completion_texts(restored(pieces, rows))
    return [texts[first : first + samples] for first in range(0, len(texts), samples)]
