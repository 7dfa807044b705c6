"""What benchmarks/forwards.py counts, on few prompts."""

from __future__ import annotations

import sys

import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import forwards


@pytest.mark.thorough
@pytest.mark.parametrize("name", forwards.SAMPLERS)
def test_guesses_save_forwards_and_no_states(name: str) -> None:
    policy, groups = forwards.sudoku(2, 3)
    _, alone = forwards.sudoku(3, 1)
    chance, *cells = forwards.guessed(forwards.SAMPLERS[name](1), policy, alone, groups)
    (plain, *plain_states), (_, of_one, of_many), *guesses = ([float(n) for n in cell.split(";")] for cell in cells)
    assert (plain, *plain_states) == (16, 1, 1)
    assert of_one == 1
    assert of_many < 1, "samples of a group begin in one state"
    assert all(found[0] < plain for found in guesses)
    assert all(found[1] >= 1 for found in guesses), "each step needs the predictions of its own state"
    assert all(0 < int(part.strip(" %")) <= 100 for part in chance.split(","))
    if name == "`RandomOrder`":
        assert guesses[-1][0] <= 5


@pytest.mark.thorough
def test_rows_that_leave_and_places_that_are_filled_save_tokens() -> None:
    policy, prompts = forwards.random_policy(4), forwards.random_prompts()
    found = []
    for stop, made, rows in forwards.WAYS.values():
        sampler = made(forwards.LowConfidence(forwards.LENGTH, 4, 4, stop_at_eos=stop))
        found.append(forwards.count(sampler, policy, prompts, rows))
    whole, leaving, filled = found
    assert whole.committed == 64 * forwards.LENGTH
    assert filled.committed == leaving.committed < whole.committed
    assert filled.tokens < leaving.tokens < whole.tokens
