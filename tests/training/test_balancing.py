"""Prompts that are shared out by the lengths of earlier completions: the same run, and less waiting."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import build, new_run, outcome, recipe, stopped
from support.several import Pool
from tensordict import TensorDict

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.trainers.trainer import Trainer
from dlmrl_kit.training.balancing import Lengths, assigned
from dlmrl_kit.training.runs import resume, train

BY_LENGTH = "Trainer.assignment = 'by_length'"
UNEVEN = ["ConfidenceThreshold.threshold = 0.35", "Trainer.prompts_per_update = 5", "Trainer.learning_rate = 1e-3"]
"""With the recipe ``dipo`` completions take from a few steps to all of them; 7 examples, so that most come again."""


def most(expected: list[int], owner: list[int], world: int) -> int:
    return max(sum(steps for steps, rank in zip(expected, owner, strict=True) if rank == r) for r in range(world))


def test_without_knowledge_prompts_go_in_turn() -> None:
    for number, world in itertools.product(range(9), (1, 2, 3, 4)):
        assert assigned([1.0] * number, world) == [i % world for i in range(number)]


def test_no_process_has_more_prompts_than_in_turn_and_little_more_to_do_than_the_best_could_have() -> None:
    draw = random.Random(0)
    for _ in range(60):
        number, world = draw.randint(1, 6), draw.randint(1, 3)
        expected = [draw.randint(1, 20) for _ in range(number)]
        owner, limit = assigned(expected, world), -(-number // world)
        assert set(owner) <= set(range(world))
        assert max(owner.count(rank) for rank in range(world)) <= limit
        possible = (
            other
            for other in itertools.product(range(world), repeat=number)
            if max(other.count(rank) for rank in range(world)) <= limit
        )
        best = min(most(expected, list(other), world) for other in possible)
        assert most(expected, owner, world) <= 4 / 3 * best


def samples(example: list[int], steps: list[int]) -> TensorDict:
    """A rollout of two samples per group; sample i took ``steps[i]`` of 4 steps."""
    group = torch.arange(len(example)) // 2
    valid = torch.arange(4) < torch.tensor(steps)[:, None]
    return TensorDict({"group": group, "example": torch.tensor(example), "step": {"valid": valid}}, [len(example)])


def test_what_is_known_is_the_last_mean_and_the_rest_is_as_usual() -> None:
    lengths = Lengths()
    lengths.learn(samples([3, 3, 8, 8, 8, 8], [1, 2, 4, 4, 4, 2]), ALONE)
    assert lengths.mean == {3: 1.5, 8: 3.5}
    lengths.learn(samples([3, 3], [4, 4]), ALONE)
    assert lengths.mean == {3: 4.0, 8: 3.5}
    lengths.learn(TensorDict({}, [0]), ALONE)
    prompts = samples([5, 5, 3, 3, 8, 8, 8, 8], [1] * 8)  # of the first one nothing is known
    assert lengths.owners(prompts, 2).tolist() == [1, 1, 0, 0, 1, 1, 0, 0]


def taken(processes: Processes, assignment: str, updates: int) -> tuple[list[Any], list[Any], torch.Tensor]:
    """The groups of this process in each update, metrics, and all weights afterwards, in float64."""
    run = new_run(Path(), "dipo", [*UNEVEN, f"Trainer.assignment = {assignment!r}"], processes=processes)
    run.policy.double()
    groups, metrics = [], []
    for number in range(updates):
        groups.append(run.update.prompts(number)["group"].unique().tolist())
        metrics.append(run.update(number))
    return groups, metrics, torch.cat([p.detach().reshape(-1) for p in run.parameters.values()])


@pytest.mark.thorough
def test_the_result_is_that_of_one_process(pool: Pool) -> None:
    """And that of prompts shared out in turn; each prompt is sampled once, in other processes than in turn."""
    (in_turn,) = pool.run(taken, "in_turn", 3, worlds=(1,))[1]
    found = pool.run(taken, "by_length", 3)
    for world in (1, 2, 3):
        for number in range(3):
            own = [groups[number] for groups, _, _ in found[world]]
            assert sorted(itertools.chain(*own)) == list(range(5))
            assert max(map(len, own)) <= -(-5 // world)
        for _, metrics, weights in found[world]:
            assert metrics == [pytest.approx(update, rel=1e-9, abs=1e-9) for update in in_turn[1]]
            torch.testing.assert_close(weights, in_turn[2], rtol=0, atol=1e-9)
    first, *later = zip(*(groups for groups, _, _ in found[2]), strict=True)
    assert first == ([0, 2, 4], [1, 3])
    assert any(own != first for own in later)


def whole(processes: Processes, folder: str, at: int | None) -> None:
    def start() -> None:
        sets = [*UNEVEN, BY_LENGTH, "Trainer.checkpoint_every = 1"]
        train(recipe("dipo", sets), Path(folder), processes=processes)

    if at is None:
        start()
    else:
        stopped(start, at)
        processes.gather(None)  # the first one may still write


def go_on(processes: Processes, folder: str) -> None:
    resume(Path(folder), processes=processes)


@pytest.mark.thorough
def test_a_resumed_run_knows_the_lengths(pool: Pool, tmp_path: Path) -> None:
    pool.run(whole, str(tmp_path / "whole"), None, worlds=(2,))
    pool.run(whole, str(tmp_path / "half"), 2, worlds=(2,))
    shutil.copytree(tmp_path / "half", tmp_path / "by three")
    pool.run(go_on, str(tmp_path / "half"), worlds=(2,))
    pool.run(go_on, str(tmp_path / "by three"), worlds=(3,))
    assert outcome(tmp_path / "half") == outcome(tmp_path / "whole")  # bit for bit, and the lengths among it
    assert '"lengths": {' in (tmp_path / "half" / "checkpoints" / "update-000004" / "state.json").read_text()


def test_collectors_are_refused() -> None:
    with pytest.raises(UserError, match=r"Ray may begin a rollout before .*assignment = 'by_length'.*'in_turn'"):
        build("egspo_sa", [BY_LENGTH], ["collector=Ray"])


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Trainer\.assignment must be 'in_turn' or 'by_length', got 'length'"):
        Trainer(assignment="length")  # type: ignore[arg-type]
