"""``dlmrl ablate``: the design and its verification, the scheduling, the statistics, and real runs killed and resumed.

Most tests replace the process that trains by one that only writes what a run leaves behind; the last ones train.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import dlmrl_kit.experiments.runs as scheduling
from dlmrl_kit.cli.app import app
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.experiments import Observer, ablate, make_design
from dlmrl_kit.experiments.aggregate import COVERAGE, Estimate, estimate, interval
from dlmrl_kit.experiments.compare import compare
from dlmrl_kit.experiments.design import Design
from dlmrl_kit.experiments.runs import Job
from dlmrl_kit.recipe.load import load_recipe, recipes_dir
from dlmrl_kit.report.ablation_console import RichObserver
from dlmrl_kit.training import train

FAKE_RUN = """
import json, os, pathlib, sys, time
task = json.loads(sys.stdin.readline())
folder = pathlib.Path(task["folder"])
name = folder.parent.name + "/" + folder.name
with (folder / "attempts").open("a") as file:
    file.write(os.environ["OMP_NUM_THREADS"])
(folder / "recipe.gin").write_text("# header" + chr(10) * 2 + task["text"])
case = os.environ.get("FAKE_" + name.replace("/", "_").replace("-", "_"), "")
if case == "fails":
    print("a message of the run")
    (folder / "failed.json").write_text(json.dumps({"error": "the loss is not finite"}))
    sys.exit(1)
if case == "dies":
    os.kill(os.getpid(), 9)
if case == "hangs":
    while os.read(0, 1):
        pass
    sys.exit(1)
