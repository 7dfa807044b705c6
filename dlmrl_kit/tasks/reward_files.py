"""Where the code of a reward function is, found without running it."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

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
        The module's file, those of the modules in the same folder that it imports, and of a package all files. Empty
        where the module has no Python file.
    """
    found: dict[Path, None] = {}
    _collect(_top(name), module_path(folder), found)
    return tuple(sorted(found))


def _top(name: str) -> str:
    """Returns the top-level module, or package, of ``module:function``."""
    return name.partition(":")[0].split(".")[0]


def _collect(module: str, path: Sequence[str], found: dict[Path, None]) -> None:
    spec = PathFinder.find_spec(module, path)
    if spec is None:
        return
    for place in spec.submodule_search_locations or ():
        found.update(dict.fromkeys(Path(place).rglob("*.py")))
    file = Path(spec.origin) if spec.origin else None
    if file is None or file.suffix != ".py" or file in found:
        return
    found[file] = None
    for name in _imported(file):
        if any((file.parent / beside).is_file() for beside in (f"{name}.py", os.path.join(name, "__init__.py"))):
            _collect(name, [str(file.parent)], found)


def _imported(file: Path) -> Iterator[str]:
    """Yields the top-level names of the modules that a file imports; none if it is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]
