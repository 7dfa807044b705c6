"""docs/referee.md is made from what is checked in under benchmarks/referee, and so are the data of its tasks."""

from __future__ import annotations

import csv
import gzip
import itertools
import sys

import pytest
from support.paths import ROOT

from dlmrl_kit.experiments.referee.records import TUNING, read_outcomes
from dlmrl_kit.experiments.referee.spec_file import read_spec
from dlmrl_kit.tasks.base import Example

sys.path.insert(0, str(ROOT / "benchmarks" / "referee"))

import made_tasks
import write_page

REFEREE = write_page.HERE


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_page_says_what_the_tables_say() -> None:
    text = write_page.PAGE.read_text(encoding="utf-8")
    assert write_page.written(text, write_page.blocks(write_page.results())) == text


def test_every_algorithm_has_every_task_and_seed() -> None:
    spec = read_spec(REFEREE / "referee.toml")
    runs = read_outcomes(write_page.RESULTS)
    wanted = itertools.product(spec.tasks, spec.algorithms, range(5))
    names = {(task.name, algorithm.name, seed) for task, algorithm, seed in wanted}
    assert {(run.task, run.recipe, run.seed) for run in runs} == names
    assert {run.status for run in runs} == {"finished"}
    assert len(read_outcomes(write_page.RESULTS, TUNING)) == 3 * len(spec.tasks) * len(spec.algorithms)


def test_the_data_are_what_the_script_writes() -> None:
    for name, lines in made_tasks.files().items():
        stored = gzip.decompress((REFEREE / "data" / f"{name}.jsonl.gz").read_bytes()).decode()
        assert stored == "".join(lines)


def test_scores_of_forks() -> None:
    example = Example("-cgaaaa:", "", {})  # c: the second digit, g: the fourth
    right = "".join("2x8x"[place % 4] for place in range(16))
    assert made_tasks.score_forks(right, example) == {"reward": 1.0, "solved": 1.0}
    assert made_tasks.score_forks(right.replace("8", "7"), example) == {"reward": 0.5, "solved": 0.0}
    assert made_tasks.score_forks(right[:-2], example) == {"reward": 0.5, "solved": 0.0}
    assert made_tasks.score_forks("", example) == {"reward": 0.0, "solved": 0.0}


def test_scores_of_walks() -> None:
    example = Example("aaaa:", "", {})
    around = "bcdhlkjiefgh" + "lh" * 10
    assert made_tasks.score_walks(around, example)["solved"] == 1.0
    assert made_tasks.score_walks("be" * 16, example)["solved"] == 0.0  # no neighbours
    assert made_tasks.score_walks("ba" * 16, example)["solved"] == 0.0  # two fields
    assert made_tasks.score_walks(around[:-1], example)["solved"] == 0.0
    for field in made_tasks.FIELDS:
        assert all(field in made_tasks.neighbours(other) for other in made_tasks.neighbours(field))
        assert field not in made_tasks.neighbours(field)


def test_difficulty_is_of_the_tasks() -> None:
    with (REFEREE / "difficulty.csv").open(encoding="utf-8") as file:
        found = {row["task"] for row in csv.DictReader(file)}
    assert found == {task.name for task in read_spec(REFEREE / "referee.toml").tasks}