seed = int(folder.name.split("-")[1])
bonus = {"base": 0, "selector-UniformSteps": 1, "selector-FirstK": -1}[folder.parent.name]
after = (40 + 2 * seed ** 2 + bonus * (1 + seed % 2)) / 100
fixed = {"split": "heldout", "size": 50, "reward": 0.5, "components": {"c": 0.25}}
entry = lambda accuracy: {**fixed, "accuracy": accuracy}
rows = [(u, m, v) for u in range(20) for m, v in (("reward", after + u / 100 + seed / 50), ("seconds", time.time()))]
rows += [(0, "eval/accuracy", 0.4), (20, "eval/accuracy", after)]
(folder / "metrics.csv").write_text("".join("%s,%s,%s\\n" % row for row in [("update", "metric", "value"), *rows]))
(folder / "evaluations.json").write_text(json.dumps({"0": entry(0.4), "20": entry(after)}))
(folder / "result.json").write_text(json.dumps({"updates": 20, "before": entry(0.4), "after": entry(after)}))
"""

TINY = [
    *("Sampler.tokens_per_step=4", "Trainer.updates=3", "Trainer.prompts_per_update=2", "Trainer.group_size=3"),
    *("Trainer.learning_rate=0.001", "Trainer.eval_every=2", "Trainer.eval_size=4", "Trainer.checkpoint_every=1"),
    *("Sudoku4x4.num_train=8", "Sudoku4x4.num_heldout=4"),
]
TABLES = ("results.csv", "summary.csv", "summary.json")
SWAPS = ["selector=UniformSteps,FirstK"]


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "_COMMAND", (sys.executable, "-I", "-S", "-c", FAKE_RUN))
    monkeypatch.setattr(scheduling, "_POLL_SECONDS", 0.01)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("dlmrl_kit.experiments.ablation._uses_gpu", lambda _: False)


fake = pytest.mark.usefixtures("_fake")


def design(swaps: list[str] | None = None, seeds: int = 3, recipe: str = "egspo", **options: Any) -> Design:
    options.setdefault("sets", ["Trainer.updates=20"])
    return make_design(recipe, swaps or SWAPS, seeds=seeds, **options)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def dlmrl(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["ablate", *arguments])


def test_variants_differ_in_the_swapped_slot_alone() -> None:
    made = design(["selector=EntropyTopK,UniformSteps,AllSteps", "regulariser=none,KLK1+KLK2"], seeds=2)
    names = [variant.name for variant in made.variants]
    assert names == [
        *("base", "selector=UniformSteps", "selector=AllSteps"),
        *("regulariser=none", "regulariser=KLK1+KLK2"),
    ]
    assert len({variant.folder for variant in made.variants}) == 5
    uniform = made.variants[1].difference
    assert uniform is not None
    assert uniform.slot == ("Algorithm.selector", "EntropyTopK", "UniformSteps")
    assert uniform.only_base == {"EntropyTopK.k": "4"}  # the recipe binds Selector.k, which carries over
    assert uniform.only_variant == {"UniformSteps.k": "4"}
    assert uniform.equal == len(made.variants[0].recipe.bindings) - 2
    assert "selector=EntropyTopK is the base recipe's own, and is not run twice" in made.notes
    assert any("AllSteps takes no parameter k" in note for note in made.notes)
    for variant in made.variants:
        assert variant.updates == 20
        for seed, text in variant.texts.items():
            assert f"\nTrainer.seed = {seed}" in text
    assert made.label("base") == "base (selector=EntropyTopK, regulariser=KLK3)"


def test_settings_of_one_variant_are_for_that_variant() -> None:
    sets = ["EntropyTopK.k=2", "UniformSteps.k=3", "Trainer.updates=5"]
    made = design(["selector=UniformSteps,FirstK"], sets=sets)
    found = [variant.recipe.bindings for variant in made.variants]
    assert found[0]["EntropyTopK.k"].value == 2
    assert found[1]["UniformSteps.k"].value == 3
    assert found[2]["FirstK.k"].value == 4
    assert all(bindings["Trainer.updates"].value == 5 for bindings in found)
    assert "--set UniformSteps.k=3 is for selector=UniformSteps only" in made.notes
    assert any(
        note.startswith("selector=UniformSteps: UniformSteps.k is 3, but EntropyTopK.k is 2") for note in made.notes
    )


def test_what_a_swapped_sampler_changes_besides_is_said() -> None:
    assert any(note.startswith("sampler: ") for note in design(["sampler=RandomOrder"], seeds=1).notes)


@pytest.mark.parametrize(
    ("swaps", "options", "message"),
    [
        (["selector"], {}, "--swap selector: write --swap KIND=A,B"),
        (["selector=FirstK,"], {}, "write --swap KIND=A,B"),
        (["selecter=FirstK"], {}, "selecter=FirstK: no slot named 'selecter'; did you mean 'selector'"),
        (["selector=First"], {}, "selector=First: no selector named 'First'; did you mean 'FirstK'"),
        (["selector=EntropyTopK"], {}, "nothing to compare: selector=EntropyTopK is the base recipe's own"),
        (["loss=none"], {}, "loss=none: a loss is needed"),
        (["logger=none"], {}, "logger=none: an ablation reads metrics.csv"),
        (SWAPS, {"seeds": 0}, "at least one seed"),
        (SWAPS, {"sets": ["Trainer.seed=1"]}, "base: --set Trainer.seed=1: an ablation sets the seeds itself"),
        (SWAPS, {"sets": ["LastK.k=1"]}, "LastK.k=1 has no effect: .*; no variant uses it either"),
        (SWAPS, {"sets": ["UniformStep.k=1"]}, "base: --set UniformStep.k=1: no component named 'UniformStep'"),
        (
            SWAPS,
            {"sets": ["UniformSteps.k=0"]},
            "selector=UniformSteps: .*UniformSteps.k must be an integer, at least 1",
        ),
        (SWAPS, {"recipe": "pretrain_sudoku4x4"}, "base: pretrain_sudoku4x4 is a recipe for Pretraining"),
        (SWAPS, {"recipe": "nothing"}, "base: no recipe named 'nothing'"),
        (
            ["likelihood=StepLogProb"],
            {"uses": ["loss=TokenPPO"]},
            r"likelihood=StepLogProb: .* TokenPPO reads \('selected', 'token_log_prob'\)",
        ),
    ],
)
def test_mistakes_name_the_variant(swaps: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        design(swaps, **options)


def test_recipes_that_differ_in_more_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def sloppy(source: Any, *, uses: Any, sets: Any, allow_imports: bool) -> Any:
        more = ["Trainer.learning_rate=0.5"] if "selector=FirstK" in uses else []
        return load_recipe(source, uses=uses, sets=[*sets, *more], allow_imports=allow_imports)

    monkeypatch.setattr("dlmrl_kit.experiments.design.load_recipe", sloppy)
    with pytest.raises(
        UserError, match=r"selector=FirstK differs .* Trainer.learning_rate: 0.0003 in the base, 0.5 here"
    ):
        design()


def test_comparing_looks_at_scopes_and_parts_of_components() -> None:
    sets = ["OneStepDenoise.baseline=@a/GroupZScore()", "a/GroupZScore.eps=0.1"]
    base, variant = load_recipe("egspo_sa"), load_recipe("egspo_sa", sets=sets)
    assert compare(base, variant, "selector").unwanted.startswith("OneStepDenoise.baseline: @GroupMean() in the base")
    assert compare(base, load_recipe("egspo_sa", uses=["advantage=GroupMean"]), "advantage").unwanted == ""
    assert compare(base, load_recipe("egspo_sa", uses=["loss=Reinforce"]), "selector").unwanted


@fake
def test_tables_of_finished_runs(tmp_path: Path) -> None:
    summary = ablate(design(), tmp_path / "out", parallel=2)
    out = tmp_path / "out"
    assert not summary.failed
    tidy = rows(out / "results.csv")
    assert list(tidy[0]) == ["run", "seed", "swap", "step", "metric", "value"]
    assert {row["metric"] for row in tidy} == {"reward", "eval/accuracy", "eval/reward", "eval/reward/c"}  # no times
    assert {(row["swap"], row["seed"]) for row in tidy} == {
        (v.name, str(s)) for v in summary.design.variants for s in range(3)
    }
    ends = {
        (r["swap"], r["seed"]): float(r["value"]) for r in tidy if (r["metric"], r["step"]) == ("eval/accuracy", "20")
    }
    for line, row in zip(summary.lines, rows(out / "summary.csv"), strict=True):
        values = [ends[line.swap, str(seed)] for seed in range(3)]
        pairs = [value - ends["base", str(seed)] for seed, value in enumerate(values)]
        assert float(row["accuracy"]) == pytest.approx(np.mean(values))
        assert min(values) <= float(row["accuracy_low"]) < np.mean(values) < float(row["accuracy_high"]) <= max(values)
        assert float(row["before"]) == 0.4
        if line.swap == "base":
            assert row["difference"] == row["difference_low"] == ""
        else:
            assert float(row["difference"]) == pytest.approx(np.mean(pairs))
            # Seeds differ much more than variants do: pairing takes that out.
            spread = float(row["difference_high"]) - float(row["difference_low"])
            assert spread < (float(row["accuracy_high"]) - float(row["accuracy_low"])) / 2
    assert any("about 75% of 95% bootstrap intervals over 3 seeds" in note for note in summary.notes)
    stored = json.loads((out / "summary.json").read_text())
    assert stored == summary.to_json()
    assert stored["differences"]["selector=FirstK"]["only_variant"] == {"FirstK.k": "4"}
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


@fake
def test_finished_runs_are_not_repeated_and_failed_ones_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_selector_FirstK_seed_1", "fails")
    monkeypatch.setenv("FAKE_base_seed_2", "dies")
    out = tmp_path / "out"
    summary = ablate(design(), out, parallel=3)
    assert {job.name: job.error for job in summary.failed} == {
        "selector-FirstK/seed-1": "the loss is not finite",
        "base/seed-2": "the process was killed by SIGKILL",
    }
    assert summary.failed[0].log.read_text() == "a message of the run\n"
    assert json.loads((out / "runs/base/seed-2/failed.json").read_text()) == {
        "error": "the process was killed by SIGKILL"
    }
    counts = {line.swap: (line.finished, line.failed, line.difference and line.difference.n) for line in summary.lines}
    assert counts == {"base": (2, 1, None), "selector=UniformSteps": (3, 0, 2), "selector=FirstK": (2, 1, 1)}
    assert "failed runs are left out; the same command tries them again" in summary.notes
    stored = json.loads((out / "summary.json").read_text())
    assert [r["log"] for r in stored["runs"] if r["status"] == "failed"] == [
        "runs/selector-FirstK/seed-1/log.txt",
        "runs/base/seed-2/log.txt",
    ]
    monkeypatch.delenv("FAKE_selector_FirstK_seed_1")
    monkeypatch.delenv("FAKE_base_seed_2")
    assert not ablate(design(), out, parallel=1).failed
    attempts = {str(p.parent.relative_to(out / "runs")): len(p.read_text()) for p in out.glob("runs/*/*/attempts")}
    assert {name: count for name, count in attempts.items() if count > 1} == {
        "selector-FirstK/seed-1": 2,
        "base/seed-2": 2,
    }
    assert not list(out.glob("runs/*/*/failed.json"))
    ablate(design(), tmp_path / "whole", parallel=2)
    for table in TABLES:
        assert (out / table).read_text() == (tmp_path / "whole" / table).read_text()


@fake
def test_threads_stay_what_they_were_when_the_folder_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmrl_kit.experiments.ablation.cores", lambda: 4)
    monkeypatch.setenv("FAKE_base_seed_0", "fails")
    ablate(design(seeds=1), tmp_path, parallel=2)
    ablate(design(seeds=1), tmp_path, parallel=1)
    assert (tmp_path / "runs/base/seed-0/attempts").read_text() == "22"


@fake
def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    summary = ablate(design(seeds=1), tmp_path)
    assert summary.lines[1].accuracy == Estimate(0.41, None, None, 1)
    assert summary.lines[1].difference == Estimate(0.01, None, None, 1)
    assert "one run has no interval: give more --seeds" in summary.notes
    assert rows(tmp_path / "summary.csv")[1]["accuracy_low"] == ""


@fake
def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ablate(design(seeds=1), out)
    for other, message in [
        (design(seeds=2), r"seeds was \[0\], now \[0, 1\]"),
        (design(["selector=FirstK"], seeds=1), "it had selector=UniformSteps"),
        (design([*SWAPS, "loss=Reinforce"], seeds=1), "it did not have loss=Reinforce"),
        (design(seeds=1, sets=["Trainer.updates=21"]), "was `Trainer.updates = 20`, now `Trainer.updates = 21`"),
        (design(seeds=1, recipe="egspo_sa"), "recipe was egspo, now egspo_sa"),
    ]:
        with pytest.raises(UserError, match="out holds another ablation: .*" + message.replace("`", ".")):
            ablate(other, out)
    (tmp_path / "file").touch()
    for folder, message in [
        (tmp_path, "is not empty and holds no ablation"),
        (tmp_path / "file" / "x", "is no folder"),
    ]:
        with pytest.raises(UserError, match=message):
            ablate(design(seeds=1), folder)
    recipe = out / "runs/base/seed-0/recipe.gin"
    recipe.write_text(recipe.read_text().replace("Trainer.updates = 20", "Trainer.updates = 30"))
    with pytest.raises(UserError, match="seed-0 holds a run of another recipe"):
        ablate(design(seeds=1), out)
    (out / "ablation.json").write_text("{}")
    with pytest.raises(UserError, match="is not the design of an ablation"):
        ablate(design(seeds=1), out)


@fake
def test_a_kill_while_the_folder_is_made_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".ablation.json.tmp1").write_text("{")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlmrl_kit.experiments.ablation.recipe_file", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ablate(design(seeds=1), tmp_path)
    assert not (tmp_path / "recipes").exists()
    assert not ablate(design(seeds=1), tmp_path).failed


@fake
def test_an_interrupt_stops_every_run_and_locks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: processes.append(popen(*a, **k)) or processes[-1])

    class Impatient(Observer):
        def on_status(self, job: Job) -> None:
            if job.status == "finished":
                with pytest.raises(UserError, match="another process is working on"):
                    ablate(design(), tmp_path / "out")
                raise KeyboardInterrupt

    monkeypatch.setenv("FAKE_base_seed_0", "hangs")
    with pytest.raises(KeyboardInterrupt):
        ablate(design(), tmp_path / "out", parallel=2, observer=Impatient())
    assert [process.poll() is not None for process in processes] == [True, True]
    monkeypatch.delenv("FAKE_base_seed_0")
    assert not ablate(design(), tmp_path / "out").failed


@fake
def test_the_command_prints_json_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["egspo", "--swap", SWAPS[0], "--seeds", "2", "--out", str(tmp_path / "out")]
    result = dlmrl(*arguments, "--set", "Trainer.updates=20", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "out/summary.json").read_text())
    assert [v["swap"] for v in found["variants"]] == ["base", "selector=UniformSteps", "selector=FirstK"]
    assert "verified: selector=FirstK differs in Algorithm.selector (EntropyTopK -> FirstK)" in result.stderr
    assert "Trainer.updates = 20" in (tmp_path / "out/recipes/base.gin").read_text()


@fake
def test_the_command_shows_a_table_and_tells_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_selector_FirstK_seed_1", "fails")
    arguments = ["egspo", "--swap", SWAPS[0], "--seeds", "2", "--out", str(tmp_path / "out")]
    result = dlmrl(*arguments, "--set", "Trainer.updates=20")
    assert result.exit_code == 1, result.output
    squeezed = " ".join(result.stdout.split())
    for expected in (
        *("6 runs; ", "base/seed-0: starts", "base/seed-0: finished, accuracy 40.0% -> 40.0%"),
        "accuracy on 50 puzzles of heldout after 20 updates, greedy",
        "base (selector=EntropyTopK) 2 40.0% 41.0% [40.0, 42.0]",
        "selector=UniformSteps 2 40.0% 42.5% [41.0, 44.0] +1.5 points [+1.0, +2.0]",
        "selector=FirstK 1 (1 failed) 40.0% 39.0% — -1.0 points —",
        "failed: selector-FirstK/seed-1: the loss is not finite; see",
        str(tmp_path / "out" / "curves.png"),
    ):
        assert expected in squeezed, (expected, result.stdout)
    again = dlmrl(*arguments, "--set", "Trainer.updates=21")
    assert again.exit_code == 2
    assert "holds another ablation" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("egspo", "--swap", "selector=First", "--out", "x"), 2, "error: selector=First: no selector named 'First'"),
        (("egspo", "--out", "x"), 2, "--swap"),
        (("egspo", "--swap", "selector=FirstK"), 2, "--out"),
        (("egspo", "--swap", "selector=FirstK", "--out", "x", "--seeds", "0"), 2, "--seeds"),
        (("--help",), 0, "Example: dlmrl ablate egspo"),
    ],
)
def test_wrong_usage(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = dlmrl(*arguments)
    assert (result.exit_code, message in result.output) == (code, True), result.output
    assert not list(tmp_path.iterdir())


@fake
def test_the_display_on_a_terminal(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, highlight=False)
    ablate(design(seeds=1), tmp_path, parallel=1, observer=RichObserver(console))
    shown = screen.getvalue()
    assert "base/seed-0: finished, accuracy 40.0% -> 40.0%" in shown
    assert "3/3" in shown


@fake
def test_more_variants_than_colours_are_drawn(tmp_path: Path) -> None:
    from dlmrl_kit.experiments.curves import COLOURS, _look, plot_curves

    looks = [_look(number, "x" if number else "base") for number in range(1 + 3 * len(COLOURS))]
    assert len(set(looks)) == len(looks)
    summary = ablate(design(seeds=1), tmp_path)
    failed = [replace(job, status="failed") for job in summary.jobs]
    assert plot_curves(replace(summary, jobs=failed), tmp_path).is_file()  # nothing to draw, and no error


def test_estimates_are_the_same_for_the_same_values() -> None:
    assert estimate([]) == Estimate(None, None, None, 0)
    assert estimate([0.3]) == Estimate(0.3, None, None, 1)
    assert estimate([0.1, 0.1, 0.1]) == Estimate(0.1, 0.1, 0.1, 3)
    assert estimate([0.1, 0.4]) == Estimate(0.25, 0.1, 0.4, 2)
    values = np.random.default_rng(0).normal(size=40).tolist()
    found = estimate(values)
    assert found == estimate(values)
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * np.std(values) / np.sqrt(40)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_stated_coverage_is_what_is_measured() -> None:
    for seeds in (2, 3, 5, 10):
        values = np.random.default_rng(seeds).normal(size=(seeds, 1500))
        low, high = interval(values.tolist(), resamples=599)
        covered = np.mean([a <= 0 <= b for a, b in zip(low, high, strict=True)])
        assert 100 * covered == pytest.approx(COVERAGE[seeds], abs=4)


def test_a_worker_ends_when_its_starter_is_gone() -> None:
    code = (
        "import sys, threading, time; from dlmrl_kit.experiments.run_worker import end_with_starter; "
        "threading.Thread(target=end_with_starter, daemon=True).start(); print('up', flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.stdin.close()
    assert process.wait(30) == 1
    process.stdout.close()


def test_a_worker_refuses_a_recipe_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlmrl_kit.experiments import run_worker as worker

    monkeypatch.setattr(worker, "end_with_starter", lambda: None)
    recipe = str(recipes_dir() / "egspo.gin")
    old = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit, match="1"):
            worker.main(recipe=recipe, folder=str(tmp_path), seed="Trainer.seed=1", text="another", allow_imports=False)
    finally:
        signal.signal(signal.SIGINT, old)
    assert "is not the recipe of this run" in json.loads((tmp_path / "failed.json").read_text())["error"]


def options(swaps: str, seeds: int, out: Path, jobs: int = 2) -> list[str]:
    sets = [word for binding in TINY for word in ("--set", binding)]
    return ["egspo", "--swap", swaps, "--seeds", str(seeds), "--out", str(out), "--jobs", str(jobs), *sets]


@pytest.fixture
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)


def killed(arguments: list[str], moment: Callable[[], bool]) -> None:
    """Runs the command in a process group of its own and kills the whole group at some moment."""
    command = [sys.executable, "-c", "from dlmrl_kit.cli.app import main; main()", "ablate", *arguments]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not moment() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def same_tables(one: Path, two: Path) -> None:
    for table in TABLES:
        assert (one / table).read_text() == (two / table).read_text(), table


def plain_runs(scheduler: scheduling.Scheduler, jobs: list[Job]) -> None:
    """What ``dlmrl train`` does for each run, in this process."""
    for job in jobs:
        recipe = load_recipe(scheduling.recipe_file(scheduler.folder, job.variant), sets=[f"Trainer.seed={job.seed}"])
        train(recipe, job.folder)
        job.status = "finished"


@pytest.mark.usefixtures("_one_thread")
def test_a_killed_ablation_goes_on_to_the_tables_of_plain_runs(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling.Scheduler, "run", plain_runs)
        assert dlmrl(*options("selector=UniformSteps", 1, whole)).exit_code == 0
    assert len(rows(whole / "results.csv")) > 50
    killed(options("selector=UniformSteps", 1, cut, jobs=1), lambda: any(cut.glob("runs/*/*/checkpoints/update-*")))
    assert not (cut / "results.csv").exists()
    result = dlmrl(*options("selector=UniformSteps", 1, cut))
    assert result.exit_code == 0, result.output
    assert "goes on" in result.output
    for name in ("recipe.gin", "metrics.csv", "model/config.json", "result.json", "curve.png", "log.txt"):
        assert (cut / "runs/selector-UniformSteps/seed-0" / name).is_file()
    same_tables(whole, cut)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_one_thread")
def test_three_selectors_by_two_seeds_killed_twice_give_the_same_tables(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    swaps = "selector=EntropyTopK,UniformSteps,RandomSteps"
    assert dlmrl(*options(swaps, 2, whole)).exit_code == 0
    killed(options(swaps, 2, cut), lambda: any(cut.glob("runs/*/*/checkpoints/update-*")))
    killed(options(swaps, 2, cut), lambda: len(list(cut.glob("runs/*/*/result.json"))) >= 3)
    assert not (cut / "results.csv").exists()
    result = dlmrl(*options(swaps, 2, cut))
    assert result.exit_code == 0, result.output
    assert "finished already" in result.output
    assert {job["status"] for job in json.loads((cut / "summary.json").read_text())["runs"]} == {"finished"}
    assert len(rows(cut / "summary.csv")) == 3
    same_tables(whole, cut)
