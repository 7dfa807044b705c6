"""Batches of prompts: which puzzles an update trains on, encoded and left-padded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tensordict import TensorDict

from dlmrl_kit.errors import RecipeError
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.seeding import generator


def encode(policy: Policy, texts: list[str]) -> dict[str, torch.Tensor]:
    """``prompt_ids`` int64 [N, P] and ``prompt_mask`` bool [N, P], left-padded, on the policy's device."""
    rows = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = max(len(row) for row in rows)
    ids = torch.tensor([[policy.pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return {"prompt_ids": ids.to(policy.device), "prompt_mask": mask.to(policy.device)}


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
