"""Which installed packages a sandbox sees: those that are asked for, and what these require."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from dlmrl_kit.core.errors import UserError

PACKAGES = "/packages"
"""Where they are found in a sandbox."""


def packages_seen(names: Iterable[str]) -> dict[str, Path]:
    """Returns where installed packages, and those that they require, are; by where they are found in a sandbox.

    Args:
        names: as they are imported.

    Raises:
        UserError: one is not installed.
    """
    found: dict[str, Path] = {}
    for name in _with_requirements(names):
        spec = PathFinder.find_spec(name)
        places = [] if spec is None else list(spec.submodule_search_locations or filter(None, [spec.origin]))
        for path in map(Path, places):
            found[f"{PACKAGES}/{path.name}"] = path
            if (libraries := path.parent / f"{name}.libs").is_dir():  # shared libraries that a wheel brings
                found[f"{PACKAGES}/{libraries.name}"] = libraries
    return found


def foreign_imports(*programs: str) -> set[str]:
    """Returns the packages that Python texts import and that are not in the standard library.

    Raises:
        SyntaxError: a text is no Python.
    """
    found: set[str] = set()
    for node in (node for program in programs for node in ast.walk(ast.parse(program))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names


def _with_requirements(names: Iterable[str]) -> list[str]:
    """Returns the names of modules that these packages and all that they require bring.

    Raises:
        UserError: one is not installed.
    """
    found: dict[str, None] = {}
    todo = list(dict.fromkeys(names))
    missing = [name for name in todo if name not in _distributions()]
    if missing:
        raise UserError(f"the sandbox is to see {missing[0]!r}, which is not installed: pip install {missing[0]}")
    while todo:
        name = todo.pop(0)
        if name in found or name not in _distributions():
            continue
        found[name] = None
        for distribution in _distributions()[name]:
            todo += [module for module, owners in _distributions().items() if distribution in owners]
            for requirement in metadata.requires(distribution) or ():
                required = _plain(re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0])
                if "extra" not in requirement.partition(";")[2]:
                    todo += [m for m, owners in _distributions().items() if required in map(_plain, owners)]
    return list(found)


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Returns the distributions that each importable top-level name comes from."""
    return metadata.packages_distributions()


def _plain(distribution: str) -> str:
    """Returns the name of a distribution in the form in which two that are the same are equal."""
    return re.sub("[-_.]+", "-", distribution).lower()
