"""Served rollouts: training through an engine is training without it, and bad answers are errors of one line."""

from __future__ import annotations

import contextlib
import copy
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import metric_rows, new_run, recipe, weights
from typer.testing import CliRunner

from dlmrl_kit.cli import serve
from dlmrl_kit.cli.app import app
from dlmrl_kit.collectors.protocol import PROTOCOL, difference_of, parsed
from dlmrl_kit.collectors.served import Served
from dlmrl_kit.collectors.transport import Transport
from dlmrl_kit.core.errors import RecipeError, TrainingError, UserError
from dlmrl_kit.training import train
from dlmrl_kit.training.checkpoint import checkpoints
from dlmrl_kit.training.serving import engine_server
from dlmrl_kit.training.tensor_files import read

FAST = ["Served.retries = 1", "Served.retry_seconds = 0.0", "Served.timeout_seconds = 60.0"]
ELSEWHERE = ("rollout/updates_behind", "recorded_difference_max")
ORDERS = [["sampler=EntropyOrder"], []]


@contextlib.contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """Runs a server in a thread; gives its address."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def engine(*sets: str, uses: list[str] | None = None, folder: Path | None = None) -> Iterator[str]:
    with running(engine_server(recipe(sets=sets, uses=uses or []), "127.0.0.1", 0, folder)) as url:
        yield url


def served(*urls: str) -> tuple[list[str], list[str]]:
    return [f"Served.urls = {list(urls)!r}", *FAST], ["collector=Served"]


def rows(folder: Path) -> list[str]:
    return [row for row in metric_rows(folder) if row.split(",")[1] not in ELSEWHERE]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    last = checkpoints(folder)[-1][1]
    return read(last, "policy.safetensors", lambda *_: None)


@pytest.mark.parametrize("uses", ORDERS, ids=["entropy order", "egspo_sa"])
def test_training_through_an_engine_is_training_without_it(uses: list[str], tmp_path: Path) -> None:
    small = ["Trainer.updates = 2", "Trainer.eval_every = 0"]
    here = train(recipe(sets=small, uses=uses), tmp_path / "here")
    with engine(uses=uses) as url:
        sets, collector = served(url)
        there = train(recipe(sets=[*small, *sets], uses=[*uses, *collector]), tmp_path / "there")
    assert rows(tmp_path / "here") == rows(tmp_path / "there")
    assert here.after.to_json() == there.after.to_json()
    files = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("here", "there")]
    assert files[0] == files[1]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["grpo_steps", "dcolt", "agrpo", "d1"])
def test_other_recipes(name: str, tmp_path: Path) -> None:
    small = ["Trainer.updates = 2", "Trainer.eval_every = 0"]
    train(recipe(name, sets=small), tmp_path / "here")
    with running(engine_server(recipe(name, sets=small), "127.0.0.1", 0)) as url:
        sets, collector = served(url)
        train(recipe(name, sets=[*small, *sets], uses=collector), tmp_path / "there")
    assert rows(tmp_path / "here") == rows(tmp_path / "there")
