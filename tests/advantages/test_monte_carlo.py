"""Monte Carlo advantages: what is restarted, and how often."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from support.group_advantages import unchanged
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.monte_carlo import MonteCarlo

SELECTED, TOKEN = ("selected", "advantage"), ("token", "advantage")


class Restart:
    """A fake restart: the j-th of n rewards from x_t in row b is ``reward(b, t, j, n)``; remembers what was asked."""

    def __init__(self, reward: Callable[[int, int, int, int], float]) -> None:
        self.reward = reward
        self.calls: list[tuple[list[list[int]], int]] = []

    def __call__(self, tensordict: TensorDictBase, step: Tensor, n: int) -> Tensor:
        asked = step.tolist()
        self.calls.append((asked, n))
        rewards = [[[self.reward(b, t, j, n) for j in range(n)] for t in row] for b, row in enumerate(asked)]
        return torch.tensor(rewards, dtype=torch.float32)


def monte_carlo_data() -> TensorDict:
    """Row 0: 4 steps, chosen 0 and 3; row 1: 2 steps, chosen 1, one entry of padding."""
    step = {"valid": torch.arange(5) < torch.tensor([[4], [2]])}
    selected = {"step": torch.tensor([[0, 3], [1, 0]]), "weight": torch.tensor([[1.0, 0.5], [1.0, 0.0]])}
    return TensorDict({"step": step, "selected": selected, "reward": torch.zeros(2)}, [2])


@pytest.mark.parametrize(("n", "n_baseline"), [(1, 1), (3, 2), (2, 5)])
def test_monte_carlo(n: int, n_baseline: int) -> None:
    restart = Restart(lambda b, t, j, n: 100 * b + t**2 + j / n)
    data, component = monte_carlo_data(), MonteCarlo(n, n_baseline)
    before = data.clone()
    assert component(data, restart=restart) is data
    unchanged(before, data)
    assert restart.calls == [([[1, 4], [2, 2]], n), ([[0, 3], [1, 2]], n_baseline)]
    offset = (n - 1) / (2 * n) - (n_baseline - 1) / (2 * n_baseline)
    torch.testing.assert_close(data[SELECTED], torch.tensor([[1 + offset, 7 + offset], [3 + offset, 0.0]]))


def test_monte_carlo_without_baseline() -> None:
    restart = Restart(lambda b, t, j, n: 100 * b + t**2 + j)
    advantage = MonteCarlo(3, 0)(monte_carlo_data(), restart=restart)[SELECTED]
    assert len(restart.calls) == 1
    assert advantage.tolist() == [[2.0, 17.0], [105.0, 0.0]]


def test_monte_carlo_ignores_padding() -> None:
    restart = Restart(lambda b, t, j, n: math.nan if (b, t) == (1, 2) and len(restart.calls) == 2 else 1.0)
    advantage = MonteCarlo(2, 2)(monte_carlo_data(), restart=restart)[SELECTED]
    assert advantage.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_monte_carlo_declares_what_a_restart_needs() -> None:
    component = MonteCarlo()
    assert component.requires == ("restart",)
    needed = {"prompt_ids", "prompt_mask", "example", "completion_ids", "commit_step", "reward"}
    assert needed | {("selected", "step"), ("selected", "weight"), ("step", "valid")} == set(component.in_keys)
    assert list(component.out_keys) == [SELECTED]
