"""docs/run-an-ablation.md is followed as it is written, in an empty folder, with two things replaced.

Small sizes and few seeds are appended to its commands, and the runs are done in this process rather than in
processes of their own (tests/experiments/test_killed_ablations.py does the latter). What the page says a command prints
must be printed, in this order; numbers may be others, and ``...`` stands for any text.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.paths import ROOT
from typer.testing import CliRunner

from dlmrl_kit.cli.app import app
from dlmrl_kit.experiments.runs import Job, Scheduler, recipe_file
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import train

PAGE = (ROOT / "docs" / "run-an-ablation.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(\.\d+)?")
SIZES = {
    "ablate": [
        *("Trainer.updates=2", "Trainer.prompts_per_update=2", "Trainer.group_size=2", "Trainer.eval_size=8"),
        *("Sudoku4x4.num_train=16", "Sudoku4x4.num_heldout=16"),
    ],
    "eval": ["Sudoku4x4.num_heldout=16"],
}


def in_this_process(scheduler: Scheduler, jobs: list[Job]) -> None:
    for job in jobs:
        if job.status == "waiting":
            job.status = "running"
            scheduler.observer.on_status(job)
            source = recipe_file(scheduler.folder, job.variant)
            train(load_recipe(source, sets=[f"Trainer.seed={job.seed}"]), job.folder)
            job.status = "finished"
            scheduler.observer.on_status(job)


def steps(page: str) -> list[tuple[str, list[str]]]:
    """Commands (beginning with ``dlmrl``) and Python blocks in order, each with the lines it should print."""
    found: list[tuple[str, list[str]]] = []
    for language, text in BLOCK.findall(page):
        if language == "python":
            found.append((text, []))
        for line in text.splitlines() if language == "console" else []:
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def small(command: str) -> list[str]:
    program, name, *arguments = shlex.split(command)
    assert program == "dlmrl"
    sizes = [word for binding in SIZES[name] for word in ("--set", binding)]
    seeds = "2" if "selectors" in arguments else "1"
    return [name, *arguments, *sizes, *(["--seeds", seeds] if name == "ablate" else [])]


def plain(text: str) -> str:
    """Text without differences in numbers and white space."""
    return NUMBER.sub("N", " ".join(text.split())).replace("+N", "N").replace("-N", "N")


@pytest.mark.thorough
def test_the_page_gives_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Scheduler, "run", in_this_process)
    for step, expected in steps(PAGE):
        if not step.startswith("dlmrl "):
            exec(compile(step, "run-an-ablation.md", "exec"), {})
            continue
        result = CliRunner().invoke(app, small(step), env={"COLUMNS": "200"})
        refused = bool(expected) and expected[0].startswith("error: ")
        assert result.exit_code == (2 if refused else 0), (step, result.output, result.exception)
        rest = plain(result.stderr if refused else result.output)
        for line in filter(None, (plain(part) for text in expected for part in text.split("..."))):
            _, found, rest = rest.partition(line)
            assert found == line, (step, line, result.output)
    for made in ("selectors/curves.png", "parts/summary.csv", "python/results.csv"):
        assert (tmp_path / made).stat().st_size > 100
    assert not (tmp_path / "typo").exists()
