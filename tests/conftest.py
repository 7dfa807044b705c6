"""Settings of all tests: one thread per process (xdist runs several), one terminal width, a clean gin configuration."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import gin
import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start, too: two threads take twice the CPU time
NO_BYTECODE, sys.dont_write_bytecode = sys.dont_write_bytecode, False  # for what is imported until tests begin

import dlmrl_kit  # noqa: E402, F401  (sets RL_LOGGING_LEVEL before torchrl is imported)

pytest_plugins = ["support.cheap_runs", "support.fake_runs", "support.installed_plugins", "support.registrations"]

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What is imported is there: tests write compiled files again only where the user does.

    Compiled, with asserts rewritten, the test files are read in two thirds of the time. The garbage collector, which
    goes through the half million objects of the imports, comes seldom: it took 6% of the time of the command's tests.
    """
    sys.dont_write_bytecode = NO_BYTECODE
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # the user's stays as it is
        yield


@pytest.fixture(autouse=True)
def _clean_gin() -> Iterator[None]:
    yield
    gin.clear_config()


@pytest.fixture(autouse=True)
def _terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # xdist's workers set their own
