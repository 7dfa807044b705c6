"""Comparisons go on from what stands in their tables: after a stop, elsewhere, and when they grow."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.comparisons import (
    FEW,
    GRID,
    StopsAfter,
    dlmrl,
    done_again,
    fake,
    fake_comparisons,
    files,
    forget_runs,
    no_figures,
    spec,
)

from dlmrl_kit.core.errors import CheckpointError, UserError
from dlmrl_kit.experiments.referee.again import do_again
from dlmrl_kit.experiments.referee.run import compare
from dlmrl_kit.experiments.referee.spec import TaskSpec
from dlmrl_kit.experiments.weights import Keep

__all__ = ["fake_comparisons", "no_figures"]
WEIGHTS = {"checkpoints", "best", "model", "adapter", "best_model", "best_adapter"}
"""All folders of a run that hold weights."""


@fake
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("stop", [1, pytest.param(3, marks=pytest.mark.thorough)])
def test_runs_that_stand_in_the_tables_are_done(tmp_path: Path, stop: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    compare(spec(), whole, parallel=1)
    with pytest.raises(KeyboardInterrupt):
        compare(spec(), cut, parallel=1, observer=StopsAfter(stop))
    known = forget_runs(cut)
    assert len(known) == stop
    compare(spec(), cut, parallel=1)
    assert files(cut) == files(whole)
    assert done_again(cut) == done_again(whole) - known
    assert len(done_again(whole)) == 4


@pytest.mark.thorough
@fake
@pytest.mark.usefixtures("no_figures")
def test_another_checkout_goes_on_with_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"prompt": "1+1=", "answer": "2", "split": "train"}
    task = TaskSpec("own", ("task=JsonLines",), ("JsonLines.path='data.jsonl'", "JsonLines.reward='paid:score'"))
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    splits = ("train", "heldout", "pretrain")
    lines = (json.dumps({**row, "split": split, "prompt": f"{split}="}) for split in splits)
    (here / "data.jsonl").write_text("\n".join(lines))
    (here / "paid.py").write_text("def score(completion, example):\n    return 1.0\n")
    monkeypatch.chdir(here)
    compare(spec(sets=(), tasks=(task,)), Path("out"), parallel=1)
    before, known = files(Path("out")), forget_runs(Path("out"))
    here.rename(there)
    monkeypatch.chdir(there)
    compare(spec(sets=(), tasks=(task,)), Path("out"), parallel=1)
    assert len(known) == 4
    assert not done_again(Path("out"))
    after = files(Path("out"))
    assert {name for name in before if before[name] != after[name]} == {
        "recipes/own-egspo.gin",
        "recipes/own-egspo_sa.gin",
    }
    assert str(tmp_path) not in Path("out/comparison.json").read_text()
    assert do_again(Path("out"), "own/egspo/1").same


@fake
@pytest.mark.usefixtures("no_figures")
def test_a_run_is_done_again_from_the_tables(tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare(spec(seeds=1), out, parallel=1)
    forget_runs(out)
    before = files(out)
    code, said = dlmrl("--out", str(out), "--again", "default/egspo_sa/0")
    assert (code, said.endswith("the same in all digits")) == (0, True), said
    curve = next(path for path in out.glob("curves/*egspo_sa*"))
    curve.write_text(re.sub(r",0\.4,", ",0.42,", curve.read_text(), count=1))
    code, said = dlmrl("--out", str(out), "--again", "default/egspo_sa/0")
    assert (code, said.endswith("not the same")) == (1, True)
    assert files(out).keys() == before.keys()  # the run had a folder of its own


@fake
@pytest.mark.usefixtures("no_figures")
def test_a_setting_that_came_later_changes_no_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare(spec(seeds=1), out, parallel=1)
    forget_runs(out)
    path, later = out / "comparison.json", "Trainer.eval_temperature = 0.0  # default"
    stored = json.loads(path.read_text())
    for variant in stored["design"]["variants"].values():
        variant["recipe"].remove(later)
    path.write_text(json.dumps(stored))
    assert do_again(out, "default/egspo/0").same
    compare(spec(seeds=1), out, parallel=1)
    assert not done_again(out)
    other = spec(seeds=1, sets=(*FEW, "Trainer.eval_temperature=1.0"))
    with pytest.raises(UserError, match=r"egspo was another one \(now `Trainer\.eval_temperature = 1\.0`\)"):
        compare(other, out, parallel=1)


@fake
@pytest.mark.usefixtures("no_figures")
def test_what_cannot_be_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert dlmrl("--out", str(out), "--again", "default/egspo/0")[1].endswith(
        "holds no comparison (comparison.json is missing)"
    )
    compare(spec(seeds=1), out, parallel=1)
    code, said = dlmrl("--out", str(out), "--again", "default/egspo/7")
    assert (code, "holds no run 'default/egspo/7'; a run is TASK/RECIPE/SEED, such as default/egspo/0" in said) == (
        2,
        True,
    )
    assert "change nothing with --again" in dlmrl("--out", str(out), "--again", "default/egspo/0", "--forwards", "9")[1]
    runs = out / "runs.csv"
    runs.write_text(re.sub(r",[0-9a-f]{16}\r?\n", ",0123456789abcdef\n", runs.read_text()))
    assert "means something else in this version" in dlmrl("--out", str(out), "--again", "default/egspo/0")[1]


@pytest.mark.thorough
@fake
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("stop", [2, 6, 9])
def test_tuning_that_stands_in_its_table_is_done(tmp_path: Path, stop: int) -> None:
    asked = spec(grid={**GRID, "OneStepDenoise.lam": ("0.25", "1.0")}, validation=8)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    compare(asked, whole, parallel=1)
    with pytest.raises(KeyboardInterrupt):
        compare(asked, cut, parallel=1, observer=StopsAfter(stop))
    known = forget_runs(cut)
    compare(asked, cut, parallel=1)
    assert files(cut) == files(whole)
    assert done_again(cut) == done_again(whole) - known
    assert len(known) == stop


@pytest.mark.thorough
@fake
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {"recipes": ("grpo_steps", "egspo", "d1", "egspo_sa"), "base": "egspo_sa"},
        {"tasks": (TaskSpec("easy", sets=("Sudoku4x4.max_empty=8",)), TaskSpec("default")), "seeds": 3},
        {"grid": {key: (*values, "1e-5") for key, values in GRID.items()}},
    ],
    ids=["recipes", "tasks and seeds", "values to tune"],
)
def test_a_comparison_may_grow(tmp_path: Path, more: dict[str, object], removed: bool) -> None:
    """To the files of one that was asked for at once, with no run done twice."""
    small: dict[str, object] = {"grid": GRID, "validation": 8}
    whole, grown = tmp_path / "whole", tmp_path / "grown"
    compare(spec(**{**small, **more}), whole, parallel=2)
    compare(spec(**small), grown, parallel=2)
    before = done_again(grown)
    if removed:
        assert forget_runs(grown) == before
    compare(spec(**{**small, **more}), grown, parallel=2)
    assert done_again(grown) == (done_again(whole) - before if removed else done_again(whole))
    assert all(path.read_text() == "x" for path in grown.glob("runs/*/*/attempts"))
    known = files(grown)
    for name in known.keys() - files(whole).keys():  # the curve of a combination that was chosen before
        assert name.startswith("curves/")
    assert {name: known[name] for name in files(whole)} == files(whole)


@pytest.mark.thorough
@fake
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("less", "told"),
    [
        ({"recipes": ("egspo", "d1")}, "recipes was ['egspo', 'egspo_sa'], now ['egspo']"),
        ({"tasks": (TaskSpec("other"),)}, "comparison.tasks.default was"),
        ({"seeds": 1}, "seeds was 2, now 1"),
        ({"evaluations": 2}, "evaluations was 10, now 2"),
        (
            {"sets": (*FEW, "Trainer.learning_rate=1e-5")},
            "the recipe of default/egspo was another one (was `Trainer.le",
        ),
    ],
)
def test_what_would_leave_runs_out_is_refused(tmp_path: Path, less: dict[str, object], told: str) -> None:
    compare(spec(), tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(UserError) as error:
        compare(spec(**less), tmp_path / "out")
    assert told in str(error.value)
    assert files(tmp_path / "out") == before


@pytest.mark.thorough
@fake
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("keep", ["all", "models", "none"])
def test_weights_of_finished_runs_alone_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Keep
) -> None:
    failing = "default-egspo_sa/seed-1"
    monkeypatch.setenv("FAILS", failing)
    compare(spec(), tmp_path / "out", keep=keep)
    kept = {"all": WEIGHTS, "models": WEIGHTS - {"checkpoints", "best"}, "none": set()}
    for run in (tmp_path / "out/runs").glob("*/*"):
        weights = {path.name for path in run.iterdir() if path.is_dir()}
        name = run.relative_to(tmp_path / "out/runs").as_posix()
        assert weights == (WEIGHTS if name == failing else kept[keep]), name
    rows = (tmp_path / "out/runs.csv").read_text()
    monkeypatch.delenv("FAILS")
    compare(spec(), tmp_path / "out", keep="none")  # an earlier one may have kept more
    assert not [path for path in (tmp_path / "out/runs").glob("*/*/*") if path.is_dir()]
    assert (tmp_path / "out/runs.csv").read_text().startswith(rows.rpartition("default,egspo_sa,1")[0])


@fake
def test_a_table_without_its_curve_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        compare(spec(), out, parallel=1, observer=StopsAfter(1))
    (curve,) = out.glob("curves/*.csv")
    curve.unlink()
    with pytest.raises(CheckpointError, match=f"{curve.name} is missing or no table of update"):
        compare(spec(), out)
