"""The kept catalogue says what the registry says without importing a component, and is made again after a change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from dlmrl_kit.core.errors import RegistryError
from dlmrl_kit.core.registry import KINDS
from dlmrl_kit.core.version import PACKAGE
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.report import catalogue_file
from dlmrl_kit.report.catalogue_file import catalogue
from dlmrl_kit.report.descriptions import Description


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Path(platformdirs.user_cache_dir(PACKAGE)) / "catalogue.json"


def test_what_is_kept_is_what_is_registered(cache: Path) -> None:
    made, kept = catalogue(), catalogue()
    assert cache.is_file()
    assert kept == made
    own = [entry for entry in components() if entry.package == PACKAGE]
    assert [c for c in kept.components if c.package == PACKAGE] == [Description.of(entry) for entry in own]


def test_a_kept_catalogue_imports_no_component(cache: Path) -> None:
    catalogue()
    code = (
        "import sys; from dlmrl_kit.report.catalogue_file import catalogue; found = catalogue()\n"
        "print(len(found.components), [m for m in ('torch', 'tensordict', 'dlmrl_kit.losses.ppo') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert told == f"{len(catalogue().components)} []\n"


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"state": 1}', '{"components": [{}]}', "\0"])
def test_a_damaged_file_is_made_again(cache: Path, damage: str) -> None:
    made = catalogue()
    good = cache.read_text()
    cache.write_text(damage)
    assert catalogue() == made
    assert cache.read_text() == good


def test_damage_that_reads_as_json_with_the_right_state_is_made_again(cache: Path) -> None:
    made = catalogue()
    good = cache.read_text()
    cache.write_text(good.replace('"gin_name"', '"name_of_gin"'))
    assert catalogue() == made
    assert cache.read_text() == good


def test_a_changed_file_makes_it_again(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "one.py").write_text("x = 1\n")
    monkeypatch.setattr(catalogue_file, "KIT", package)
    states = [catalogue_file._state()]
    (package / "one.py").write_text("x = 22\n")
    states.append(catalogue_file._state())
    os.utime(package / "one.py", ns=(1, 1))
    states.append(catalogue_file._state())
    (package / "two.py").write_text("")
    states.append(catalogue_file._state())
    (package / "gone.py").symlink_to(package / "nowhere.py")
    assert len({*states}) == 4
    assert catalogue_file._state() == states[-1]


def test_a_cache_that_cannot_be_written_to_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert catalogue().named("EntropyTopK").kind == "selector"


def test_finding(cache: Path) -> None:
    found = catalogue()
    assert found.named("dlmrl_kit.selector.EntropyTopK") == found.named("EntropyTopK")
    assert found.of_kind("selectors") == found.of_kind("selector") != []
    assert sorted(c.gin_name for kind in KINDS for c in found.of_kind(kind)) == sorted(
        c.gin_name for c in found.of_kind(None)
    )
    with pytest.raises(RegistryError, match=r"no component or recipe named 'EntropyTopk'; did you mean 'EntropyTopK'"):
        found.named("EntropyTopk")
    with pytest.raises(RegistryError, match=r"unknown kind 'selecter'; did you mean 'selector'"):
        found.of_kind("selecter")
