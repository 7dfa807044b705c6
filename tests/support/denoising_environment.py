"""The environment with a task of shares, its actions and its steps."""

from __future__ import annotations

from typing import Any

import torch

from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.rollout.environment import DenoisingEnv
from dlmrl_kit.tasks.base import Example, Task

WHOLE: dict[str, Any] = {"break_when_any_done": False, "break_when_all_done": True}
QUIET: dict[str, Any] = {"auto_register_policy_transforms": False}
LENGTH = 4


class Share(Task):
    """Reward: the share of "a" among the completion's positions. Prompts of 1 to 3 characters."""

    def __init__(self, size: int = 5, length: int = LENGTH) -> None:
        super().__init__(size, size, size)
        self.length = length

    def candidate(self, number: int) -> Example:
        return Example("abcdefgh"[number % 8] * (1 + number % 3) + "abcdefgh"[number // 8 % 8], "a" * self.length)

    def score(self, completion: str, example: Example) -> dict[str, float]:
        share = completion.count("a") / self.length
        return {"reward": share, "solved": float(share == 1)}


def build(policy: TransformersPolicy, **options: Any) -> DenoisingEnv:
    return DenoisingEnv(Share(), policy, LENGTH, **{"batch_size": 6, **options})


def letters(policy: TransformersPolicy, text: str) -> list[int]:
    return policy.tokenizer(text, add_special_tokens=False)["input_ids"]


def step(env: DenoisingEnv, state: Any, action: Any) -> Any:
    return env.step(state.clone().set("action", torch.as_tensor(action)))
