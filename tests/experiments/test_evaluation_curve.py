"""``dlmrl eval --vary``: accuracy against forwards, what is left out, mistakes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from support.command_line import dlmrl
from support.runs import model_path

from dlmrl_kit.experiments.aggregate import Estimate
from dlmrl_kit.experiments.evaluation_curve import curve_rows, draw_curve, is_curve
from dlmrl_kit.experiments.evaluation_grid import Grid, plan_cells
from dlmrl_kit.experiments.evaluation_results import Point, collect
from dlmrl_kit.experiments.evaluation_runs import RECORD, CellResult, run_cells

FEW = ("Sudoku4x4.num_heldout=5",)


def point(line: str, setting: str, forwards: float, panel: str = "a") -> Point:
    return Point("cell", panel, line, setting, Estimate(0.5, 0.25, 0.75, 8), forwards, 33 * forwards)


def test_each_value_takes_the_forwards_of_its_steps(tmp_path: Path) -> None:
    vary = {"LowConfidence.tokens_per_step": ("2", "4")}
    cells = plan_cells(Grid([model_path()], vary=vary, lengths=[8], size=3, sets=FEW))
    found = run_cells(cells, tmp_path / "out", checked=2)
    points = collect(cells, found).curve
    assert [p.setting for p in points] == ["LowConfidence.tokens_per_step = 2", "LowConfidence.tokens_per_step = 4"]
    assert [p.forwards for p in points] == [4.0, 2.0]
    assert [p.tokens for p in points] == [4 * 25.0, 2 * 25.0]  # a prompt of 17 characters
    assert {(p.panel, p.line) for p in points} == {("Sudoku4x4, length 8", "LowConfidence")}
    assert [p.accuracy.mean for p in points] == [found[cell.name].result.accuracy for cell in cells]


def test_rows_that_are_finished_cost_no_forwards(tmp_path: Path) -> None:
    vary = {"ConfidenceThreshold.threshold": ("0.01", "1.0")}
    samplers = ["ConfidenceThreshold"]
    cells = plan_cells(Grid([model_path()], vary=vary, lengths=[4], samplers=samplers, size=4, sets=FEW))
    low, high = collect(cells, run_cells(cells, tmp_path / "out", checked=0)).curve
    assert low.forwards == 1.0
    assert 1.0 < high.forwards <= 4.0


def test_a_cell_that_was_measured_without_counting_has_no_point(tmp_path: Path) -> None:
    cells = plan_cells(Grid([model_path()], size=1, sets=FEW, lengths=[4]))
    run_cells(cells, tmp_path / "out", checked=0)
    path = tmp_path / "out" / "cells" / cells[0].name / RECORD
    data = json.loads(path.read_text())
    del data["forwards"], data["tokens"]
    path.write_text(json.dumps(data))
    found = run_cells(cells, tmp_path / "out", checked=0)
    assert found[cells[0].name] == CellResult.from_json(data)
    assert collect(cells, found).curve == []


@pytest.mark.thorough
def test_a_setting_is_left_out_where_it_concerns_nothing(tmp_path: Path) -> None:
    model = tmp_path / "other"
    shutil.copytree(model_path(), model)
    result = dlmrl(
        *("eval", model_path(), str(model), "--set", *FEW, "--length", "8", "--size", "2", "--check-batch", "0"),
        *("--sampler", "LowConfidence,ConfidenceThreshold", "--out", str(tmp_path / "out")),
        *("--vary", "LowConfidence.tokens_per_step=2,4", "--vary", "ConfidenceThreshold.threshold=0.5,0.9"),
        *("--vary", "Sampler.block_length=4,8"),
    )
    assert result.exit_code == 0, result.output
    assert "--vary ConfidenceThreshold.threshold concerns nothing of LowConfidence" in result.stderr
    rows = list(csv.DictReader((tmp_path / "out" / "forwards.csv").open()))
    assert len(rows) == 2 * 2 * 2 * 2  # models, samplers, values of their own, lengths of blocks
    assert len({row["cell"] for row in rows}) == len(rows)
    assert {row["line"] for row in rows} == {
        f"{path}, {sampler}, Sampler.block_length = {block}"
        for path in (model_path(), model)
        for sampler in ("LowConfidence", "ConfidenceThreshold")
        for block in (4, 8)
    }
    for row in rows:
        own, _, value = row["setting"].partition(" = ")
        assert own.split(".")[0] in row["line"]
        if own.startswith("Low"):
            assert float(row["forwards"]) == 8 / int(value)
    assert all((tmp_path / "out" / f"forwards.{form}").stat().st_size for form in ("png", "pdf", "svg"))
    table = (tmp_path / "out" / "table.md").read_text()
    assert "## Accuracy against forwards" in table
    assert "forwards.csv, forwards.png" in result.stdout


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--vary", "LowConfidence.tokens_per_step"), "write --vary KEY=A,B"),
        (("--vary", "LowConfidence.tokens_per_step=1,"), "write --vary KEY=A,B"),
        (("--vary", "LowConfidence.tokens_per_step=1,1"), "has the value 1 twice"),
        (("--vary", "LowConfidence.tokens_per_step=1,0"), "--vary LowConfidence.tokens_per_step=0: "),
        (("--vary", "LowConfidence.tokens_per_step=a"), "cannot read the value 'a': a value is a number"),
        (("--vary", "LowConfidence.tokens=1"), "did you mean 'tokens_per_step'"),
        (("--vary", "NoSuch.k=1"), "--vary NoSuch.k=1: no component named 'NoSuch'"),
        (
            ("--vary", "tokens_per_step=1"),
            "settings to vary: LowConfidence.completion_length, LowConfidence.tokens_per",
        ),
        (("--vary", "ConfidenceThreshold.threshold=0.5"), "does not use ConfidenceThreshold"),
        (("--vary", "LowConfidence.temperature=1.0"), "(--temperature says how all cells are)"),
        (("--vary", "LowConfidence.top_k=2"), "changes nothing in how the sampler"),
        (("--vary", "Trainer.seed=1,2"), "changes nothing in how the sampler"),
        (("--vary", "Sampler.tokens_per_step=2", "--length", "8", "--steps", "4"), "say two things about one setting"),
        (("--vary", "Sampler.tokens_per_step=2", "--set", "Sampler.tokens_per_step=4"), "say two things"),
    ],
)
def test_mistakes_in_what_varies(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = dlmrl("eval", model_path(), "--set", *FEW, "--out", str(tmp_path / "out"), *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_top_k_varies_where_it_is_used() -> None:
    grid = Grid([model_path()], vary={"Sampler.top_k": ("1", "2")}, temperature=0.5, sets=FEW)
    assert [cell.facts["LowConfidence.top_k"] for cell in plan_cells(grid)] == ["1", "2"]


def test_steps_make_a_curve_without_vary() -> None:
    cells = plan_cells(Grid([model_path()], lengths=[8], steps=["2", "4"], sets=FEW))
    assert [(cell.place.line, cell.place.setting) for cell in cells] == [
        ("LowConfidence", "2 steps"),
        ("LowConfidence", "4 steps"),
    ]


def test_recipes_are_lines_of_one_panel() -> None:
    vary = {"Sampler.tokens_per_step": ("2", "4")}
    cells = plan_cells(Grid([model_path()], recipes=["egspo", "coupled_grpo"], vary=vary, sets=FEW))
    assert [cell.place.line for cell in cells] == ["egspo", "egspo", "coupled_grpo", "coupled_grpo"]
    assert {(cell.place.task, cell.place.length) for cell in cells} == {("Sudoku4x4", 16)}


@pytest.mark.thorough
def test_other_prompts_are_another_panel(tmp_path: Path) -> None:
    found = []
    for seed in (1, 2, 3):
        cells = plan_cells(Grid([model_path()], size=1, sets=(*FEW, f"Sudoku4x4.seed = {seed}"), lengths=[4]))
        found.append((cells, run_cells(cells, tmp_path / str(seed), checked=0)))
    points = collect([c for cells, _ in found for c in cells], {k: v for _, of in found for k, v in of.items()}).curve
    assert len({point.panel for point in points}) == 3


def test_a_curve_needs_two_points_of_a_line() -> None:
    assert is_curve([point("x", "k = 1", 1.0), point("x", "k = 2", 2.0)])
    assert not is_curve([point("x", "k = 1", 1.0), point("y", "k = 1", 1.0), point("x", "k = 1", 1.0, "b")])
    assert not is_curve([])


@pytest.mark.thorough
@pytest.mark.usefixtures("fine_pictures")
def test_the_figure_has_a_panel_for_each_task_and_all_formats(tmp_path: Path) -> None:
    points = [point("<x> $y_1$", f"k = {k}", 2.0**k, panel) for k in range(6) for panel in ("first & last", "second")]
    for path in draw_curve(points, tmp_path):
        assert path.stat().st_size > 1000
    svg = (tmp_path / "forwards.svg").read_text()
    assert svg.count("<!-- forwards per completion -->") == 2
    assert svg.count("<!-- 32 -->") >= 2  # plain numbers along the logarithmic axis
    assert "mathdefault" not in svg
    assert list(curve_rows(points))[1][-2:] == (1.0, 33.0)
