"""Evaluation grids: cells, resuming after a kill, statistics, files, mistakes."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.command_line import dlmrl
from support.runs import model_path

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.experiments import evaluation_runs
from dlmrl_kit.experiments.aggregate import Estimate
from dlmrl_kit.experiments.evaluation_files import latex, markdown
from dlmrl_kit.experiments.evaluation_grid import Grid, plan_cells
from dlmrl_kit.experiments.evaluation_results import Column, GridResults, compare, share
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.training.evaluation import answer, evaluate_path

FEW = ("Sudoku4x4.num_heldout=5",)


def grid(folder: Path, *options: str) -> Any:
    arguments = ["eval", model_path(), "--set", *FEW, "--length", "8,16", "--steps", "1/2", "--check-batch", "2"]
    return dlmrl(*arguments, "--out", str(folder), *options)


TABLES = ("table.md", "table.tex", "table.csv", "table.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid") / "whole"
    result = grid(folder)
    assert result.exit_code == 0, result.output
    return folder


class Killed(BaseException):
    """Ends an evaluation as a kill would."""


def test_a_killed_grid_goes_on_and_ends_with_the_same_tables(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = tmp_path / "out", list[Path]()
    written = evaluation_runs.write_atomic

    def killed(path: Path, content: str) -> None:
        if path.name == "cell.json" and len(calls) == 1:  # the second cell: its completions are there already
            raise Killed
        calls.extend([path] if path.name == "cell.json" else [])
        written(path, content)

    monkeypatch.setattr(evaluation_runs, "write_atomic", killed)
    with pytest.raises(Killed):
        grid(folder)
    monkeypatch.setattr(evaluation_runs, "write_atomic", written)
    assert not (folder / "table.md").exists()
    again = grid(folder)
    assert again.exit_code == 0
    assert "2 cells, 1 of them measured already" in again.stdout
    for name in TABLES:
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_cells_are_what_eval_says_and_keep_every_completion(whole: Path) -> None:
    cells = sorted((whole / "cells").iterdir())
    assert [cell.name.rsplit("-", 2)[0][-5:] for cell in cells] == ["-16x8", "4-8x4"]
    stored = json.loads((cells[0] / "cell.json").read_text())
    alone = evaluate_path(
        model_path(), size=512, sets=[*FEW, "Sampler.completion_length = 16", "Sampler.tokens_per_step = 2"]
    )
    assert stored["result"] == json.loads(json.dumps(alone.to_json()))
    rows = [json.loads(line) for line in (cells[0] / "completions.jsonl").read_text().splitlines()]
    assert [row["completions"][0]["text"] for row in rows] == [sample["completion"] for sample in alone.samples]
    assert stored["values"]["cells"] == [row["completions"][0]["scores"]["cells"] for row in rows]
    assert stored["check"] == {"completions": 2, "differ": 0, "batch_size": 256}


def test_every_number_comes_with_its_interval_and_what_can_change_it(whole: Path) -> None:
    data = json.loads((whole / "table.json").read_text())
    assert {(v["metric"], v["length"]) for v in data["values"]} == {
        (metric, length) for metric in ("accuracy", "right cells") for length in (8, 16)
    }
    assert all(v["low"] <= v["mean"] <= v["high"] for v in data["values"])
    told = {"model digest", "prompts", "batch size", "precision", "device", "package dlmrl_kit", "temperature"}
    assert told <= data["header"].keys()
    assert all(own.keys() >= {"completion length", "denoising steps"} for own in data["cells"].values())
    rows = list(csv.DictReader((whole / "table.csv").open()))
    assert len(rows) == 4
    assert all(told | {"completion length"} <= row.keys() for row in rows)
    for name in ("table.md", "table.tex"):
        text = (whole / name).read_text()
        assert all(data["header"][key] in text for key in told)


def test_the_check_of_the_batch_size_counts_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*given: Any) -> Any:
        found = answer(*given)
        if given[3].batch_size == 1:
            found[1].completions[0] += "!"
        return found

    monkeypatch.setattr(evaluation_runs, "answer", other)
    (cell,) = plan_cells(Grid([model_path()], size=4, sets=FEW))
    result = evaluation_runs.run_cells([cell], tmp_path / "out", checked=3)[cell.name]
    assert str(result.check) == "1 of 3 completions differ between batch sizes 256 and 1"


def test_a_model_is_loaded_once_for_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    to = TransformersPolicy.to
    monkeypatch.setattr(TransformersPolicy, "to", lambda self, device: loads.append("load") or to(self, device))
    cells = plan_cells(Grid([model_path()], lengths=[8, 16], size=1, sets=FEW))
    evaluation_runs.run_cells(cells, tmp_path / "out", checked=0)
    assert loads == ["load"]


def test_cells_of_another_model_are_not_taken_for_measured(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_path(), model)
    cells = plan_cells(Grid([str(model)], size=1, sets=FEW))
    evaluation_runs.run_cells(cells, tmp_path / "out", checked=0)
    (model / "more.txt").write_text("changed")
    cells = plan_cells(Grid([str(model)], size=1, sets=FEW))
    with pytest.raises(UserError, match=r"was measured with something else: model digest was .*choose another --out"):
        evaluation_runs.run_cells(cells, tmp_path / "out", checked=0)


@pytest.mark.thorough
def test_two_models_are_compared_on_the_same_examples(tmp_path: Path) -> None:
    result = dlmrl(
        *("eval", model_path(), "shipped:sudoku4x4", "--set", "Sudoku4x4.num_heldout=12", "--json"),
        *("--check-batch", "0", "--out", str(tmp_path / "out")),
    )
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    accuracy, cells = data["comparisons"]
    assert (accuracy["test"], cells["test"]) == ("McNemar, exact", "paired permutation")
    means = {(v["row"], v["metric"]): v["mean"] for v in data["values"]}
    expected = means["shipped:sudoku4x4", "right cells"] - means[model_path(), "right cells"]
    assert cells["difference"]["mean"] == pytest.approx(expected)


def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ() -> None:
    first, second = [1.0] * 3 + [0.0] * 17, [1.0, 0.0, 0.0] + [1.0] * 8 + [0.0] * 9
    difference, alone, p_value, _ = compare(first, second)
    assert alone == (2, 8)
    assert p_value == pytest.approx(2 * sum(math.comb(10, k) for k in range(3)) / 2**10)
    assert difference.mean == pytest.approx(6 / 20)
    assert difference.low is not None
    assert difference.low < 0.3 < (difference.high or 0)
    assert compare(first, first)[1:3] == ((0, 0), 1.0)


def test_the_permutation_test_of_few_pairs_counts_all_signs() -> None:
    first, second = [0.5, 0.25, 0.0, 0.125], [0.75, 0.75, 0.25, 0.375]  # all better: 2 of the 16 signs are as extreme
    assert compare(first, second)[2] == pytest.approx(2 / 16)


def test_intervals_are_wilsons_for_right_and_wrong_and_the_bootstraps_else() -> None:
    assert share([1.0] * 4 + [0.0] * 6).low == pytest.approx(0.16818, abs=1e-5)
    found = share([0.5, 0.25, 1.0, 0.0])
    assert (found.low or 0) < 0.4375 < (found.high or 0)
    assert share([0.5]) == Estimate(0.5, None, None, 1)


def test_hostile_names_stay_texts_in_markdown_and_latex() -> None:
    column = Column("a|b\n# c", "<b>&_%", 8)
    found = Estimate(0.5, 0.25, 0.75, 4)
    results = GridResults(
        rows=["x$^~\\{}"],
        columns=[column],
        cells={("x$^~\\{}", column): found},
        places=[("one", "x$^~\\{}", column)],
        header={"key\n\\input{x}": "v\n|"},
        differences={"one": {}},
        comparisons=[],
        checks={"one": "ok"},
        curve=[],
    )
    assert r"| model | a\|b # c \<b\>&_%, 8 |" in markdown(results)
    text = latex(results)
    assert r"x\$\textasciicircum{}\textasciitilde{}\textbackslash{}\{\} & 50.0 [25.0, 75.0] \\" in text
    assert r"<b>\&\_\%" in text
    assert all(line.startswith("%") for line in text.splitlines() if "input" in line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--length", "16", "--steps", "3"), "needs a --length that it divides"),
        (("--steps", "1/2"), "needs a --length of which it is a share"),
        (("--length", "9", "--steps", "1/2"), "is 9/2, no whole number of steps"),
        (("--length", "16", "--steps", "half"), "expected a whole number, or a share"),
        (("--length", "16", "--steps", "1/0"), "expected a whole number, or a share"),
        (("--length", "16", "--steps", "0"), "no whole number of steps, at least 1"),
        (("--length", "16", "--steps", "4", "--set", "Sampler.block_length=6"), "takes 5 steps for a completion of 16"),
        (("--length", "-3"), "--length -3: expected a whole number"),
        (("--length", "16,16"), "twice"),
        (("--task", "NoSuchTask"), "NoSuchTask"),
        (("--split", "test"), "unknown split 'test'"),
        (("--samples", "2"), "temperature above 0"),
    ],
)
def test_mistakes_are_said_before_anything_runs(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = dlmrl("eval", model_path(), "--set", *FEW, "--out", str(tmp_path / "out"), *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_grid_needs_a_folder_and_takes_no_other_ones(tmp_path: Path) -> None:
    assert "give --out DIR" in dlmrl("eval", "a", "b").stderr
    assert "--length without --out DIR" in dlmrl("eval", "a", "--length", "8").stderr
    (tmp_path / "mine.txt").write_text("")
    result = dlmrl("eval", model_path(), "--set", *FEW, "--out", str(tmp_path))
    assert "is no folder of an evaluation" in result.stderr
