"""Plugins that are installed for one test: distributions in a folder on the path, loaded in this process."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest
from support.broken_plugins import distribution

from dlmrl_kit.recipe import plugins
from dlmrl_kit.recipe.builtin import load_builtin


class Install(Protocol):
    """Installs and loads a plugin of a name from the text of its files, and returns what is reported of it."""

    def __call__(self, name: str, sources: Mapping[str, str], module: str = "") -> list[str]: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs plugins for one test; the entry point of each is its package, or ``module``."""
    load_builtin()
    before = plugins._Snapshot()
    names: list[str] = []
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv(plugins.OFF_SWITCH, raising=False)

    def installed(name: str, sources: Mapping[str, str], module: str = "") -> list[str]:
        names.append(name)
        distribution(site, name, {name: module or name}, dict(sources))
        importlib.invalidate_caches()
        before.restore(plugins.Plugin(name, name, "", ""))
        monkeypatch.setattr(plugins._State, "started", False)
        monkeypatch.setattr(plugins._State, "plugins", ())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", plugins.PluginWarning)
            plugins.load_plugins()
        return [line for line in plugins.plugin_report() if repr(name) in line]

    yield installed
    for name in names:
        before.restore(plugins.Plugin(name, name, "", ""))
