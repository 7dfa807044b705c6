"""Advantages of all steps from the rewards of their drafts, against a loop."""

from __future__ import annotations

import statistics

import pytest
import torch
from support.drafts import step_data
from support.policies import tiny_policy
from support.rollouts import prompts, roll_out

from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.advantages.group_z_score import GroupZScore
from dlmrl_kit.advantages.intermediate_reward import IntermediateReward
from dlmrl_kit.samplers.low_confidence import LowConfidence

LENGTH = 6
DRAFT = ("step", "draft_ids")
POLICY = tiny_policy(characters="abcd", initializer_range=0.25).to(torch.float64)


def slow_returns(rewards: list[float], steps: int, final: float) -> list[float]:
    """MDPO's formula: r_t - r_{t-1} (r_{-1} = 0) plus the mean of the later rewards, or r_{T-1} where there is none."""
    r = rewards + [final] * (steps - len(rewards))
    found = []
    for t in range(steps):
        later = [r[s] for s in range(t + 1, steps)] or [r[steps - 1]]
        found.append(r[t] - (r[t - 1] if t > 0 else 0.0) + sum(later) / len(later))
    return found


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_intermediate_reward_equals_the_loop(correction: int, seed: int) -> None:
    data = step_data(seed)
    valid, steps = data["step", "valid"], data["step", "valid"].shape[1]
    returns = [
        slow_returns(data["step", "reward"][b][valid[b]].tolist(), steps, data["reward"][b].item()) for b in range(9)
    ]
    found = IntermediateReward(GroupZScore(correction=correction))(data)["step", "advantage"]
    assert found.dtype == torch.float64
    for b in range(9):
        members = [c for c in range(9) if data["group"][c] == data["group"][b]]
        for t in range(steps):
            own = [returns[c][t] for c in members]
            std = statistics.stdev(own) if correction else statistics.pstdev(own)
            # the released code adds 1 to every return: no difference
            wanted = (returns[b][t] + 1 - (statistics.fmean(own) + 1)) / (std + 1e-4) if valid[b, t] else 0.0
            assert found[b, t].item() == pytest.approx(wanted, abs=1e-9)


def test_the_baseline_may_be_another() -> None:
    data = step_data()
    found = IntermediateReward(GroupMean())(data)["step", "advantage"]
    steps = data["step", "valid"].shape[1]
    first = [
        slow_returns(data["step", "reward"][b][data["step", "valid"][b]].tolist(), steps, data["reward"][b].item())[0]
        for b in (5, 8)
    ]
    assert found[5, 0].item() == pytest.approx((first[0] - first[1]) / 2)
    with pytest.raises(ValueError, match=r"IntermediateReward\.baseline must be a group advantage, got 3"):
        IntermediateReward(3)  # type: ignore[arg-type]


def test_the_last_draft_is_the_completion() -> None:
    """So the last step's reward is the final one, as the formula takes it to be past the end of a row."""
    sampler = LowConfidence(LENGTH, 2, stop_at_eos=False)
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=8))
    assert torch.equal(data[DRAFT][:, -1].long(), data["completion_ids"])
