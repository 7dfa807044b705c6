"""The statistics of a comparison, against scipy and against arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from support.comparisons import outcome, recorded

from dlmrl_kit.core.errors import CheckpointError
from dlmrl_kit.experiments.referee.audits import FILE as AUDIT
from dlmrl_kit.experiments.referee.audits import read_audits
from dlmrl_kit.experiments.referee.claims import claims_rows, claims_table, verdicts
from dlmrl_kit.experiments.referee.records import read_outcomes
from dlmrl_kit.experiments.referee.report import read_report
from dlmrl_kit.experiments.referee.spec import Claim
from dlmrl_kit.experiments.referee.statistics import accuracy_at, area, detectable, mean, ranks, rows

wide = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8)
shares = st.floats(0, 1).map(lambda value: round(value, 3))
curves = st.lists(shares, min_size=2, max_size=6)


@given(st.lists(shares, min_size=2, max_size=8).filter(lambda values: len({*values}) > 1))
def test_intervals_are_those_of_the_t_test(values: list[float]) -> None:
    found, known = mean(values), stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert mean(values[:1]) == mean(values[:1]).__class__(values[0], None, None, 1)


@given(curves, st.floats(0.1, 3.0))
def test_area_is_the_mean_of_the_curve(accuracies: list[float], share: float) -> None:
    curve = outcome(accuracies).curve
    budget = share * curve[-1].forwards
    fine = [accuracy_at(curve, budget * (place + 0.5) / 500) for place in range(500)]
    assert area(curve, budget) == pytest.approx(math.fsum(fine) / 500, abs=1e-2)
    for point in curve:
        assert accuracy_at(curve, point.forwards) == point.accuracy
    assert accuracy_at(curve, 2 * curve[-1].forwards) == curve[-1].accuracy


@given(st.lists(st.tuples(shares, shares, shares), min_size=3, max_size=6))
def test_differences_are_paired_by_seed_and_adjusted_together(table: list[tuple[float, float, float]]) -> None:
    names = ("egspo", "one", "two")
    runs = [
        outcome([0.1, end], recipe=name, seed=seed)
        for name in names
        for seed, end in enumerate(row[names.index(name)] for row in table)
    ]
    found = {row.recipe: row for row in rows(runs[::-1], "egspo", 100.0)}
    assert found["egspo"].difference is None
    raw = {}
    for place, name in enumerate(names[1:], start=1):
        pairs = [row[place] - row[0] for row in table]
        difference = found[name].difference
        assert difference is not None
        assert difference.value.mean == pytest.approx(math.fsum(pairs) / len(pairs))
        if max(pairs) - min(pairs) > 1e-9:
            raw[name] = float(stats.ttest_rel([row[place] for row in table], [row[0] for row in table]).pvalue)
            error = float(stats.tstd(pairs)) / math.sqrt(len(pairs))
            assert difference.detectable == pytest.approx(error * detectable(len(pairs)))
    if len(raw) == 2:
        for name, value in zip(raw, stats.false_discovery_control(list(raw.values())), strict=True):
            difference = found[name].difference
            assert difference is not None
            assert difference.p_value == pytest.approx(value)
            assert value >= raw[name] - 1e-12


@pytest.mark.parametrize("number", [2, 3, 5, 20])
def test_a_detectable_difference_is_found_as_often_as_it_says(number: int) -> None:
    draws = np.random.default_rng(0).normal(detectable(number) / math.sqrt(number), 1.0, (20_000, number))
    found = stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.012)


def test_equal_runs_differ_by_nothing() -> None:
    runs = [outcome([0.1, 0.5], recipe=name, seed=seed) for name in ("egspo", "one") for seed in range(3)]
    difference = rows(runs, "egspo", 100.0)[1].difference
    assert difference is not None
    assert (difference.value.mean, difference.p_value, difference.detectable) == (0, 1, None)
    assert (difference.value.low, difference.value.high) == (None, None), "no certainty"


@given(st.lists(st.tuples(shares, shares, shares), min_size=1, max_size=5))
def test_ranks_share_what_there_is(table: list[tuple[float, float, float]]) -> None:
    names = ("a", "b", "c")
    runs = [outcome([0, row[names.index(n)]], recipe=n, seed=seed) for n in names for seed, row in enumerate(table)]
    found = ranks(runs)
    assert math.fsum(rank.mean or 0 for rank in found.values()) == pytest.approx(6)
    for rank in found.values():
        assert rank.low is None or rank.low <= (rank.mean or 0) + 1e-9 <= (rank.high or 0) + 2e-9
    best = outcome([0, 2.0], recipe="best", seed=0)
    assert ranks([*runs, best])["best"].mean == 1


def test_a_run_that_failed_at_once_ranks_last_and_is_collapsed() -> None:
    runs = [outcome([0.5, 0.6], seed=0), outcome([], recipe="bad", seed=0, status="failed")]
    assert ranks(runs)["bad"].mean == 2
    row = rows(runs, "egspo", 100.0)[1]
    assert (row.finished, row.failed, row.collapsed, row.final.mean) == (0, 1, 1, None)


@pytest.mark.parametrize(
    ("accuracies", "status", "collapsed"),
    [
        ([0.5, 0.4], "finished", True),
        ([0.5, 0.47], "finished", False),
        ([0.5, 0.9], "finished", False),
        ([0.5, 0.9], "failed", True),
    ],
)
def test_collapsed(accuracies: list[float], status: str, collapsed: bool) -> None:
    assert outcome(accuracies, status=status).collapsed == collapsed


def test_the_best_model_is_chosen_on_validation_alone() -> None:
    assert outcome([0.9, 0.2, 0.3, 0.8], validations=[1.0, 0.6, 0.6, 0.5]).best == 0.2  # the first of the best
    assert outcome([0.9, 0.2]).best is None


@settings(deadline=None, max_examples=25)  # it writes files
@given(st.lists(st.tuples(curves, st.sampled_from(["finished", "failed"]), st.booleans()), min_size=1, max_size=3))
def test_outcomes_are_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[list[float], str, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("outcomes")
    known = [
        outcome(ends, seed=seed, status=status, validations=ends if chosen else None)
        for seed, (ends, status, chosen) in enumerate(made)
    ]
    recorded([*known, outcome([], seed=9, status="failed")], folder)
    assert read_outcomes(folder) == [*known, outcome([], seed=9, status="failed")]


@pytest.mark.parametrize("file", ["runs.csv", "curves/sudoku-egspo-seed-0.csv"])
@pytest.mark.parametrize("damage", [None, "", "a,b\n1,2\n"])
def test_damaged_tables_are_named(tmp_path: Path, file: str, damage: str | None) -> None:
    recorded([outcome([0.1, 0.2])], tmp_path)
    (tmp_path / file).unlink() if damage is None else (tmp_path / file).write_text(damage)
    with pytest.raises(CheckpointError, match=file):
        read_outcomes(tmp_path)


@pytest.mark.parametrize("seeds", [2, 5])
def test_differences_that_are_all_the_same_are_no_certainty(seeds: int) -> None:
    ends = {"base": 0.5, "own": 0.6}
    runs = [outcome([0.5, end], recipe=name, seed=seed) for name, end in ends.items() for seed in range(seeds)]
    found = rows(runs, "base", 100.0)[1].difference
    assert found is not None
    assert found.p_value == pytest.approx(2 * 0.5**seeds)
    assert (found.value.low, found.value.high, found.detectable) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("runs.csv", "egspo,0", "egspo,zero"),
        ("runs.csv", ",400,", ",nan,"),
        ("runs.csv", ",400,", ","),
        ("curves/*.csv", "0.25", "nan"),
        ("curves/*.csv", "0.25", ""),
        ("curves/*.csv", "0.25,", ""),
    ],
)
def test_a_damaged_table_is_told(tmp_path: Path, name: str, old: str, new: str) -> None:
    recorded([outcome([0.25, 0.75])], tmp_path)
    read_outcomes(tmp_path)
    (path,) = tmp_path.glob(name)
    text = path.read_text()
    assert old in text
    for damaged in (text.replace(old, new), text.splitlines()[0] + "\n"):
        path.write_text(damaged)
        with pytest.raises(CheckpointError, match=r"\.csv"):
            read_report(tmp_path, "egspo", 100.0)


@pytest.mark.parametrize(
    "text", ["recipe,bias\nx,1\n", "recipe,bias,bias_after_scale,scale,relative_variance\nx,y,,,\n"]
)
def test_a_damaged_audit_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / AUDIT).write_text(text)
    with pytest.raises(CheckpointError, match="audit"):
        read_audits(tmp_path)


@given(wide, st.sampled_from([0.0, 0.1, 0.4]), st.integers(1, 3))
def test_a_claim_holds_where_a_test_says_so(pairs: list[tuple[float, float]], by: float, number: int) -> None:
    pairs = [(round(first, 3), round(second, 3)) for first, second in pairs]
    differences = [first - second for first, second in pairs]
    assume(np.std(differences) > 1e-6)
    runs = [
        outcome([0.5, value], recipe=name, seed=seed)
        for seed, pair in enumerate(pairs)
        for name, value in zip(("a", "b"), pair, strict=True)
    ]
    found = verdicts([Claim("c", "a", "b", by)] * number, runs)
    above, below = (stats.ttest_1samp(differences, by, alternative=side).pvalue for side in ("greater", "less"))
    bar = 0.025 / number
    assume(min(abs(above - bar), abs(below - bar)) > 1e-9)
    expected = "holds" if above < bar else "does not hold" if below < bar else "cannot be told"
    assert [each.verdict for each in found] == [expected] * number
    known = stats.ttest_1samp(differences, 0.0).confidence_interval(1 - 0.05 / number)
    assert (found[0].difference.low, found[0].difference.high) == pytest.approx((known.low, known.high))


@given(st.integers(2, 14), st.integers(1, 30), st.sampled_from([-0.25, 0.0, 0.25, 0.5]), st.sampled_from([0.0, 0.25]))
def test_pairs_that_all_differ_by_the_same_are_no_certainty(n: int, claims: int, value: float, by: float) -> None:
    runs = [outcome([0.5, 0.5 + value], recipe="a", seed=seed) for seed in range(n)]
    runs += [outcome([0.5, 0.5], recipe="b", seed=seed) for seed in range(n)]
    found = verdicts([Claim("c", "a", "b", by)] * claims, runs)[0]
    p_value = 1.0 if value == by else stats.binomtest(n, n, 0.5).pvalue  # all n signs alike, two-sided
    expected = "cannot be told" if p_value > 0.05 / claims else "holds" if value > by else "does not hold"
    assert found.verdict == expected
    assert (found.difference.mean, found.difference.low, found.detectable) == (pytest.approx(value), None, None)


def test_a_claim_may_be_about_one_task() -> None:
    runs = [outcome([0.5, 0.9], recipe=name, task=task) for name in "ab" for task in ("sudoku", "other")]
    found = verdicts([Claim("one", "a", "b", task="other"), Claim("all", "a", "b")], runs)
    assert [(each.claim.text, each.task) for each in found] == [("one", "other"), ("all", "sudoku"), ("all", "other")]


def test_claims_are_about_pairs_of_one_seed_and_one_task() -> None:
    runs = [outcome([0.5, 0.9], recipe="a", seed=seed) for seed in (0, 1, 2)]
    runs += [outcome([0.5, 0.1], recipe="b", seed=0), outcome([0.5, 0.1], recipe="b", task="other", seed=1)]
    first, other = verdicts([Claim("c", "a", "b")], runs)
    assert (first.difference.n, other.difference.n) == (1, 0)
    assert {first.verdict, other.verdict} == {"cannot be told"}
    assert claims_table([first, other])[1] == ["c", "sudoku", "cannot be told", "+80.0", "-", "1"]
    assert len(claims_rows([first, other])[1]) == len(claims_rows([])[0])


def test_a_difference_that_is_detectable_is_found_as_often_as_said() -> None:
    draw = np.random.default_rng(0)
    level, number = 0.99, 6
    shift = detectable(number, level)
    samples = shift / math.sqrt(number) + draw.standard_normal((4000, number))  # deviation 1: error 1 / sqrt(n)
    found = stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 1 - level
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
