"""Batches of prompts: which puzzles an update trains on, encoded and left-padded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tensordict import TensorDict

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK
from dlmrl_kit.core.seeding import generator
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.tasks.base import Prompt


def encode(policy: Policy, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
    """``prompt_ids`` int64 [N, P] and ``prompt_mask`` bool [N, P], left-padded, on the policy's device.

    Raises:
        RecipeError: a conversation for a tokenizer without a chat template, or one that the template refuses.
    """
    rows = [prompt_tokens(policy, prompt) for prompt in prompts]
    width = max(len(row) for row in rows)
    ids = torch.tensor([[policy.pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return {PROMPT_IDS: ids.to(policy.device), PROMPT_MASK: mask.to(policy.device)}


def prompt_tokens(policy: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, as the policy's family wants it.

    A conversation, and any prompt of a policy with ``chat_template``, goes through the tokenizer's chat template and
    ends where the assistant's answer begins; other texts follow the policy's ``prefix_ids``.

    Raises:
        RecipeError: as ``encode``.
    """
    tokenizer = policy.tokenizer
    conversation = not isinstance(prompt, str)
    if not conversation and not getattr(policy, "chat_template", False):
        ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return [*getattr(policy, "prefix_ids", ()), *ids]
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError("the prompt is a conversation, but the policy's tokenizer has no chat template")
    messages = prompt if conversation else [{"role": "user", "content": prompt}]
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # templates raise whatever jinja, or they themselves, like
        raise RecipeError(f"the tokenizer's chat template refuses a conversation: {error}") from error
    formatted: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return formatted


def prompt_batch(task: Any, split: str, indices: list[int], policy: Policy, group_size: int = 1) -> TensorDict:
    """Prompts repeated ``group_size`` times: TensorDict [len(indices) * group_size] with the prompt keys.

    Raises:
        RecipeError: the task has fewer distinct puzzles than its split is to hold.
    """
    encoded = encode(policy, [example.prompt for example in puzzles(task, split, indices)])
    group = torch.arange(len(indices), device=policy.device)
    batch = TensorDict(
        {**encoded, "group": group, "example": torch.tensor(indices, device=policy.device)}, [len(indices)]
    )
    return batch[group.repeat_interleave(group_size)]


def puzzles(task: Any, split: str, indices: Iterable[int]) -> list[Any]:
    """Examples of a task.

    Raises:
        RecipeError: the task has fewer distinct puzzles than its split is to hold.
    """
    try:
        return [task.example(split, index) for index in indices]
    except ValueError as error:
        raise RecipeError(str(error)) from error


def encode_completions(policy: Policy, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
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
    filler = policy.eos_id if policy.eos_id is not None else policy.pad_id
    padded = torch.tensor([row + [filler] * (length - len(row)) for row in encoded], device=policy.device)
    return padded, torch.tensor(tokens, device=policy.device)


def require_puzzles(task: Any, *splits: str) -> None:
    """Refuses a task without puzzles in one of ``splits``.

    Raises:
        RecipeError: an empty split.
    """
    for split in splits:
        if task.size(split) < 1:
            raise RecipeError(f"{type(task).__name__}: the {split} split is empty; set num_{split}")


def training_indices(size: int, per_update: int, update: int, seed: int) -> list[int]:
    """Puzzles of one update: passes over 0 .. size-1 in a new random order each, cut into pieces of ``per_update``.

    Depends on its arguments alone, so a resumed run sees the same data in the same order.
    """
    first = update * per_update
    orders: dict[int, list[int]] = {}
    indices = []
    for position in range(first, first + per_update):
        epoch, offset = divmod(position, size)
        if epoch not in orders:
            orders[epoch] = torch.randperm(size, generator=generator("cpu", seed, "data", epoch)).tolist()
        indices.append(orders[epoch][offset])
    return indices
