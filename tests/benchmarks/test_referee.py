"""docs/referee.md is made from what is checked in under benchmarks/referee, and so are the data of its tasks."""

from __future__ import annotations

import csv
import gzip
import itertools
import math
import sys

import pytest
import torch
from support.paths import ROOT

from dlmrl_kit.core.keys import ADVANTAGE
from dlmrl_kit.experiments.aggregate import Estimate
from dlmrl_kit.experiments.referee.records import TUNING, read_outcomes
from dlmrl_kit.experiments.referee.spec_file import read_spec
from dlmrl_kit.experiments.step_gradients import StepGradients
from dlmrl_kit.tasks.base import Example

sys.path.insert(0, str(ROOT / "benchmarks" / "referee"))

import claims_page
import made_tasks
import step_data
import why
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
    points = math.prod(map(len, spec.grid.values()))
    assert len(read_outcomes(write_page.RESULTS, TUNING)) == points * len(spec.tasks) * len(spec.algorithms)


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


@pytest.mark.parametrize("name", claims_page.COMPARISONS)
def test_claims_are_those_of_the_specification_and_of_all_its_runs(name: str) -> None:
    asked, found = read_spec(REFEREE / f"{name}.toml"), claims_page.report(name)
    tasks = [task.name for task in asked.tasks]
    assert [(v.claim, v.task) for v in found.verdicts] == [(c, task) for c in asked.claims for task in tasks]
    runs = {(run.task, run.recipe, run.seed) for run in found.outcomes if run.status == "finished"}
    assert runs == {*itertools.product(tasks, (each.name for each in asked.algorithms), range(asked.seeds))}
    assert {verdict.difference.n for verdict in found.verdicts} == {asked.seeds}


def test_steps_are_of_the_tasks_and_complete() -> None:
    names = [task.name for task in read_spec(REFEREE / "referee.toml").tasks]
    selectors = {"EntropyTopK", *step_data.SELECTORS}
    assert why.tasks() == names
    for name, titles in step_data.TITLES.items():
        assert [*why.read(name)[0]] == [*titles]
    for name in names:
        steps = range(1, 9)
        assert [row["step"] for row in why.read("steps") if row["task"] == name] == [*map(str, steps), "all"]
        assert [row["step"] for row in why.read("bound") if row["task"] == name] == [*map(str, steps)]
        kept = {(row["selector"], int(row["step"])) for row in why.read("kept") if row["task"] == name}
        assert kept == {*itertools.product(selectors, steps)}
        for sampler in step_data.SAMPLERS:
            rhos = why.column("within", name, "rho", sampler=sampler)
            assert len(rhos) == step_data.PROMPTS
            assert all(-1 <= rho <= 1 for rho in rhos)


def test_the_bound_holds_at_every_step() -> None:
    for task in why.tasks():
        sides = [why.column("bound", task, what) for what in ("error", "part", "distance_bound", "entropy_bound")]
        for error, part, distance, bound in zip(*sides, strict=True):
            assert error <= part <= distance <= bound


def test_the_rank_correlation_is_spearmans_and_its_p_value_exact() -> None:
    assert why.rank_correlation([1, 2, 3, 4, 5], [2, 4, 6, 8, 9]) == pytest.approx((1.0, 2 / math.factorial(5)))
    rho, p_value = why.rank_correlation([1, 2, 3], [1, 3, 2])  # of 6 orders two have rho 1 or -1, four 0.5 or -0.5
    assert (rho, p_value) == pytest.approx((0.5, 1.0))


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.3, "larger gradients, weakly"),
        (0.7, 0.9, "larger gradients, clearly"),
        (-0.9, -0.7, "smaller"),
        (-0.1, 0.3, "cannot be told"),
    ],
)
def test_no_sentence_says_more_than_its_interval(low: float, high: float, said: str) -> None:
    assert said in why.told(Estimate((low + high) / 2, low, high, 24))


def test_what_the_page_says_in_words_of_steps_and_bound_holds() -> None:
    for task in why.tasks():
        assert "larger" in why.told(why.within(task, why.OWN))  # "the first half of the argument stands here"
        assert 2 * sum(why.above_chance(task)) < 8  # "and the second is open"
        loose = why.looseness(task)
        assert min(loose["in all"]) > 10  # "far too loose"
        assert min(loose["maxima"]) > max(loose["entropy for distance"])  # "what makes it loose is B"


@pytest.mark.thorough
def test_steps_that_are_differentiated_one_by_one_are_those_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_data, "PROMPTS", 3)
    spec = read_spec(REFEREE / "referee.toml")
    task = next(task for task in spec.tasks if task.name == "forks")
    for name in step_data.SAMPLERS:
        sampled = step_data.Sampled.of(task, [*spec.sets, *task.sets], name)
        update, batch = sampled.update, sampled.batch
        update.prepare(update.roll_out(0))  # compares old log-probabilities with those of the sampler
        whole = StepGradients(update.algorithm.loss, update.log_probs, batch)
        for step in (0, 5):
            whole.backward(step)
            wanted = [None if p.grad is None else p.grad.clone() for p in update.parameters]
            step_data.clear(update.parameters)
            for row in range(len(batch)):
                view, decision = sampled.view(row, step)
                log_prob = update.algorithm.sampler.action_log_prob(view, decision).sum()
                (-batch[ADVANTAGE][row] * log_prob / len(batch)).backward()
            for p, expected in zip(update.parameters, wanted, strict=True):
                assert (p.grad is None) == (expected is None)
                if p.grad is not None:
                    torch.testing.assert_close(p.grad, expected, rtol=1e-3, atol=1e-5)
            step_data.clear(update.parameters)
