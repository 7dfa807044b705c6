"""What is installed is read once, and again as soon as something is installed or removed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.broken_plugins import distribution

from dlmrl_kit.core import installed
from dlmrl_kit.core.installed import distributions_of
from dlmrl_kit.recipe import plugins
from dlmrl_kit.recipe.plugins import installed_plugins


def named() -> list[str]:
    return [plugin.name for plugin in installed_plugins() if plugin.name.startswith("acme_")]


def install(site: Path, name: str) -> None:
    distribution(site, name, {name: name}, {"__init__.py": ""})
    (site / f"{name}_dist-1.2.dist-info" / "top_level.txt").write_text(name)


def test_what_is_installed_or_removed_in_between_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert named() == []
    install(tmp_path, "acme_one")
    assert named() == ["acme_one"]
    assert list(distributions_of("acme_one")) == ["acme_one-dist"]
    assert not distributions_of("acme_two")
    install(tmp_path, "acme_two")
    assert named() == ["acme_one", "acme_two"]
    assert list(distributions_of("acme_two")) == ["acme_two-dist"]
    shutil.rmtree(tmp_path / "acme_one_dist-1.2.dist-info")
    assert named() == ["acme_two"]
    assert not distributions_of("acme_one")
    monkeypatch.undo()
    assert named() == []
    assert not distributions_of("acme_two")


def test_what_stays_is_read_once() -> None:
    installed_plugins()
    distributions_of("torch")
    before = plugins._installed.cache_info().misses, installed._by_package.cache_info().misses
    installed_plugins()
    assert list(distributions_of("torch")) == ["torch"]
    assert (plugins._installed.cache_info().misses, installed._by_package.cache_info().misses) == before


def test_a_folder_that_is_not_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("/no/such/folder")
    assert ("/no/such/folder", -1) in installed.path_state()
