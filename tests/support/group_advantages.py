"""Group advantages with the loops they must equal, and random samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from hypothesis import strategies as st
from tensordict import TensorDict

from dlmrl_kit.advantages.base import GroupAdvantage
from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.advantages.group_softmax import GroupSoftmax
from dlmrl_kit.advantages.group_z_score import GroupZScore
from dlmrl_kit.advantages.leave_one_out import LeaveOneOut


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def slow_mean(own: float, others: list[float]) -> float:
    return own - mean([own, *others])


def slow_leave_one_out(own: float, others: list[float]) -> float:
    return own - (mean(others) if others else 0.0)


def slow_z_score(own: float, others: list[float]) -> float:
    group = [own, *others]
    std = mean([(r - mean(group)) ** 2 for r in group]) ** 0.5
    return (own - mean(group)) / (std + 1e-4)


def slow_z_score_without_eps(own: float, others: list[float]) -> float:
    """TraceRL's: population standard deviation, 0 where it is 0."""
    group = [own, *others]
    return 0.0 if len(set(group)) == 1 else (own - mean(group)) / statistics.pstdev(group)


def slow_sample_z_score(own: float, others: list[float]) -> float:
    """JustGRPO's: torch.std, which divides by G - 1, plus 1e-4."""
    group = [own, *others]
    return 0.0 if len(group) == 1 else (own - mean(group)) / (statistics.stdev(group) + 1e-4)


def slow_softmax(own: float, others: list[float]) -> float:
    """wd1's weights, of centred returns, times the size of the group."""
    group = [own, *others]
    up, down = ([math.exp(sign * (r - mean(group))) for r in group] for sign in (1, -1))
    return len(group) * (up[0] / math.fsum(up) - down[0] / math.fsum(down))


Slow = Callable[[float, list[float]], float]
ESTIMATORS: dict[str, tuple[Callable[[], GroupAdvantage], Slow]] = {
    "GroupMean": (GroupMean, slow_mean),
    "LeaveOneOut": (LeaveOneOut, slow_leave_one_out),
    "GroupZScore": (GroupZScore, slow_z_score),
    "GroupZScore(0)": (lambda: GroupZScore(0), slow_z_score_without_eps),
    "GroupZScore(correction=1)": (lambda: GroupZScore(correction=1), slow_sample_z_score),
    "GroupSoftmax": (GroupSoftmax, slow_softmax),
}
estimators = pytest.mark.parametrize(("make", "slow"), ESTIMATORS.values(), ids=list(ESTIMATORS))
baselines = pytest.mark.parametrize(("make", "slow"), [ESTIMATORS[name] for name in ("GroupMean", "LeaveOneOut")])


def slow_column(slow: Slow, returns: list[float], group: list[int]) -> list[float]:
    rows = range(len(returns))
    return [slow(returns[i], [returns[j] for j in rows if j != i and group[j] == group[i]]) for i in rows]


eighths = st.integers(-8, 8).map(lambda i: i / 8)
ids = st.sampled_from([-3, 0, 7, 10**12])
samples = st.lists(st.tuples(eighths, ids), min_size=1, max_size=9)


def unchanged(before: TensorDict, after: TensorDict) -> None:
    for key in before.keys(True, True):
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0, equal_nan=True)
