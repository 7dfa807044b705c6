"""Where the code of a reward function is, found without running it."""

from __future__ import annotations

import os
from importlib.machinery import PathFinder
from pathlib import Path

from dlmrl_kit.core.dependencies import with_imports
from dlmrl_kit.scoring.pool import search_path


def module_path(folder: str | None) -> list[str]:
    """Returns where modules of reward functions are looked for: the Python path, ``folder``, the current folder.

    Where the current folder is on the Python path, ``folder`` stands right before it.
    """
    path, here = search_path(), os.getcwd()
    return path if folder is None else [*path[: path.index(here)], folder, *path[path.index(here) :]]


def folder_of(name: str) -> Path | None:
    """Returns the folder that a reward function's module, or the package that it is in, is found in; None without."""
    found = PathFinder.find_spec(_top(name), search_path())
    if found is None:
        return None
    places = [Path(place).parent for place in found.submodule_search_locations or ()]
    places += [Path(found.origin).parent] if found.origin else []
    return places[0].resolve() if places else None


def source_files(name: str, folder: str | None) -> tuple[Path, ...]:
    """Lists the Python files that a reward function depends on.

    Args:
        name: ``module:function``.
        folder: as ``module_path``.

    Returns:
        The module's file, or all files of the package that it is in, and those of the modules and packages beside it
        that these import. Empty where the module has no Python file.
    """
    spec = PathFinder.find_spec(_top(name), module_path(folder))
    if spec is None:
        return ()
    code = {file for place in spec.submodule_search_locations or () for file in Path(place).rglob("*.py")}
    code |= {Path(spec.origin)} if spec.origin and spec.origin.endswith(".py") else set()
    places = [Path(place) for place in spec.submodule_search_locations or ()] or [Path(spec.origin or "")]
    return tuple(sorted(with_imports(code, places[0].parent)))


def _top(name: str) -> str:
    """Returns the top-level module, or package, of ``module:function``."""
    return name.partition(":")[0].split(".")[0]
