"""States and logits of a trajectory by loops, and random steps with rewards of drafts."""

from __future__ import annotations

import math

import torch
from support.policies import tiny_policy
from tensordict import TensorDict
from torch import Tensor

LENGTH = 6
POLICY = tiny_policy(characters="abcd", initializer_range=0.25).to(torch.float64)


def state(data: TensorDict, row: int, t: int) -> list[int]:
    """x_t of a row."""
    commit, final = data["commit_step"][row].tolist(), data["completion_ids"][row].tolist()
    return [POLICY.mask_id if c >= t else v for c, v in zip(commit, final, strict=True)]


def logits_of(data: TensorDict, row: int, t: int) -> Tensor:
    """The model's logits at all positions of x_t: float64 [L, V]."""
    ids = torch.cat([data["prompt_ids"][row][data["prompt_mask"][row]], torch.tensor(state(data, row, t))])[None]
    with torch.no_grad():
        return POLICY.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -LENGTH:]


def step_data(seed: int = 0, rows: int = 9, steps: int = 5) -> TensorDict:
    """Rewards of steps in float64, rows that end early, NaN past their end; three groups of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    number = torch.randint(1, steps + 1, (rows,), generator=generator)
    number[0] = steps
    valid = torch.arange(steps) < number[:, None]
    rewards = torch.randint(0, 5, (rows, steps), generator=generator).double() / 4
    return TensorDict(
        {
            "reward": torch.randint(0, 5, (rows,), generator=generator).double() / 4,
            "group": torch.tensor([5, 2, 5, 5, 2, 7, 5, 2, 7])[:rows],
            ("step", "valid"): valid,
            ("step", "reward"): rewards.masked_fill(~valid, math.nan),
        },
        [rows],
    )
