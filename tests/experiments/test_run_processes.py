"""Runs as forks of a server that has imported everything: like fresh processes, to the user and to each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.process_ends import gone
from support.runs import recipe

from dlmrl_kit.experiments.run_processes import ForkLauncher, Launcher, RunProcess, new_launcher
from dlmrl_kit.recipe.load import load_recipe

OBSERVER = '''
import json, os, sys, time
import torch
from dlmrl_kit.core.results import RunObserver

class Watch(RunObserver):
    """Says what the run's process is like, then fails, or hangs where its folder is named so."""

    def on_start(self, *, folder, **_):
        facts = {
            "variable": os.environ["OMP_NUM_THREADS"], "threads": torch.get_num_threads(), "path": sys.path,
            "arguments": sys.argv, "pid": os.getpid(), "cuda": torch.cuda.is_initialized(), "input": os.isatty(0),
        }
        print("a line of the run")
        (folder / "facts.json").write_text(json.dumps(facts))
        if folder.name == "hangs":
            time.sleep(100)
        raise RuntimeError("no luck")
'''
START = """
import json, sys, time
from pathlib import Path
from dlmrl_kit.experiments.run_processes import ForkLauncher
task = json.loads(sys.argv[1])
sys.path[:] = task["path"]
launcher = ForkLauncher(1, "watching")
launcher.launch(task, Path(task["folder"], "log.txt"))
time.sleep(100)
"""


def new_task(folder: Path, name: str, path: list[str]) -> dict[str, Any]:
    """A run that says what its process is like, and then hangs or fails."""
    run = folder / name
    run.mkdir()
    source = folder / "recipe.gin"
    source.write_text(recipe("egspo").text())
    return {
        "path": path,
        "recipe": str(source),
        "folder": str(run),
        "seed": "Trainer.seed=0",
        "text": load_recipe(source, sets=["Trainer.seed=0"]).text(header=False),
        "allow_imports": False,
        "observer": "watching:Watch",
    }


def facts(run: Path) -> dict[str, Any]:
    """What a run wrote about its process, once it has."""
    deadline = time.monotonic() + 60
    while not (run / "facts.json").is_file() or not (text := (run / "facts.json").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Where modules are found: the observer's, too."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "watching.py").write_text(OBSERVER)
    return [str(folder), *map(str, sys.path)]


@pytest.fixture(scope="module")
def forks(path: list[str]) -> Iterator[Launcher]:
    """A server whose runs have two threads."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "path", path)
        launcher = new_launcher(2, "watching", forks=True)
    yield launcher
    launcher.close()


def launched(launcher: Launcher, task: dict[str, Any]) -> RunProcess:
    return launcher.launch(task, Path(task["folder"], "log.txt"))


@pytest.mark.thorough
def test_a_fork_is_as_a_fresh_process_is(tmp_path: Path, path: list[str], forks: Launcher) -> None:
    (tmp_path / "forked").mkdir()
    (tmp_path / "fresh").mkdir()
    found = {}
    for launcher, folder in ((forks, tmp_path / "forked"), (Launcher(2), tmp_path / "fresh")):
        task = new_task(folder, "fails", [*path, str(folder)])
        process = launched(launcher, task)
        assert process.ends(100)
        assert process.poll() == 1
        process.close()
        assert json.loads((folder / "fails" / "failed.json").read_text())["error"] == "RuntimeError: no luck"
        found[folder.name] = facts(folder / "fails")
        found_path = found[folder.name].pop("path")
        assert found_path[-len(task["path"]) :] == task["path"]  # ray puts an entry of its own before them
        assert found[folder.name].pop("pid") != os.getpid()
    assert found["forked"] == found["fresh"]
    assert found["forked"]["variable"] == "2"
    assert found["forked"]["threads"] == 2
    logs = [(tmp_path / kind / "fails" / "log.txt").read_text() for kind in ("forked", "fresh")]
    assert logs[0].replace("forked", "fresh") == logs[1]
    assert "a line of the run" in logs[0]


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_fork_that_is_killed_says_by_what_and_leaves_others_alone(
    number: int, tmp_path: Path, path: list[str], forks: Launcher
) -> None:
    (tmp_path / "other").mkdir()
    tasks = [new_task(tmp_path / "other", "hangs", path), new_task(tmp_path, "hangs", path)]
    other, process = [launched(forks, task) for task in tasks]
    pid = facts(tmp_path / "hangs")["pid"]
    assert process.poll() is None
    process.send_signal(number)
    assert process.ends(30)
    assert process.poll() == -number
    assert gone(pid)
    assert other.poll() is None
    other.send_signal(signal.SIGKILL)
    assert other.ends(30)


@pytest.mark.thorough
def test_runs_end_when_the_process_that_asked_for_them_is_killed(tmp_path: Path, path: list[str]) -> None:
    task = new_task(tmp_path, "hangs", path)
    process = subprocess.Popen([sys.executable, "-c", START, json.dumps(task)])
    pid = facts(tmp_path / "hangs")["pid"]
    process.kill()
    process.wait()
    assert gone(pid)


@pytest.mark.thorough
def test_runs_end_with_the_server(tmp_path: Path, path: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", path)
    launcher = ForkLauncher(1, "watching")
    process = launched(launcher, new_task(tmp_path, "hangs", path))
    pid = facts(tmp_path / "hangs")["pid"]
    server = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(server, signal.SIGKILL)
    assert process.ends(30)
    assert process.poll() == -signal.SIGKILL
    assert gone(pid)
    launcher.close()


def test_a_server_that_cannot_import_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "torch.py").write_text("raise ImportError('no torch today')")
    launcher = new_launcher(1, "dlmrl_kit.core.results", forks=True)
    assert isinstance(launcher, ForkLauncher)
    process = launched(launcher, {"path": [str(tmp_path), *sys.path], "folder": str(tmp_path)})
    assert process.ends(60)
    assert process.poll() == 1
    assert "no torch today" in (tmp_path / "log.txt").read_text()
    process.close()
    launcher.close()


@pytest.mark.parametrize(("threads", "safe"), [(0, True), (1, False)])
def test_a_process_with_threads_is_not_forked(threads: int, safe: bool) -> None:
    code = (
        "import threading\nfrom dlmrl_kit.experiments.fork_server import forks_safely\n"
        f"for _ in range({threads}): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print(forks_safely())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(safe)]


def test_without_forks_every_process_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(new_launcher(1, "dlmrl_kit.core.results", forks=False)) is Launcher
    for platform in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        assert type(new_launcher(1, "dlmrl_kit.core.results", forks=True)) is Launcher
