"""The trackers with their packages, each in a process of its own: what they keep, also of a resumed run.

All are offline; MLflow, if its server's packages are installed (``pip install mlflow``), also through a server.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.paths import ROOT
from support.trackers import wandb_history

pytestmark = pytest.mark.thorough

COMMON = """
import pathlib, sys
from support.trackers import evaluation
run = pathlib.Path("run")

def drive(tracker, updates, first):
    tracker.open(run, first)
    tracker.log_settings({"Trainer.seed": "0", "a/b.c": "'x'"})
    tracker.log_file(first, run / "recipe.gin")
    for update in updates:
        tracker.log(update, {"reward": update / 4, "reward/a/../b$": 0.5, "kl": float("nan")})
    last = updates[-1] + 1
    tracker.log(last, {"eval/accuracy": 0.5, "eval/reward": 0.25})
    tracker.log_evaluation(last, evaluation())
    tracker.log_file(last, run / "trajectories.html")
    tracker.log_file(last, run / "curve.png")
    tracker.close()
    tracker.close()
"""

WANDB = """
from dlmrl_kit.loggers.wandb import WandB
drive(WandB(options={"mode": "offline"}), range(3), 0)
drive(WandB(options={"mode": "offline"}), range(2, 4), 2)
"""

MLFLOW = """
from dlmrl_kit.loggers.mlflow import MLflow
store = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path("store").absolute().as_uri()
drive(MLflow(tracking_uri=store), range(3), 0)
drive(MLflow(tracking_uri=store), range(2, 4), 2)

from mlflow import MlflowClient
client = MlflowClient(store)
(found,) = client.search_runs([client.get_experiment_by_name("dlmrl").experiment_id])
assert found.info.run_name == "run" and found.info.status == "FINISHED"
history = client.get_metric_history(found.info.run_id, "reward")
assert {m.step: m.value for m in history} == {0: 0, 1: .25, 2: .5, 3: .75}
assert found.data.metrics["eval.accuracy_low"] < 0.5 < found.data.metrics["eval.accuracy_high"]
assert found.data.params == {"Trainer.seed": "0", "a.b.c": "'x'"}
names = {file.path for file in client.list_artifacts(found.info.run_id)}
assert names == {"recipe.gin", "trajectories.html", "curve.png", "samples"}
table = [file.path for file in client.list_artifacts(found.info.run_id, "samples")]
assert table == ["samples/update-000003.json", "samples/update-000004.json"]
"""

TRACKIO = """
from dlmrl_kit.loggers.trackio import Trackio
drive(Trackio(), range(3), 0)
drive(Trackio(), range(2, 4), 2)

import trackio
from trackio.sqlite_storage import SQLiteStorage
(found,) = trackio.Api().runs("dlmrl")
assert found.name.startswith("run-") and found.config["Trainer.seed"] == "0"
logs = SQLiteStorage.get_logs("dlmrl", found.name)
assert {row["step"]: row["reward"] for row in logs if "reward" in row} == {0: 0, 1: .25, 2: .5, 3: .75}
tables = [row["samples"]["_value"] for row in logs if "samples" in row]
assert [table[0]["update"] for table in tables] == [3, 4] and tables[0][0]["completion"] == "2\\n"
assert any("curve" in row for row in logs)
"""


def run(script: str, folder: Path, *needed: str, arguments: Sequence[str] = ()) -> None:
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    from matplotlib.figure import Figure

    (folder / "run").mkdir()
    (folder / "run" / "recipe.gin").write_text("Trainer.seed = 0\n")
    (folder / "run" / "trajectories.html").write_text("<!doctype html><p>page")
    Figure(figsize=(1, 1)).savefig(folder / "run" / "curve.png")
    environment = {
        # A test before this one, in the same process, may have started a service of wandb's and named it here.
        **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "HOME": str(folder),
        "TRACKIO_DIR": str(folder / "trackio"),
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    command = [sys.executable, "-c", COMMON + script, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wandb(tmp_path: Path) -> None:
    run(WANDB, tmp_path, "wandb")

    (identity,) = json.loads((tmp_path / "run" / "trackers.json").read_text()).values()
    files = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2  # the resumed run goes on with the first one's id
    rows = [row for file in files for row in wandb_history(file)]
    steps = [(row["update"], row["reward"]) for row in rows if "reward" in row]
    assert dict(steps) == {0: 0, 1: 0.25, 2: 0.5, 3: 0.75}
    file = files[-1]
    kept = {path.relative_to(file.parent / "files").parts[0] for path in (file.parent / "files").rglob("*")}
    assert {"recipe.gin", "media"} <= kept
    shown = {path.name.split("_")[0] for path in (file.parent / "files" / "media").rglob("*") if path.is_file()}
    assert shown == {"samples", "trajectories", "curve"}


def test_mlflow(tmp_path: Path) -> None:
    run(MLFLOW, tmp_path, "mlflow")


def test_mlflow_with_a_server(tmp_path: Path) -> None:
    if missing := [
        name for name in ("mlflow", "flask", "sqlalchemy", "aiohttp") if importlib.util.find_spec(name) is None
    ]:
        pytest.skip(f"{missing[0]} is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = ["--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    options += ["--backend-store-uri", f"sqlite:///{tmp_path / 'runs.db'}"]
    options += ["--artifacts-destination", str(tmp_path / "kept")]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *options],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        started = time.monotonic()
        while True:
            with contextlib.suppress(OSError):
                assert urllib.request.urlopen(f"{address}/health", timeout=5).read() == b"OK"
                break
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() - started < 180, "the server does not answer"
            time.sleep(0.5)
        run(MLFLOW, tmp_path, arguments=[address])
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_trackio(tmp_path: Path) -> None:
    run(TRACKIO, tmp_path, "trackio")
