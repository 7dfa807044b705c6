"""Settings of all tests: one thread per process (xdist runs several), one terminal width, a clean gin configuration."""

from __future__ import annotations

from collections.abc import Iterator

import gc

import gin
import pytest
import torch

import dlmrl_kit  # noqa: F401  (sets RL_LOGGING_LEVEL before torchrl is imported)

pytest_plugins = ["support.fake_runs", "support.installed_plugins", "support.registrations"]

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Half a million objects of the imports live to the end: the collector need not go through them again and again."""
    gc.collect()
    gc.freeze()


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
