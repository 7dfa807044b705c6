"""From token ids to rewards: completions are decoded once, cut at the first end-of-text, and scored by the task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlmrl_kit.policies.base import Policy
from dlmrl_kit.tasks.base import score_many


def completion_texts(policy: Policy, ids: Tensor) -> list[str]:
    """Text of completions int64 [N, L], up to the first end-of-text token, special tokens left out."""
    if len(ids) == 0:  # tokenizers cannot decode an empty batch
        return []
    if policy.eos_id is not None:
        after = (ids == policy.eos_id).long().cumsum(-1) > 0
        ids = ids.masked_fill(after, policy.eos_id)
    return policy.tokenizer.batch_decode(ids.tolist(), skip_special_tokens=True)


class Scorer:
    """Scores completions of one split of a task; equal completions of one puzzle are scored once until ``forget``.

    Args:
        task: a ``dlmrl_kit.tasks.base.Task``.
        split: its split.
        policy: for its tokenizer and end-of-text id.
    """

    def __init__(self, task: Any, split: str, policy: Policy) -> None:
        self.task = task
        self.split = split
        self.policy = policy
        self._found: dict[tuple[int, str], dict[str, float]] = {}

    def components(self, ids: Tensor, example: Tensor) -> list[dict[str, float]]:
        """Named reward components of completions int64 [N, L] for example indices int64 [N]."""
        keys = list(zip(example.tolist(), completion_texts(self.policy, ids), strict=True))
        new = [key for key in dict.fromkeys(keys) if key not in self._found]
        examples = [self.task.example(self.split, index) for index, _ in new]
        self._found.update(zip(new, score_many(self.task, [text for _, text in new], examples), strict=True))
        return [self._found[key] for key in keys]

    def examples(self, example: Tensor) -> list[Any]:
        """The puzzles of example indices int64 [N]."""
        return [self.task.example(self.split, index) for index in example.tolist()]

    def forget(self) -> None:
        """Drops the scores kept so far; called between updates."""
        self._found.clear()

    def __call__(self, ids: Tensor, example: Tensor) -> Tensor:
        """Total rewards float32 [N]."""
        rewards = [score["reward"] for score in self.components(ids, example)]
        return torch.tensor(rewards, dtype=torch.float32, device=ids.device)
