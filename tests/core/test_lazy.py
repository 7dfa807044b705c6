"""The names that packages import when they are used: those of every kind, and those of the kit itself."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import dlmrl_kit
from dlmrl_kit import training
from dlmrl_kit.core.registry import KINDS, registered
from dlmrl_kit.recipe.builtin import load_builtin

LAZY = [dlmrl_kit, training, *(importlib.import_module(f"dlmrl_kit.{kind.folder}") for kind in KINDS.values())]
every_package = pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)


def offered(kind: str) -> set[str]:
    """The components of a kind, the classes of its folder that they inherit from, and those of its ``base.py``."""
    prefix = f"dlmrl_kit.{KINDS[kind].folder}."
    components = [entry.cls for entry in registered(kind) if entry.package == "dlmrl_kit"]
    inherited = {base for cls in components for base in cls.__mro__ if base.__module__.startswith(prefix)}
    base = importlib.import_module(f"{prefix}base")
    own = {o for o in vars(base).values() if isinstance(o, type) and o.__module__ == base.__name__}
    return {cls.__name__ for cls in inherited | own if not cls.__name__.startswith("_")}


def for_type_checkers(package: ModuleType) -> set[str]:
    """The names that a package imports under ``if TYPE_CHECKING``."""
    assert package.__file__
    with open(package.__file__) as file:
        body = ast.parse(file.read()).body
    blocks = [node for node in body if isinstance(node, ast.If)]
    found = [
        alias for block in blocks for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert all(alias.name == alias.asname for alias in found)
    return {alias.name for alias in found}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_offers_its_components_and_what_they_inherit_from(kind: str) -> None:
    load_builtin()
    package = importlib.import_module(f"dlmrl_kit.{KINDS[kind].folder}")
    assert set(package.__all__) == offered(kind)
    for name in package.__all__:
        assert getattr(package, name).__name__ == name


@every_package
def test_type_checkers_see_the_names_that_there_are(package: ModuleType) -> None:
    assert for_type_checkers(package) == set(package.__all__) - {"__version__"}
    assert dir(package) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None


@every_package
def test_another_name_is_an_error_that_suggests_one(package: ModuleType) -> None:
    name = next(name for name in package.__all__ if not name.startswith("_"))
    with pytest.raises(AttributeError, match=rf"has no attribute '{name.title()}x'"):
        getattr(package, f"{name.title()}x")
    if name[0].isupper():
        with pytest.raises(AttributeError, match=f"did you mean '{name}'"):
            getattr(package, f"{name}x")


def test_kinds_are_names_of_the_kit() -> None:
    assert {kind.folder for kind in KINDS.values()} <= set(dlmrl_kit.__all__)


def test_functions_are_not_hidden_by_the_subpackages_of_their_names() -> None:
    importlib.import_module("dlmrl_kit.rollout.services")
    importlib.import_module("dlmrl_kit.audit.report")
    assert callable(dlmrl_kit.rollout)
    assert callable(dlmrl_kit.audit)
    assert sys.modules["dlmrl_kit.rollout"].__name__ == "dlmrl_kit.rollout"


def test_importing_the_kit_and_its_kinds_imports_no_torch() -> None:
    kinds = ", ".join(f"dlmrl_kit.{kind.folder}" for kind in KINDS.values())
    code = f"import sys, {kinds}; dir(dlmrl_kit); print([m for m in ('torch', 'rich', 'gin') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
