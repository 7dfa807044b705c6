"""Reward functions of the user's own in a sandbox: what they need is there, and nothing else."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.process_ends import gone
from support.sandboxes import needs_bubblewrap

from dlmrl_kit.sandbox.bubblewrap import require_bubblewrap
from dlmrl_kit.scoring.pool import close_all
from dlmrl_kit.tasks.json_lines import JsonLines

REWARD = '''
import os
import sandboxed_reward_helper as helper

def score(completion, example):
    """Executes what a model wrote: do not do so without a sandbox."""
    try:
        return {"reward": helper.ONE, "solved": 0, "value": float(eval(completion or "0"))}
    except BaseException as error:
        return {"reward": -1.0, "solved": 0, "value": float(getattr(error, "errno", None) or 0)}
'''


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JsonLines:
    (tmp_path / "sandboxed_reward.py").write_text(REWARD)
    (tmp_path / "sandboxed_reward_helper.py").write_text("ONE = 1.0\n")
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "p", "split": "train"}) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DLMRL_TEST_SECRET", "1")
    return JsonLines(str(tmp_path / "data.jsonl"), "sandboxed_reward:score", sandbox=True)


@needs_bubblewrap
def test_a_reward_function_sees_its_modules_and_packages_only(task: JsonLines, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("1")
    example, not_permitted, not_there, read_only = task.example("train", 0), 1.0, 2.0, 30.0
    errors = {
        "1 + 1": 2.0,
        "__import__('numpy').ones(3).sum()": 3.0,
        "os.fork()": not_permitted,
        "__import__('socket').socket()": not_permitted,
        f"open({str(tmp_path / 'secret')!r})": not_there,
        f"open({str(task.path)!r})": not_there,
        f"open({str(tmp_path / 'sandboxed_reward_helper.py')!r}, 'w')": read_only,
        "open('/x', 'w')": read_only,
        "len(open(helper.__file__).read())": 10.0,
        "'DLMRL_TEST_SECRET' in os.environ": 0.0,
    }
    assert {code: task.score(code, example)["value"] for code in errors} == errors
    close_all()


@pytest.mark.thorough
@needs_bubblewrap
def test_a_sandboxed_worker_ends_with_its_parent(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(tmp_path)!r})
open({str(tmp_path / "endless.py")!r}, "w").write("def score(completion, example): return 0.0")
open({str(tmp_path / "d.jsonl")!r}, "w").write('{{"prompt": "p", "split": "train"}}')
from pathlib import Path
from dlmrl_kit.tasks.json_lines import JsonLines
task = JsonLines({str(tmp_path / "d.jsonl")!r}, "endless:score", sandbox=True)
task.score("", task.example("train", 0))
inside = [stat.parent.name for stat in Path("/proc").glob("[0-9]*/cmdline") if b"serve_in_sandbox" in stat.read_bytes()]
print(*inside, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split()
    assert all(gone(int(pid)) for pid in done.stdout.split())


def test_without_bubblewrap_it_refuses(task_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    require_bubblewrap.cache_clear()
    with pytest.raises(Exception, match="install it: apt-get install bubblewrap"):
        JsonLines(str(task_path), "math:floor", sandbox=True)
    require_bubblewrap.cache_clear()


@pytest.fixture
def task_path(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "p"}\n')
    return path
