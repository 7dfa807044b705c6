"""Comparisons: their specification, their budget, tuning, claims and files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from support.comparisons import (
    FEW,
    GRID,
    dlmrl,
    done_again,
    fake,
    fake_comparisons,
    files,
    forget_runs,
    no_figures,
    spec,
)
from support.fake_runs import plain_runs
from support.process_ends import killed
from support.runs import recipe

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.experiments.forwards import count_forwards, forwards_per_update
from dlmrl_kit.experiments.referee.entries import make_entries
from dlmrl_kit.experiments.referee.report import write_report
from dlmrl_kit.experiments.referee.run import compare, stored_question
from dlmrl_kit.experiments.referee.spec import Algorithm, Claim, TaskSpec
from dlmrl_kit.experiments.referee.spec_file import read_spec
from dlmrl_kit.experiments.runs import Scheduler
from dlmrl_kit.training import train

__all__ = ["fake_comparisons", "no_figures"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("recipes = [", "is not TOML"),
        ("recipe = ['egspo']", "unknown key 'recipe'; known are"),
        ("recipes = ['egspo', 'd1']", "the key forwards is missing"),
        ("recipes = 'egspo'\nforwards = 1", "recipes must be a list of texts"),
        ("recipes = ['egspo', 'd1']\nforwards = true", "forwards must be a whole number, got True"),
        ("recipes = ['egspo']\nforwards = 1", "at least two recipes"),
        ("recipes = ['egspo', 'egspo']\nforwards = 1", "the recipe egspo is named twice"),
        ("recipes = ['egspo', 'd1']\nforwards = 1\nbase = 'wd1'", "the base wd1 is none of the recipes: egspo, d1"),
        ("recipes = ['egspo', 'd1']\nforwards = 0", "needs forwards >= 1, got 0"),
        ("recipes = ['egspo', 'd1']\nforwards = 1\n[tune]\n'Trainer.lr' = []", "tune.Trainer.lr must be a list"),
        ("recipes = ['egspo', 'd1']\nforwards = 1\n[tune]\n'Trainer.lr' = [1]", "never on those that are reported"),
        ("recipes = ['egspo', 'd1']\nforwards = 1\n[tasks]\na = 3", "tasks.a must be a table with use and set"),
        ("recipes = ['egspo', 'd1']\nforwards = 1\n[tasks.a]\nuses = []", "tasks.a must be a table with use and set"),
        ("recipes = ['egspo', 'd1']\nforwards = 1\n[tasks.a]\nset = 'x'", "set must be a list of texts"),
        ("recipes = ['egspo', 'd1']\nforwards = 1\n[variants.a]\nset = []", "variants.a.recipe must be a text"),
        ("recipes = ['egspo']\nforwards = 1\n[variants.egspo]\nrecipe = 'd1'", "two algorithms are named egspo"),
        ("recipes = ['egspo']\nforwards = 1\n[variants.'a/b']\nrecipe = 'd1'", "a variant cannot be named 'a/b'"),
        ("forwards = 1\n[variants.a]\nrecipe = 'd1'", "at least two recipes"),
        ("forwards = 1\n[variants.a]\nrecipe = 'd1'\nsets = []", "a table with recipe and use and set"),
        (
            "recipes = ['egspo', 'd1']\nforwards = 1\nclaims = ['d1']",
            "claim 1 must be a table with text, better, worse, by and task",
        ),
        ("recipes = ['egspo', 'd1']\nforwards = 1\n[[claims]]\nbetter = 'd1'", "worse of claim 1 must be a text"),
        (
            "recipes = ['egspo', 'd1']\nforwards = 1\n[[claims]]\nbetter = 'd1'\nworse = 'wd1'",
            "the claim 'd1 is better than wd1' is about 'wd1', which is none of egspo, d1",
        ),
        (
            "recipes = ['egspo', 'd1']\nforwards = 1\n[[claims]]\nbetter = 'd1'\nworse = 'egspo'\nby = 5",
            "by of claim 1 must be a difference of accuracies from 0 to 1, got 5",
        ),
        (
            "recipes = ['egspo', 'd1']\nforwards = 1\n[[claims]]\nbetter = 'd1'\nworse = 'egspo'\ntask = 1",
            "task of claim 1 must be a text",
        ),
        (
            "recipes = ['egspo', 'd1']\nforwards = 1\n[[claims]]\nbetter = 'd1'\nworse = 'egspo'\ntask = 'x'",
            "is about the task 'x': tasks are default",
        ),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_spec(path)
    assert str(error.value).startswith(str(path))
    assert told in str(error.value)


def test_a_file_says_what_options_say(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(
        "recipes = ['egspo', 'mine/own.gin']\nforwards = 1050\nseeds = 2\nvalidation = 8\naudit = true\n"
        "set = ['A.b=1']\n"
        "[tune]\n'Trainer.learning_rate' = [1e-4, 3e-4]\n[tasks.hard]\nuse = ['task=Sudoku4x4']\nset = ['A.c=2']\n"
    )
    found = read_spec(path)
    assert found == spec(
        recipes=("egspo", str(tmp_path / "mine/own.gin")),
        validation=8,
        audit=True,
        sets=("A.b=1",),
        grid={"Trainer.learning_rate": ("0.0001", "0.0003")},
        tasks=(TaskSpec("hard", ("task=Sudoku4x4",), ("A.c=2",)),),
    )


@fake
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"recipes": ("egspo", "egspo_saa")}, "egspo_saa on default: no recipe"),
        ({"recipes": ("egspo", "pretrain_sudoku4x4")}, "pretrain_sudoku4x4 on default: it is a recipe for Pretraining"),
        ({"forwards": 99}, "egspo on default: one update takes 100 forwards, more than the budget of 99"),
        ({"sets": (*FEW, "EntropyTopK.kk=3")}, "EntropyTopK.kk"),
        ({"sets": (*FEW, "UniformSteps.k=3")}, "UniformSteps.k=3 concerns no component of any recipe on default"),
        ({"sets": (*FEW, "Trainer.seed=3")}, "Trainer.seed"),
        ({"grid": {"UniformSteps.k": ("1", "2")}, "validation": 8}, "UniformSteps.k is to be tuned, but no recipe"),
        ({"tasks": (TaskSpec("t", ("task=Nothing",)),)}, "egspo on t: "),
        (
            {"variants": (Algorithm("even", "egspo", ("selector=UniformSteps",), ("EntropyTopK.k=2",)),)},
            "even on default: ",
        ),
        ({"uses": ("logger=TensorBoard",)}, "which no logger of this recipe writes: add MetricsCSV"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    with pytest.raises(UserError) as error:
        compare(spec(**changes), tmp_path / "out")
    assert told in str(error.value)
    assert not (tmp_path / "out" / "runs").exists()


@fake
def test_the_budget_says_how_many_updates(tmp_path: Path) -> None:
    entries = make_entries(spec(tasks=(TaskSpec("a"), TaskSpec("b"))), {"b/egspo_sa": 300.0})
    assert {entry.name: (entry.forwards, entry.updates) for entry in entries} == {
        **dict.fromkeys(("a/egspo", "a/egspo_sa", "b/egspo"), (100.0, 10)),
        "b/egspo_sa": (300.0, 3),
    }
    assert {variant.updates for entry in entries for variant in entry.variants} == {10, 3}


@fake
def test_a_variant_is_a_recipe_with_something_changed(tmp_path: Path) -> None:
    even = Algorithm("even", "egspo", ("selector=UniformSteps",), ("UniformSteps.k = 2",))
    entries = make_entries(spec(recipes=("egspo",), variants=(even,)), {})
    assert [entry.name for entry in entries] == ["default/egspo", "default/even"]
    texts = [entry.variants[0].texts[1] for entry in entries]
    assert ["UniformSteps.k = 2" in text for text in texts] == [False, True]
    assert ["@EntropyTopK()" in text for text in texts] == [True, False]


@fake
@pytest.mark.usefixtures("no_figures")
def test_claims_may_be_asked_later_and_of_the_tables_alone(tmp_path: Path) -> None:
    claims = (Claim("steps help", "egspo_sa", "egspo"), Claim("much", "egspo_sa", "egspo", by=0.5))
    out = tmp_path / "out"
    compare(spec(), out, parallel=1)
    forget_runs(out)
    report, _ = compare(spec(claims=claims), out, parallel=1)  # every pair differs by 0.1: two seeds tell nothing
    assert [verdict.verdict for verdict in report.verdicts] == ["cannot be told"] * 2
    assert not done_again(out)
    before = files(out)
    assert b"| much (by 50 points) | default | cannot be told | +10.0 |" in before["table.md"]
    (out / "claims.csv").unlink()
    code, said = dlmrl("--tables", "--out", str(out))
    assert (code, "much (by 50 points)" in said) == (0, True)
    assert files(out) == before


@pytest.mark.thorough
@fake
def test_settings_are_tuned_on_validation_with_seeds_of_their_own(tmp_path: Path) -> None:
    asked = spec(grid={**GRID, "OneStepDenoise.lam": ("0.25", "1.0")}, validation=8, recipes=("egspo", "egspo_sa"))
    entries = make_entries(asked, {})
    assert [len(entry.points) for entry in entries] == [2, 4]  # egspo has no such component
    report, failed = compare(asked, tmp_path / "out")
    assert not failed
    runs = {path.relative_to(tmp_path / "out/runs").as_posix() for path in (tmp_path / "out/runs").glob("*/*")}
    assert {run for run in runs if run.endswith("seed-1000")} == {
        *(f"default-egspo-{point}/seed-1000" for point in range(2)),
        *(f"default-egspo_sa-{point}/seed-1000" for point in range(4)),
    }
    assert {run for run in runs if not run.endswith("seed-1000")} == {
        f"default-{name}-0/seed-{seed}" for name in ("egspo", "egspo_sa") for seed in range(2)
    }
    assert {row.recipe: row.settings for row in report.rows}["egspo"] == "Trainer.learning_rate = 1e-4"
    difference = report.rows[1].difference
    assert difference is not None
    assert difference.value.mean == pytest.approx(0.1)
    assert report.ranks["egspo_sa"].mean == 1


@pytest.mark.thorough
@fake
def test_settings_that_fail_are_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILS", "default-egspo-0/seed-1000")
    report, failed = compare(spec(grid=GRID, validation=8), tmp_path / "out")
    assert [job.name for job in failed] == ["default-egspo-0/seed-1000"]
    settings = {row.recipe: row.settings for row in report.rows}
    assert settings == {"egspo": "Trainer.learning_rate = 3e-4", "egspo_sa": "Trainer.learning_rate = 1e-4"}


@pytest.mark.thorough
@fake
def test_a_failed_run_is_told_counted_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    compare(spec(), whole)
    monkeypatch.setenv("FAILS", "default-egspo_sa/seed-1")
    report, failed = compare(spec(), cut)
    assert [job.name for job in failed] == ["default-egspo_sa/seed-1"]
    assert [(row.finished, row.failed, row.collapsed) for row in report.rows] == [(2, 0, 0), (1, 1, 1)]
    assert files(cut) != files(whole)
    monkeypatch.delenv("FAILS")
    compare(spec(), cut)
    assert files(cut) == files(whole)
    assert (cut / "runs/default-egspo_sa/seed-0/attempts").read_text() == "x"  # a finished run is not run again


def leave_out_seconds(out: Path) -> None:
    """Makes tables without the one number that is another one each time."""
    text = (out / "runs.csv").read_text()
    found = list(csv.DictReader(io.StringIO(text)))
    assert all(float(row["seconds"]) > 0 for row in found)
    for row in found:
        text = text.replace(row["seconds"], "")
    (out / "runs.csv").write_text(text)
    write_report(out, *stored_question(out))


@pytest.mark.thorough
@fake
def test_a_folder_holds_one_comparison(tmp_path: Path) -> None:
    compare(spec(), tmp_path / "out")
    with pytest.raises(UserError, match=r"holds another comparison: comparison\.forwards was 1050, now 2000"):
        compare(spec(forwards=2000), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="is not empty and holds no comparison"):
        compare(spec(), tmp_path / "full")


@fake
def test_the_command_writes_and_writes_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["grpo_steps", "egspo", "egspo_sa", "--forwards", "1000", "--seeds", "2", "--out", str(out)]
    code, told = dlmrl(*arguments, *(word for text in FEW for word in ("--set", text)))
    assert code == 0, told
    assert "default/egspo: 10 updates of 100 forwards" in told
    written = files(out)
    wanted = {"table.md", "table.tex", "table.csv", "table.json", "runs.csv", "comparison.json"}
    wanted |= {f"{name}.{form}" for name in ("curves", "differences") for form in ("png", "svg", "pdf")}
    assert wanted < written.keys()
    for name in wanted - {"runs.csv", "comparison.json"}:
        (out / name).unlink()
    code, told = dlmrl("--tables", "--out", str(out), "--json")
    assert code == 0, told
    assert files(out) == written
    found = json.loads((out / "table.json").read_text())
    assert found["base"] == "grpo_steps"
    numbers = list(csv.DictReader(io.StringIO((out / "table.csv").read_text())))
    (final,) = [n for n in numbers if (n["recipe"], n["metric"]) == ("egspo_sa", "final")]
    assert float(final["mean"]) == pytest.approx(0.4 + 0.3 + 0.005)
    assert r"| egspo_sa | 70.5 \[" in (out / "table.md").read_text()
    assert r"egspo\_sa & 70.5 [" in (out / "table.tex").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name at least two recipes, or give --spec FILE"),
        (["egspo", "d1"], "give --forwards N"),
        (["egspo", "--forwards", "9"], "at least two recipes"),
        (["egspo", "d1", "--forwards", "9", "--tune", "Trainer.learning_rate"], "write --tune KEY=A,B"),
        (["egspo", "--spec", "x.toml"], "RECIPE are written in the file of --spec"),
        (["--spec", "x.toml"], "cannot read x.toml"),
        (["egspo", "--tables"], "RECIPE change nothing with --tables"),
        (["--tables"], "holds no comparison"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path: Path, arguments: list[str], told: str) -> None:
    code, text = dlmrl(*arguments, "--out", str(tmp_path / "out"))
    assert code == 2
    assert told in text


@pytest.mark.thorough
@pytest.mark.timeout(280)
def test_recipes_killed_in_the_middle_give_the_tables_of_one_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real runs of recipes by path, as a plugin's are."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names = []
    for name in ("egspo", "egspo_sa"):
        path = tmp_path / f"{name}.gin"
        path.write_text(recipe(name, sets=["Trainer.updates = 2"]).text())
        names.append(str(path))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = [*names, "--forwards", "200", "--seeds", "2", "--jobs", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "run", plain_runs)
        assert dlmrl(*arguments, "--out", str(whole))[0] == 0
    killed("compare", [*arguments, "--out", str(cut)], lambda: any(cut.glob("runs/*/*/result.json")))
    assert not (cut / "table.md").exists()
    code, told = dlmrl(*arguments, "--out", str(cut), "--keep", "none")
    assert code == 0, told
    assert "finished already" in told
    assert list(whole.rglob("*.safetensors"))
    assert not list(cut.rglob("*.safetensors"))
    for out in (whole, cut):
        leave_out_seconds(out)
    assert files(cut) == files(whole)


@pytest.mark.thorough
def test_forwards_are_counted_alike_before_and_while_training(tmp_path: Path) -> None:
    """The budget is in what ``metrics.csv`` counts."""
    small = recipe("egspo", sets=["Trainer.updates = 2", "Trainer.eval_every = 0"])
    path = tmp_path / "own.gin"
    path.write_text(small.text())
    train(small, tmp_path / "run")
    found = list(csv.DictReader(io.StringIO((tmp_path / "run/metrics.csv").read_text())))
    spent = {
        (row["update"], row["metric"]): float(row["value"]) for row in found if row["metric"].startswith("forwards/")
    }
    samples = small.build_algorithm().trainer.prompts_per_update * small.build_algorithm().trainer.group_size
    counted = count_forwards(str(path), ["Trainer.prompts_per_update = 2"])
    for update in "01":
        assert spent[update, "forwards/rollout"] == counted.rollout * samples
        assert spent[update, "forwards/update"] == counted.update * samples
        assert spent[update, "forwards/tokens"] % (spent[update, "forwards/rollout"]) == 0  # one length for all states
    assert forwards_per_update(str(path), [], []) == spent["0", "forwards/rollout"] + spent["0", "forwards/update"]


@pytest.mark.parametrize("name", ["", " ", "a/b", "../x", "..", "a\nb", "a|b", "-a"])
def test_names_of_tasks_that_no_file_can_have_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="a task cannot be named"):
        spec(tasks=(TaskSpec(name),))


def test_a_comparison_without_tasks_is_refused() -> None:
    with pytest.raises(UserError, match="needs a task"):
        spec(tasks=())


def test_tasks_that_would_share_files_are_refused() -> None:
    counted = {f"{task}/{name}": 500.0 for task in ("a b", "a-b") for name in ("egspo", "egspo_sa")}
    with pytest.raises(UserError, match="would share files"):
        make_entries(spec(tasks=(TaskSpec("a b"), TaskSpec("a-b"))), counted)
