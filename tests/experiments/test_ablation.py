"""The runs of an ablation: tables, failures, interrupts, folders of something else."""

from __future__ import annotations

import io
import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.fake_runs import SWAPS, design, fake, rows

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.experiments import ablate, aggregate
from dlmrl_kit.experiments.aggregate import Estimate, Series
from dlmrl_kit.experiments.runs import AblationObserver, Job
from dlmrl_kit.recipe.load import DEFAULT
from dlmrl_kit.report.ablation_tables import ablation_result

TABLES = ("results.csv", "summary.csv", "summary.json")


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


@pytest.mark.thorough
@fake
@pytest.mark.parametrize(
    ("alike", "seeds", "found"),
    [
        (("UniformSteps",), (0, 1), {"selector=UniformSteps": "base"}),
        (("UniformSteps", "FirstK"), (0, 1), {"selector=UniformSteps": "base", "selector=FirstK": "base"}),
        (("UniformSteps",), (0,), {}),  # the other seed differs
        ((), (), {}),
    ],
)
def test_variants_with_equal_metrics_are_one_result(
    alike: tuple[str, ...],
    seeds: tuple[int, ...],
    found: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in alike:
        for seed in seeds:
            monkeypatch.setenv(f"FAKE_selector_{name}_seed_{seed}", "base")
    summary = ablate(design(seeds=2), tmp_path / "out", parallel=2)
    assert {line.swap: line.same_as for line in summary.lines if line.same_as} == found
    stored = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {v["swap"]: v["same_as"] for v in stored["variants"] if v["same_as"]} == found
    for swap, other in found.items():
        assert any(note.startswith(f"{swap} and {other} have the same metrics") for note in summary.notes)
    console = Console(file=io.StringIO(), width=200)
    console.print(ablation_result(summary, tmp_path))
    assert console.file.getvalue().count("(the same as base)") == len(found)  # type: ignore[attr-defined]


@fake
def test_variants_of_which_one_failed_are_compared_in_the_other_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_selector_UniformSteps_seed_0", "fails")
    monkeypatch.setenv("FAKE_selector_UniformSteps_seed_1", "base")
    summary = ablate(design(seeds=2), tmp_path / "out", parallel=2)
    assert [line.same_as for line in summary.lines] == ["", "base", ""]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"loss": [(0, 0.5)]}, {"loss": [(0, 0.5)]}, True),
        ({"loss": [(0, math.nan)]}, {"loss": [(0, math.nan)]}, True),
        ({"loss": [(0, 0.5)], "ratio": [(0, 1.0)]}, {"loss": [(0, 0.5)], "kl": [(0, 0.0)]}, True),
        ({"loss": [(0, 0.5)]}, {"loss": [(0, math.nextafter(0.5, 1))]}, False),
        ({"loss": [(0, 0.5)]}, {"loss": [(0, 0.5), (1, 0.5)]}, False),
        ({"loss": [(0, 0.5)]}, {"reward": [(0, 0.5)]}, False),
    ],
)
def test_metrics_are_compared_to_the_last_bit(one: Series, other: Series, equal: bool) -> None:
    assert aggregate._equal(one, other) is equal


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


@pytest.mark.thorough
@fake
def test_threads_stay_what_they_were_when_the_folder_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmrl_kit.experiments.folder.cores", lambda: 4)
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


@pytest.mark.thorough
@fake
def test_a_run_of_before_a_component_had_one_more_setting_goes_on(tmp_path: Path) -> None:
    ablate(design(seeds=1), tmp_path)
    recipe = tmp_path / "runs/base/seed-0/recipe.gin"
    lines = recipe.read_text().splitlines()
    new = next(line for line in lines if line.endswith(DEFAULT))
    recipe.write_text("\n".join(line for line in lines if line != new))
    assert ablate(design(seeds=1), tmp_path).lines[0].accuracy.mean > 0


@pytest.mark.thorough
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
    with pytest.raises(UserError, match="it describes no ablation"):
        ablate(design(seeds=1), out)


@pytest.mark.thorough
@fake
def test_a_kill_while_the_folder_is_made_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".ablation.json.tmp1").write_text("{")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlmrl_kit.experiments.folder.recipe_file", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ablate(design(seeds=1), tmp_path)
    assert not (tmp_path / "recipes").exists()
    assert not ablate(design(seeds=1), tmp_path).failed


@pytest.mark.thorough
@fake
def test_an_interrupt_stops_every_run_and_locks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: processes.append(popen(*a, **k)) or processes[-1])

    class Impatient(AblationObserver):
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
def test_an_ablation_whose_files_or_packages_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    ablate(design(seeds=1), out)
    stored = json.loads((out / "ablation.json").read_text())
    assert any(path.endswith("model.safetensors") for path in stored["depends"]["files"])
    assert "torch" in stored["depends"]["packages"]
    for section, message in (("files", r"model\.safetensors has changed"), ("packages", "package torch was 0, now")):
        changed = json.loads(json.dumps(stored))
        entries = changed["depends"][section]
        entries[next(key for key in entries if key.endswith("model.safetensors") or key == "torch")] = "0"
        (out / "ablation.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=f"holds runs of something else: .*{message}"):
            ablate(design(seeds=1), out)
