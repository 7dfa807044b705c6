"""Which files are read as recipes, from which folders they are included, and what errors quote of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.dummy_components import COMPLETE
from support.recipe_files import refused, value, write

from dlmrl_kit.recipe import load as recipe_module
from dlmrl_kit.recipe import plugins
from dlmrl_kit.recipe.files import MAX_BYTES
from dlmrl_kit.recipe.load import load_recipe

pytestmark = pytest.mark.usefixtures("dummies")

SECRET = "hf_secret_token"
TEXT = f"TOKEN = {SECRET}\n"

Made = tuple[str, Path]
"""What an include statement names, and the file that must not be read."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the recipe, with a neighbour that is none of its own."""
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside" / "private.gin", TEXT)
    folder = tmp_path / "mine"
    folder.mkdir()
    return folder


def _above(folder: Path) -> Made:
    return "../outside/private.gin", folder.parent / "outside" / "private.gin"


def _absolute(folder: Path) -> Made:
    path = folder.parent / "outside" / "private.gin"
    return str(path), path


def _link_to_a_file(folder: Path) -> Made:
    (folder / "link.gin").symlink_to(folder.parent / "outside" / "private.gin")
    return "link.gin", folder / "link.gin"


def _link_to_a_folder(folder: Path) -> Made:
    (folder / "base").symlink_to(folder.parent / "outside")
    return "base/private.gin", folder / "base" / "private.gin"


def _namesake(folder: Path) -> Made:
    # The name of the recipe's folder is how that of another one begins.
    other = folder.parent / f"{folder.name}-private"
    other.mkdir()
    return f"../{other.name}/a.gin", write(other / "a.gin", TEXT)


def _environment(folder: Path) -> Made:
    return "/proc/self/environ", Path("/proc/self/environ")


def _link_to_the_environment(folder: Path) -> Made:
    (folder / "environ.gin").symlink_to("/proc/self/environ")
    return "environ.gin", folder / "environ.gin"


def _zeros(folder: Path) -> Made:
    return "/dev/zero", Path("/dev/zero")


def _another_name(folder: Path) -> Made:
    return "notes.txt", write(folder / "notes.txt", TEXT)


def _link_to_another_name(folder: Path) -> Made:
    write(folder / "notes.txt", TEXT)
    (folder / "notes.gin").symlink_to(folder / "notes.txt")
    return "notes.gin", folder / "notes.gin"


def _pipe(folder: Path) -> Made:
    os.mkfifo(folder / "pipe.gin")
    return "pipe.gin", folder / "pipe.gin"


def _large(folder: Path) -> Made:
    return "large.gin", write(folder / "large.gin", "#" * MAX_BYTES + "\n" + TEXT)


REFUSED: list[Callable[[Path], Made]] = [
    _above,
    _absolute,
    _link_to_a_file,
    _link_to_a_folder,
    _namesake,
    _environment,
    _link_to_the_environment,
    _zeros,
    _another_name,
    _link_to_another_name,
    _pipe,
    _large,
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", REFUSED)
def test_include_that_is_no_recipe_of_this_folder(folder: Path, make: Callable[[Path], Made]) -> None:
    file, path = make(folder)
    asking = write(folder / "a.gin", f"{COMPLETE}\ninclude {file!r}\n")
    message = refused(asking)
    assert message.startswith(f"{asking}:")
    assert file in message or str(path) in message
    assert SECRET not in message
    assert len(message) < 400 + 3 * len(str(folder))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "make", [_link_to_the_environment, _zeros, _another_name, _link_to_another_name, _pipe, _large, _environment]
)
def test_recipe_that_is_none(folder: Path, make: Callable[[Path], Made]) -> None:
    _, path = make(folder)
    message = refused(path, str(path))
    assert SECRET not in message


def test_includes_below_the_recipe_of_the_kit_and_of_plugins(
    folder: Path, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = folder.parent / "plugin" / "recipes"
    (plugin / "deep").mkdir(parents=True)
    (folder / "base").mkdir()
    monkeypatch.setattr(recipe_module, "recipe_folders", lambda: [plugin])
    write(folder / "base" / "own.gin", "DummyTopK.k = 5\n")
    write(folder / "base" / "leaf.gin", "include '../beside.gin'\n")  # up, but not out
    write(folder / "beside.gin", "DummyTopK.share = 0.25\n")
    write(recipes / "base" / "all.gin", COMPLETE)
    write(plugin / "deep" / "theirs.gin", "DummyMean.eps = 0.75\n")
    files = ["base/all.gin", "base/own.gin", "base/leaf.gin", str(plugin / "deep" / "theirs.gin")]
    recipe = load_recipe(write(folder / "a.gin", "".join(f"include {file!r}\n" for file in files)))
    keys = ("DummyTopK.k", "DummyTopK.share", "DummyMean.eps")
    assert [value(recipe, key) for key in keys] == [5, 0.25, 0.75]


def test_the_recipes_of_plugins_are_found_without_importing_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder.parent / "site" / "acme_recipes_only"
    (package / "recipes").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    write(package / "recipes" / "theirs.gin", COMPLETE)
    installed = [
        plugins.Plugin("acme", "acme_recipes_only.components", "acme", "1"),
        plugins.Plugin("gone", "no_such_package", "gone", "1"),
        plugins.Plugin("broken", ":x", "broken", "1"),
    ]
    monkeypatch.setattr(plugins, "installed_plugins", lambda: installed)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delenv(plugins.OFF_SWITCH, raising=False)
    assert plugins.recipe_folders() == [package / "recipes"]
    path = write(folder / "a.gin", f"include {str(package / 'recipes' / 'theirs.gin')!r}\n")
    assert value(load_recipe(path), "DummyTopK.k") == 4
    monkeypatch.setenv(plugins.OFF_SWITCH, "1")
    refused(path, "is not included")


@pytest.mark.parametrize(
    "line",
    [
        "DummyTopK.share = {long}",
        "DummyTopK.share {long}",
        "DummyTopK.share '{long}'",
        "DummyTopK.share = 1 '{long}'",
        "DummyTopK.share = '{long}'",
        "DummyTopK.share = ['{long}'",
        "DummyTopK.k = b'{long}'",
        "DummyTopK.{long} = 1",
        "{long}.k = 1",
        "{long}/DummyTopK.k = 1",
        "{long} = 1",
        "DummyTopK.share = %{long}",
        "DummyTopK.share = @{long}()",
        "DummyTopK.share = @{long}/DummyMean()",
        "import {long}",
        "from {long} import a",
        "include '{long}'",
        "include '{long}.gin'",
        "Algorithm.selector = '{long}'",
        "DummyLoss.clip = -1{zeros}",
    ],
)
def test_messages_quote_little_of_a_line(tmp_path: Path, line: str) -> None:
    text = line.format(long="x" * 5000, zeros="0" * 2000)
    message = refused(write(tmp_path / "a.gin", f"{COMPLETE}\n{text}\n"), allow_imports=True)
    assert max(message.count("x"), message.count("0")) < 200 + 30  # and what the message itself says
