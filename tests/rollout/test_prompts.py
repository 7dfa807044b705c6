"""Which examples an update takes, and their prompts as a batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.number_task import Numbers

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.rollout.services import examples, prompt_batch, require_examples, training_indices
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
