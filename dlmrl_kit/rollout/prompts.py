"""Batches of prompts: which examples an update trains on, encoded and left-padded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tensordict import TensorDict

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK
from dlmrl_kit.core.policy import Vocabulary
from dlmrl_kit.core.seeding import generator
from dlmrl_kit.tasks.base import BaseTask, Example, Prompt


def encode(policy: Vocabulary, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
    """``prompt_ids`` int64 [N, P] and ``prompt_mask`` bool [N, P], left-padded, on the policy's device.

    Raises:
        RecipeError: a conversation for a tokenizer without a chat template, or one that the template refuses.
    """
    rows = [prompt_tokens(policy, prompt) for prompt in prompts]
    width = max(len(row) for row in rows)
    ids = torch.tensor([[policy.pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return {PROMPT_IDS: ids.to(policy.device), PROMPT_MASK: mask.to(policy.device)}


def prompt_tokens(policy: Vocabulary, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, as the policy's family wants it.

    A conversation, and any prompt of a policy with ``chat_template``, goes through the tokenizer's chat template and
    ends where the assistant's answer begins; other texts follow the policy's ``prefix_ids``.

    Raises:
        RecipeError: as ``encode``.
    """
    tokenizer = policy.tokenizer
    conversation = not isinstance(prompt, str)
    if not conversation and not policy.chat_template:
        ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return [*policy.prefix_ids, *ids]
    if not tokenizer.chat_template:
        raise RecipeError("the prompt is a conversation, but the policy's tokenizer has no chat template")
    messages = prompt if conversation else [{"role": "user", "content": prompt}]
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # templates raise whatever jinja, or they themselves, like
        raise RecipeError(f"the tokenizer's chat template refuses a conversation: {error}") from error
    formatted: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return formatted


def prompt_batch(task: BaseTask, split: str, indices: list[int], policy: Vocabulary, group_size: int = 1) -> TensorDict:
    """Prompts repeated ``group_size`` times: TensorDict [len(indices) * group_size] with the prompt keys.

    Raises:
        RecipeError: the task has fewer distinct examples than its split is to hold.
    """
    encoded = encode(policy, [example.prompt for example in examples(task, split, indices)])
    group = torch.arange(len(indices), device=policy.device)
    batch = TensorDict(
        {**encoded, "group": group, "example": torch.tensor(indices, device=policy.device)}, [len(indices)]
    )
    return batch[group.repeat_interleave(group_size)]


def examples(task: BaseTask, split: str, indices: Iterable[int]) -> list[Example]:
    """Examples of a task.

    Raises:
        RecipeError: the task has fewer distinct examples than its split is to hold.
    """
    try:
        return [task.example(split, index) for index in indices]
    except ValueError as error:
        raise RecipeError(str(error)) from error


def require_examples(task: BaseTask, *splits: str) -> None:
    """Refuses a task without examples in one of ``splits``.

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
