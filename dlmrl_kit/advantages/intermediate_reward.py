r"""Intermediate rewards (MDPO, arXiv 2508.13148): what a step's draft gained, and what the drafts after it are worth.

r_t is the reward of the draft of step t: x_t with every masked position filled with the step's own draws. With r_t = R
for steps behind the end of a row, and T steps,

    G_t = (r_t - r_{t-1}) + mean of r_{t+1} .. r_{T-1},    r_{-1} = 0,    G_{T-1} = (r_{T-1} - r_{T-2}) + r_{T-1}

and the advantage of step t compares G_t with the same step of the group's other members, by default standardised. The
released code adds 1 to G_t, which the comparison takes out again.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.base import Advantage, GroupAdvantage
from dlmrl_kit.advantages.group_z_score import GroupZScore
from dlmrl_kit.core.keys import GROUP, REWARD, STEP_ADVANTAGE, STEP_REWARD, STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check


@register(
    "advantage",
    paper="arXiv 2508.13148",
    unbiased=False,
    under="the rewards of drafts stand for the reward of the completion",
)
class IntermediateReward(Advantage):
    """Credits every step with the gain in reward of its draft and the mean reward of the drafts after it.

    Args:
        baseline: a group advantage, applied to the returns of each time step; None means ``GroupZScore()``.

    Reads ``reward`` [B], ``group`` int64 [B], ``("step", "valid")`` bool [B, T] and ``("step", "reward")`` [B, T], the
    rewards of the drafts. Writes ``("step", "advantage")`` [B, T], 0 past the end of a row, which selectors may read;
    ``("selected", "advantage")`` then holds those of the chosen steps.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, baseline: GroupAdvantage | None = None) -> None:
        super().__init__()
        check(baseline is None or isinstance(baseline, GroupAdvantage), self, "baseline", baseline, "a group advantage")
        self.baseline = baseline if baseline is not None else GroupZScore()
        self.in_keys = [REWARD, GROUP, STEP_VALID, STEP_REWARD]
        self.out_keys = [STEP_ADVANTAGE]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes the return of every step, and compares it within the group."""
        valid, reward = tensordict[STEP_VALID], tensordict[REWARD]
        rewards = torch.where(valid, tensordict[STEP_REWARD], reward[:, None]).double()
        advantage = self.baseline.estimate(step_returns(rewards), tensordict[GROUP]).to(reward.dtype)
        return tensordict.set(STEP_ADVANTAGE, torch.where(valid, advantage, 0.0))


def step_returns(rewards: Tensor) -> Tensor:
    """Returns G_t of every step, float64 [B, T], from the rewards of the drafts, float64 [B, T]."""
    gain = rewards.diff(dim=1, prepend=torch.zeros_like(rewards[:, :1]))
    from_here = rewards.flip(1).cumsum(1).flip(1)
    later = torch.arange(rewards.shape[1] - 1, 0, -1, device=rewards.device)
    return gain + torch.cat([from_here[:, 1:] / later, rewards[:, -1:]], dim=1)
