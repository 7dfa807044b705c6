"""The command in several processes: one line for what goes wrong, a hung process is found, a killed one is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.command_line import OPTIONS
from support.processes import process
from support.runs import leftovers
from typer.testing import CliRunner

import dlmrl_kit.core.processes
from dlmrl_kit.cli.app import COMMANDS, app, main
from dlmrl_kit.training.checkpoint import checkpoints
from dlmrl_kit.training.loop import Run

SHORT = ["--set", "Trainer.updates=4", "--set", "Trainer.eval_every=0", "--set", "Trainer.eval_size=2"]


def command(rank: int, port: int, output: str, arguments: list[str], before: Callable[[int], None] | None) -> None:
    """``dlmrl`` as process ``rank`` of two, with its output in a file; ``before`` is called first."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "COLUMNS": "160"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    dlmrl_kit.core.processes.GRACE = 0.5
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if before is not None:
        before(rank)
    sys.argv = ["dlmrl", *(argument.replace("RANK", str(rank)) for argument in arguments)]
    main()


def both(
    folder: Path, arguments: list[str], before: Callable[[int], None] | None = None
) -> tuple[list[int | None], list[list[str]]]:
    """Exit codes and lines of two processes that run a command; the store is here, as with ``torchrun``."""
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    paths = [folder / f"output{rank}" for rank in range(2)]
    children = [process(command, rank, store.port, str(path), arguments, before) for rank, path in enumerate(paths)]
    for child in children:
        child.join(60)
        assert child.exitcode is not None, [path.read_text() for path in paths]
    return [child.exitcode for child in children], [path.read_text().splitlines() for path in paths]


@pytest.mark.thorough
def test_an_error_that_both_have_is_told_once(tmp_path: Path) -> None:
    codes, lines = both(tmp_path, ["train", "nowhere.gin"])
    assert codes == [2, 2]
    assert [len(own) for own in lines] == [1, 0]
    assert lines[0][0].startswith("error: ")


@pytest.mark.thorough
def test_an_error_of_one_names_it_and_ends_both(tmp_path: Path) -> None:
    (tmp_path / "recipe0.gin").write_text("include 'egspo_sa.gin'\n")
    codes, lines = both(tmp_path, ["train", str(tmp_path / "recipeRANK.gin"), "--out", str(tmp_path / "run"), *OPTIONS])
    assert codes == [2, 2]
    (line,) = [line for own in lines for line in own if "error" in line]
    assert line.startswith("rank 1: error: ")
    assert "recipe1.gin" in line


def hang(rank: int) -> None:
    """The second process never ends its second update."""
    original = Run.step

    def step(self: Run, number: int) -> None:
        if number == 1:
            time.sleep(600)
        original(self, number)

    if rank == 1:
        Run.step = step  # type: ignore[method-assign]


@pytest.mark.thorough
def test_a_process_that_hangs_ends_all(tmp_path: Path) -> None:
    limit = ["--set", "Trainer.timeout_minutes=0.05"]
    codes, lines = both(tmp_path, ["train", "--out", str(tmp_path / "run"), *OPTIONS, *SHORT, *limit], hang)
    assert codes == [2, 2]
    (line,) = [line for own in lines for line in own if "error" in line]
    assert line.startswith(
        "error: nothing was finished for 0.05 minutes (Trainer.timeout_minutes) after update 1: rank 1"
    )
    assert f"is busy, {tmp_path}/run/stacks-of-rank-1.txt says where" in line
    assert line.endswith(f"go on with: dlmrl train --resume {tmp_path}/run")
    assert "in step" in (tmp_path / "run" / "stacks-of-rank-1.txt").read_text()


def die(rank: int) -> None:
    """The second process is killed in its second update."""
    original = Run.step

    def step(self: Run, number: int) -> None:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, number)

    if rank == 1:
        Run.step = step  # type: ignore[method-assign]


@pytest.mark.thorough
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_killed_process_ends_the_other(sharding: str, tmp_path: Path) -> None:
    """Where no launcher tells it: with one, that names the process and its signal."""
    more = [*OPTIONS, *SHORT, "--set", f"Trainer.sharding={sharding!r}"]
    codes, lines = both(tmp_path, ["train", "--out", str(tmp_path / "run"), *more], die)
    assert codes == [2, -signal.SIGKILL]
    (line,) = [line for own in lines for line in own if "error" in line]
    assert line.startswith("error: another process of this run does not answer any more (")
    assert (tmp_path / "run" / "recipe.gin").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--dry-run", "--max-restarts", "2"], "--max-restarts with --dry-run"),
        (["train", "--max-restarts", "2"], "--max-restarts without --gpus"),
        (["train", "nowhere.gin", "--gpus", "2"], "nowhere.gin"),
    ],
)
def test_what_cannot_be_started(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"train"}))
def test_other_commands_run_in_one_process(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    needed: dict[str, list[str]] = {
        name: ["egspo"] for name in ("audit", "check", "show", "eval", "trace", "sample", "chat", "plot", "steps")
    }
    needed["tokenizer"] = ["pretrain_sudoku4x4", "--out", "nowhere"]
    needed["compare"] = ["egspo", "d1", "--forwards", "9", "--out", "nowhere"]
    needed["ablate"] = ["egspo", "--swap", "selector=UniformSteps", "--seeds", "1", "--out", "nowhere"]
    result = CliRunner().invoke(app, [name, *needed.get(name, [])])
    assert result.exit_code == 2
    assert f"dlmrl {name} runs in one process" in result.output


DIES = """
import os, signal
from dlmrl_kit.training.loop import Run

original = Run.step

def step(self, number):
    start = (os.environ.get("RANK"), os.environ.get("TORCHELASTIC_RESTART_COUNT"), number)
    if start in {("1", "0", 1), ("0", "1", 3)}:
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, number)

Run.step = step
"""


@pytest.mark.thorough
def test_restarts_end_with_the_same_result(tmp_path: Path) -> None:
    """Killed before the first checkpoint, when the run starts over, and after it, when it goes on."""
    (tmp_path / "dies.py").write_text(DIES)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    environment["OMP_NUM_THREADS"] = "1"
    settings = [*OPTIONS, *SHORT, "--set", "Trainer.checkpoint_every=2"]
    recipe, killed, whole = tmp_path / "killed.gin", tmp_path / "killed", tmp_path / "whole"
    recipe.write_text("import dies\ninclude 'egspo_sa.gin'\n")
    given = ["train", str(recipe), "--allow-imports", "--out", str(killed), *settings]
    line = [sys.executable, "-m", "dlmrl_kit", *given, "--gpus", "2", "--max-restarts", "2"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    # The process that is left may tell that the other one is gone, before torchrun starts both again.
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert all("another process of this run does not answer any more" in line for line in errors)
    codes, lines = both(tmp_path, ["train", "egspo_sa", "--out", str(whole), *settings])
    assert codes == [0, 0], lines
    assert not leftovers(killed)
    assert [done for done, _ in checkpoints(killed)] == [done for done, _ in checkpoints(whole)] == [2, 4]
    model, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(value, other[name]) for name, value in model.items())
