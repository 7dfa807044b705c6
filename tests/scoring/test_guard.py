"""What a reward function started ends with its worker, and every worker with its parent, in whatever state they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.process_ends import gone

if sys.platform == "win32":
    pytest.skip("no process groups", allow_module_level=True)

WAYS = ["child", "session", "daemon", "fork", "stopped child"]
"""How the scorer starts a process: plainly, in another session, orphaned, without exec, and stopped."""

SCORER = """
import os, signal, subprocess, sys, time

SLEEP = [sys.executable, "-c", "import time; time.sleep(1000)"]

def note(folder, name, pid):
    with open(f"{folder}/{name}.new", "w") as file:
        file.write(str(pid))
    os.rename(f"{folder}/{name}.new", f"{folder}/{name}")

def load():
    return work

def work(item):
    folder, way, then = item
    note(folder, "worker", os.getpid())
    note(folder, "guard", os.getppid())
    if way == "fork":
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
    elif way == "daemon":
        started = f"Popen({SLEEP!r}, stdout=subprocess.DEVNULL, start_new_session=True)"
        code = f"import subprocess; print(subprocess.{started}.pid)"
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE)
        pid = int(done.stdout)
    else:
        pid = subprocess.Popen(SLEEP, start_new_session=way == "session").pid
    if way == "stopped child":
        os.kill(pid, signal.SIGSTOP)
    note(folder, "child", pid)
    if then == "exit":
        os._exit(3)
    if then == "hang":
        time.sleep(1000)
    if then == "loop":
        while True:
            pass
    return "done"
"""
PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
import kit_guarded
from dlmrl_kit.scoring.pool import shared
(result,) = shared(kit_guarded.load).run([(sys.argv[1], sys.argv[2], sys.argv[3])], float(sys.argv[4]))
print(result, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    (tmp_path / "kit_guarded.py").write_text(SCORER)

    def started(way: str, then: str, timeout: float = 60) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "ignore", "-c", PARENT, str(tmp_path), way, then, str(timeout)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return started


def pid_of(folder: Path, name: str) -> int:
    for _ in range(400):
        if (folder / name).exists():
            return int((folder / name).read_text())
        time.sleep(0.05)
    raise AssertionError(f"no {name}")


def pids(folder: Path) -> list[int]:
    return [pid_of(folder, name) for name in ("child", "worker", "guard")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("then", ["return", "hang"])
def test_all_end_with_a_parent_that_is_killed(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, way: str, then: str
) -> None:
    parent = start(way, then)
    all_of_them = pids(tmp_path)
    parent.kill()
    parent.communicate()
    assert all(map(gone, all_of_them))


@pytest.mark.parametrize("stopped", [["worker"], ["guard"], ["worker", "guard"], ["worker", "guard", "child"]])
@pytest.mark.parametrize("end", ["killed", "ended"])
def test_stopped_processes_end_with_their_parent(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, stopped: list[str], end: str
) -> None:
    parent = start("session", "return")
    all_of_them = pids(tmp_path)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "done\n"
    for name in stopped:
        os.kill(pid_of(tmp_path, name), signal.SIGSTOP)
    if end == "killed":
        parent.kill()
    parent.communicate("")
    assert all(map(gone, all_of_them))


@pytest.mark.thorough
@pytest.mark.parametrize(("then", "kind"), [("hang", "timeout"), ("loop", "timeout"), ("exit", "crash")])
@pytest.mark.parametrize("way", WAYS)
def test_what_a_scorer_started_ends_with_its_worker(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, way: str, then: str, kind: str
) -> None:
    parent = start(way, then, 3 if kind == "timeout" else 60)
    all_of_them = pids(tmp_path)
    assert parent.stdout is not None
    line = parent.stdout.readline()
    assert f"kind='{kind}'" in line
    assert kind == "timeout" or "exit code 3" in line
    assert all(map(gone, all_of_them))
    parent.communicate("")
