"""Selectors, random trajectories for them, and what they choose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from support.seeds import seeded
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.selectors.entropy_bound import EntropyBound
from dlmrl_kit.selectors.entropy_coverage import EntropyCoverage
from dlmrl_kit.selectors.entropy_importance import EntropyImportance
from dlmrl_kit.selectors.k_steps import FirstK, LastK, UniformSteps
from dlmrl_kit.selectors.random_steps import RandomSteps
from dlmrl_kit.selectors.top_k import EntropyTopK

STEP, WEIGHT = ("selected", "step"), ("selected", "weight")
VALID, ENTROPY, COMMITTED = ("step", "valid"), ("step", "entropy"), ("step", "num_committed")
SUBSETS: dict[str, Callable[[int], Selector]] = {
    "EntropyTopK": EntropyTopK,
    "EntropyCoverage": lambda k: EntropyCoverage(1 / k),
    "EntropyCoverage max_steps": lambda k: EntropyCoverage(0.9, max_steps=k),
    "EntropyBound": lambda k: EntropyBound(0.5 * k),
    "UniformSteps": UniformSteps,
    "FirstK": FirstK,
    "LastK": LastK,
    "AllSteps": lambda k: AllSteps(),
}
RANDOM: dict[str, Callable[[int], Selector]] = {"RandomSteps": RandomSteps, "EntropyImportance": EntropyImportance}
EVERY = SUBSETS | RANDOM
subsets = pytest.mark.parametrize("make", SUBSETS.values(), ids=SUBSETS)
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
fast = settings(max_examples=60, deadline=None)


def trajectory(rows: list[list[float]], spare: int = 0, dtype: torch.dtype = torch.float32) -> TensorDict:
    """A batch whose rows have these entropies; what lies past the end of a row is NaN and 99 committed positions."""
    steps = max(len(row) for row in rows) + spare
    entropy = torch.full((len(rows), steps), torch.nan, dtype=dtype)
    committed = torch.full((len(rows), steps), 99)
    for i, row in enumerate(rows):
        entropy[i, : len(row)] = torch.tensor(row, dtype=dtype)
        committed[i, : len(row)] = torch.arange(len(row)) * 7 % 3 + 1
    valid = torch.tensor([[t < len(row) for t in range(steps)] for row in rows])
    step = {"valid": valid, "entropy": entropy, "num_committed": committed}
    return TensorDict({"step": step, "reward": torch.arange(len(rows)) / 4}, [len(rows)])


quarters = st.integers(0, 5).map(lambda i: i / 4)  # few values, so that ties happen
rows_of = st.lists(st.lists(quarters, min_size=1, max_size=7), min_size=1, max_size=4)
batches = st.builds(trajectory, rows_of, st.integers(0, 2))
budgets = st.integers(1, 9)


def run(selector: Selector, data: TensorDict, seed: int = 0) -> TensorDict:
    return selector(seeded(data, seed))


def chosen(result: TensorDict) -> list[list[int]]:
    """Steps of nonzero weight of each row."""
    pairs = zip(result[STEP].tolist(), result[WEIGHT].tolist(), strict=True)
    return [[s for s, w in zip(step, weight, strict=True) if w != 0] for step, weight in pairs]


def lengths(data: TensorDict) -> list[int]:
    return data[VALID].sum(-1).tolist()


def top(values: list[float], count: int) -> list[int]:
    """The steps of the ``count`` largest values, the earlier first among equals, in order of time."""
    return sorted(sorted(range(len(values)), key=lambda t: (-values[t], t))[:count])


floats = st.lists(st.lists(st.floats(0, 3, width=32), min_size=1, max_size=8), min_size=1, max_size=3)


class Noise:
    """Stands in for ``uniforms``: serves a prepared tensor."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __call__(self, seed: Tensor, *shape: int, purpose: str) -> Tensor:
        assert (len(seed), *shape) == tuple(self.values.shape)
        return self.values


def weighted_sums(result: TensorDict, values: Tensor) -> Tensor:
    """sum_k weight_k * x_{step_k} for x [T]."""
    return (result[WEIGHT].double() * values[result[STEP]]).sum(-1)
