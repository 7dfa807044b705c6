"""Which examples an update takes, and their prompts as a batch."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.number_task import Numbers

from dlmrl_kit.core import seeding
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.rollout import services
from dlmrl_kit.rollout.services import examples, prompt_batch, require_examples, training_indices
from dlmrl_kit.tasks.base import BaseTask
from dlmrl_kit.tasks.mixture import Mixture
from dlmrl_kit.tasks.sudoku import Sudoku4x4


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 12), per_update=st.integers(1, 15), seed=st.integers(0, 5))
def test_every_pass_over_the_examples_takes_each_once(size: int, per_update: int, seed: int) -> None:
    updates = [training_indices(size, per_update, update, seed) for update in range(3 * size)]
    assert all(len(indices) == per_update for indices in updates)
    drawn = list(itertools.chain(*updates))
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[start : start + size]) == list(range(size))
    assert updates[-1] == training_indices(size, per_update, 3 * size - 1, seed)  # whatever was drawn before


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(training_indices(30, 30, update, seed)) for update in range(5) for seed in range(5)}
    assert len(orders) == 25


@pytest.fixture(scope="module")
def digits() -> TransformersPolicy:
    torch.manual_seed(0)
    return CharacterLlama("0123456789", hidden_size=16, num_layers=1, num_heads=2).load()


def test_prompts_are_left_padded_and_repeated(digits: TransformersPolicy) -> None:
    batch = prompt_batch(Numbers(), "train", [3, 0, 1], digits, group_size=2)
    assert batch.shape == (6,)
    assert batch["group"].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch["example"].tolist() == [3, 3, 0, 0, 1, 1]
    assert batch["prompt_mask"].sum(-1).tolist() == [4, 4, 1, 1, 2, 2]
    for row, mask, index in zip(batch["prompt_ids"], batch["prompt_mask"], batch["example"].tolist(), strict=True):
        assert (mask[1:] >= mask[:-1]).all()  # padding first
        assert (row[~mask] == digits.pad_id).all()
        assert digits.tokenizer.decode(row[mask]) == str(index) * (index + 1)
    assert (batch["prompt_ids"].dtype, batch["prompt_mask"].dtype) == (torch.int64, torch.bool)
    assert digits.encode(["12"])["prompt_ids"].shape == (1, 2)


def test_splits_without_enough_examples_are_refused() -> None:
    with pytest.raises(RecipeError, match="Numbers: the heldout split is empty; set num_heldout"):
        require_examples(Numbers(), "train", "heldout")
    task = Sudoku4x4(1, 1, num_train=10**6)
    task.max_misses = 3  # type: ignore[misc]
    with pytest.raises(RecipeError, match="num_train is 1000000, but only"):
        examples(task, "train", range(10**6))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 255, 256, 257, 1000])
def test_orders_without_a_list_are_permutations(size: int) -> None:
    orders = [[services._permuted(index, size, seed, epoch) for index in range(size)] for seed, epoch in PASSES]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size >= 17:
        assert len({tuple(order) for order in orders}) == len(PASSES)
        for order in orders:  # about one fixed point and as many ascents as descents, as in a random permutation
            assert sum(place == index for index, place in enumerate(order)) < 8
            rises = sum(a < b for a, b in itertools.pairwise(order))
            assert abs(rises - size / 2) < 5 * math.sqrt(size / 12) + 1


PASSES = list(itertools.product(range(3), range(3)))


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize(("listed", "window"), [(8, 4), (8, 3), (29, 10)])
def test_every_pass_over_a_large_split_takes_each_once(
    monkeypatch: pytest.MonkeyPatch, listed: int, window: int, in_order: bool
) -> None:
    monkeypatch.setattr(services, "LISTED", listed)
    monkeypatch.setattr(services, "WINDOW", window)
    size, per_update = 30, 7
    drawn = list(itertools.chain(*(training_indices(size, per_update, u, 0, in_order) for u in range(30))))
    for start in range(0, len(drawn) - size + 1, size):
        mine = drawn[start : start + size]
        assert sorted(mine) == list(range(size))
        assert mine != list(range(size))
        if in_order:
            assert all(index // window == place // window for place, index in enumerate(mine))
    assert drawn[:size] != drawn[size : 2 * size]


def test_the_order_of_a_split_of_todays_sizes_is_a_list() -> None:
    """Another order would change the numbers of every recipe."""
    order = torch.randperm(2000, generator=seeding.generator("cpu", 0, "data", 0)).tolist()
    assert training_indices(2000, 6, 3, 0) == training_indices(2000, 6, 3, 0, in_order=True) == order[18:24]


@pytest.mark.parametrize("in_order", [False, True])
def test_a_billion_examples_need_no_list(in_order: bool) -> None:
    tracemalloc.start()
    drawn = [training_indices(10**9, 8, update, 1, in_order) for update in (0, 1, 10**7)]
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    indices = list(itertools.chain(*drawn))
    assert len(set(indices)) == 24
    assert all(0 <= index < 10**9 for index in indices)
    assert (max(indices[:16]) < services.WINDOW) == in_order


@pytest.mark.parametrize("task", [Sudoku4x4(num_train=10**9), Mixture([Sudoku4x4(), Numbers()], num_train=10**9)])
def test_the_first_update_of_a_billion_examples_makes_few_of_them(
    task: BaseTask, digits: TransformersPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "WINDOW", 16)
    indices = training_indices(task.size("train"), 4, 0, 0, task.in_order)
    assert max(indices) < 16
    assert len(examples(task, "train", indices)) == 4
