"""The process of one run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dlmrl_kit.recipe.load import recipes_dir


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
            worker.work(
                recipe=recipe,
                folder=str(tmp_path),
                seed="Trainer.seed=1",
                text="another",
                allow_imports=False,
                observer="dlmrl_kit.core.results:RunObserver",
            )
    finally:
        signal.signal(signal.SIGINT, old)
    assert "is not the recipe of this run" in json.loads((tmp_path / "failed.json").read_text())["error"]
