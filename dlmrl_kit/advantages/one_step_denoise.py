r"""One-step denoise advantage (EGSPO-SA, arXiv 2603.12554): the reward against what the state alone already promised.

V_{i,t} is the reward of the completion got by greedily filling every masked position of x_t at once, a function of the
state. The return of step t and its advantage are

    G_{i,t} = ((1 + lambda_t) R_i - lambda_t V_{i,t}) / (1 + lambda_t),    A_{i,t} = G_{i,t} - baseline_t(group)

The baseline compares the *same time step* of the group's members (the released code compares entropy ranks, which mixes
time steps). For a member that did not select t, V is that of its selected step nearest in time (ties: the earlier); for
one that selected nothing, V = R. So every baseline runs over the whole group; it is a function of the other samples
alone, apart from G_{i,t} itself where the baseline includes that; and it is exactly the same-time-step baseline where
all members selected t.
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.base import Advantage, GroupAdvantage
from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.core.keys import (
    GROUP,
    REWARD,
    SELECTED_ADVANTAGE,
    SELECTED_REWARD,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_VALID,
)
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.schedules.base import Schedule
from dlmrl_kit.schedules.curves import Constant


@register(
    "advantage",
    paper="arXiv 2603.12554",
    unbiased=True,
    scale="1 - 1/G",
    under="normalise=True and baseline GroupMean; scale 1 with LeaveOneOut; 1 + lambda times that with normalise=False",
)
class OneStepDenoise(Advantage):
    """Credits a step with the reward beyond the one-step greedy completion of its state, group-centred per time step.

    Args:
        lam: lambda, at least 0: a number, or a schedule over the T steps of a row that does not end early (where a row
            ends depends on its actions, so a lambda that knew it would be biased). 0 is the plain group advantage.
        normalise: divide by 1 + lambda, which keeps the scale of the gradient.
        baseline: a group advantage, applied to the returns of each time step; None means ``GroupMean()``.

    Reads ``reward`` [B], ``group`` int64 [B], ``("step", "valid")`` bool [B, T], ``("selected", "step")`` int64 [B, K],
    ``("selected", "weight")`` [B, K], ``("selected", "reward")`` [B, K]: V. Writes ``("selected", "advantage")``
    [B, K], 0 where the weight is; such entries influence nothing.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self, lam: float | Schedule = 0.5, normalise: bool = True, baseline: GroupAdvantage | None = None
    ) -> None:
        super().__init__()
        scheduled = isinstance(lam, Schedule)
        check(scheduled or isinstance(lam, (int, float)), self, "lam", lam, "a number or a schedule")
        least = lam(torch.linspace(0, 1, 101)).min() if isinstance(lam, Schedule) else lam
        check(bool(0 <= least < math.inf), self, "lam", lam, "at least 0 at every step")
        check(baseline is None or isinstance(baseline, GroupAdvantage), self, "baseline", baseline, "a group advantage")
        self.lam = lam
        self.normalise = normalise
        self.baseline = baseline if baseline is not None else GroupMean()
        self.in_keys = [
            REWARD,
            GROUP,
            STEP_VALID,
            SELECTED_STEP,
            SELECTED_WEIGHT,
            SELECTED_REWARD,
        ]
        self.out_keys = [SELECTED_ADVANTAGE]

    @property
    def factors(self) -> dict[str, float]:
        """1 + lambda where returns are not divided by it, for a lambda that is the same at every step."""
        lam = self.lam.value if isinstance(self.lam, Constant) else self.lam
        return {} if self.normalise or isinstance(lam, Schedule) else {"1 + lambda": 1 + float(lam)}

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Computes the return of every time step, compares it within the group, and writes that of the chosen steps."""
        reward, step, used = tensordict[REWARD], tensordict[SELECTED_STEP], tensordict[SELECTED_WEIGHT] > 0
        num_steps = tensordict[STEP_VALID].shape[1]
        value = nearest_value(tensordict[SELECTED_REWARD].double(), step, used, reward.double(), num_steps)
        time = torch.arange(num_steps, device=reward.device, dtype=torch.float64)
        lam = self.lam(time / max(num_steps - 1, 1)) if isinstance(self.lam, Schedule) else self.lam
        returns = (1 + lam) * reward.double()[:, None] - lam * value
        if self.normalise:
            returns = returns / (1 + lam)
        advantage = self.baseline.estimate(returns, tensordict[GROUP]).gather(1, step).to(reward.dtype)
        return tensordict.set(SELECTED_ADVANTAGE, torch.where(used, advantage, 0.0))


def nearest_value(value: Tensor, step: Tensor, used: Tensor, fallback: Tensor, num_steps: int) -> Tensor:
    """Returns the value of the used step nearest in time to each step of a row; the earlier of two equally near ones.

    Args:
        value: [B, K], at the steps ``step``.
        step: int64 [B, K], in any order.
        used: bool [B, K], which entries count.
        fallback: [B], the value of a row where none does.
        num_steps: T.

    Returns:
        [B, T].
    """
    nowhere = num_steps  # a spare column for entries that do not count, and for rows without others
    column = step.masked_fill(~used, nowhere)
    dense = fallback[:, None].repeat(1, num_steps + 1)
    dense = dense.scatter(1, column, torch.where(used, value, fallback[:, None]))
    here = torch.zeros_like(dense, dtype=torch.bool).scatter(1, column, used)[:, :num_steps]
    time = torch.arange(num_steps, device=step.device).expand_as(here)
    far = 2 * num_steps
    before = time.masked_fill(~here, -far).cummax(1).values
    after = time.masked_fill(~here, far + num_steps).flip(1).cummin(1).values.flip(1)
    nearest = torch.where(time - before <= after - time, before, after)
    return dense.gather(1, nearest.clamp(0, nowhere))
