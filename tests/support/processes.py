"""Training in processes that die at a chosen moment."""

from __future__ import annotations

import functools
import importlib
import multiprocessing.util
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cheap_runs import cheaply
from support.paths import ROOT

import dlmrl_kit.pretraining.run
import dlmrl_kit.training.runs
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.tasks.sudoku import Sudoku4x4

TESTS = ROOT / "tests"
PRELOAD = "DLMRL_TESTS_PRELOAD"
WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def writes(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    """Whether an audit event changes files: a rename, a removal, a new folder, opening a file of the run to write."""
    if event == "open":
        path, mode, _ = arguments
        return isinstance(path, str) and path.startswith(folder) and isinstance(mode, str) and mode[0] in "wax"
    return event in WRITES


def die_at(number: int, folder: Path) -> None:
    """This process gets SIGKILL right before its ``number``-th change of a file; 0: never, and the count is written."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if writes(event, arguments, str(folder)):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    if number == 0:
        multiprocessing.util.Finalize(None, lambda: write_atomic(folder.with_name("writes"), str(seen)), exitpriority=9)


def train_file(path: Path, folder: Path, number: int) -> None:
    """Trains a recipe file, or goes on with its run; dies at the ``number``-th change of a file."""
    torch.set_num_threads(1)
    die_at(number, folder)
    try:
        loaded = load_recipe(path)
        if loaded.root == "Pretraining":
            dlmrl_kit.pretraining.run.pretrain(loaded, folder)
        elif (folder / "recipe.gin").exists():
            dlmrl_kit.training.runs.resume(folder)
        else:
            dlmrl_kit.training.runs.train(loaded, folder)
    except BaseException:
        folder.with_name("traceback").write_text(traceback.format_exc())
        raise


def trained_alone(path: Path, folder: Path) -> int:
    """Trains a recipe file in a process that lives to its end; the number of times it changed a file."""
    child = process(train_file, path, folder, 0)
    child.join()
    failure = folder.with_name("traceback")
    assert child.exitcode == 0, failure.read_text() if failure.exists() else "no traceback"
    return int(folder.with_name("writes").read_text())


@functools.cache
def context() -> Any:
    """Processes forked from one that has imported everything: they start in a fraction of a second."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["support.processes"])
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv(PRELOAD, "1")
        forkserver.ensure_running()
    return made


def _preload() -> None:
    """Imports what a run imports, in the process that all others are forked from. No backward pass: it has threads."""
    for name in ("matplotlib.backends.backend_agg", "matplotlib.figure", "peft", "transformers.optimization"):
        importlib.import_module(name)
    CharacterLlama(hidden_size=16, num_layers=1, num_heads=2).load()
    Sudoku4x4(num_train=1).example("train", 0)
    load_recipe("egspo_sa").build()


if PRELOAD in os.environ:
    _preload()
    cheaply(pytest.MonkeyPatch())  # for good: this process only forks


def process(target: Callable[..., None], *arguments: Any) -> Any:
    """A started process; ``kill`` it or ``join`` it."""
    started = context().Process(target=target, args=arguments, daemon=True)
    started.start()
    return started


def killed(code: int | None) -> bool:
    """Whether this is the exit code of a process that got SIGKILL."""
    return code == -signal.SIGKILL


def spread(total: int, parts: int) -> Iterator[int]:
    """``parts`` numbers spread evenly over 1 .. total."""
    for index in range(parts):
        yield 1 + index * (total - 1) // max(parts - 1, 1)
