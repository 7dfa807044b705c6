"""Rewards of the drafts of every step."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.rollout.rewards import StepReward

DRAFT = ("step", "draft_ids")


def test_step_rewards_score_the_drafts() -> None:
    generator = torch.Generator().manual_seed(0)
    drafts = torch.randint(0, 9, (5, 4, 3), generator=generator).int()
    valid = torch.arange(4) < torch.tensor([4, 1, 3, 2, 4])[:, None]
    example = torch.tensor([3, 1, 4, 1, 5])
    data = TensorDict({DRAFT: drafts, ("step", "valid"): valid, "example": example}, [5])
    asked: list[int] = []

    def score(ids: Tensor, index: Tensor) -> Tensor:
        asked.append(len(ids))
        assert ids.dtype == torch.int64
        return ids.double() @ torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64) + 1000 * index

    found = StepReward()(data, score=score)["step", "reward"]
    assert asked == [int(valid.sum())]
    for b in range(5):
        for t in range(4):
            a, b_, c = drafts[b, t].tolist()
            wanted = a + 10 * b_ + 100 * c + 1000 * example[b].item() if valid[b, t] else 0
            assert found[b, t].item() == wanted
