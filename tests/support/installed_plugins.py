"""Plugins that are installed for one test: distributions in a folder on the path, loaded in this process."""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest
from support.broken_plugins import distribution

from dlmrl_kit.recipe import plugins
from dlmrl_kit.recipe.builtin import load_builtin


class Install(Protocol):
    """Installs and loads a plugin of a name from the text of its files; returns what is reported of it."""

    def __call__(self, name: str, sources: Mapping[str, str], module: str = "", version: str = "1.2") -> list[str]: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs one plugin for one test; its entry point is its package, or ``module``; without sources it is gone."""
    load_builtin()
    before = plugins._Snapshot()
    names: list[str] = []
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv(plugins.OFF_SWITCH, raising=False)

    def installed(name: str, sources: Mapping[str, str], module: str = "", version: str = "1.2") -> list[str]:
        names.append(name)
        shutil.rmtree(site)
        site.mkdir()
        if sources:
            distribution(site, name, {name: module or name}, dict(sources))
            about = site / f"{name}_dist-1.2.dist-info" / "METADATA"
            about.write_text(about.read_text().replace("Version: 1.2", f"Version: {version}"))
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
