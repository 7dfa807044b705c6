"""What a component depends on beside its settings: files, and the folder that relative paths start from."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlmrl_kit.core.signatures import constructor_of
from dlmrl_kit.core.version import PACKAGE

if TYPE_CHECKING:
    from typing_extensions import Self


class Dependent:
    """The part of every component's base class that says what else must stay the same for a run to stay the same.

    A resumed run compares the contents of these files with those it started with. Components that a component takes as
    parameters are asked themselves; it need not name their files.
    """

    constructed_with: Mapping[str, object]
    """The arguments that the constructor was given, by parameter; for recipes of what was built in Python."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keeps the arguments; a constructor that does not take them says so itself."""
        new = super().__new__
        made: Self = new(cls) if new is object.__new__ else new(cls, *args, **kwargs)
        with contextlib.suppress(TypeError, ValueError):
            bound = constructor_of(cls).bind_partial(*args, **kwargs)
            object.__setattr__(made, "constructed_with", _by_parameter(bound))
        return made

    @classmethod
    def anchored(cls, settings: Mapping[str, object]) -> dict[str, object]:
        """Returns new values for those settings that depend on the current folder, such as a relative path.

        Recipes keep these values, so that they mean the same in any folder. Default: no setting does.

        Args:
            settings: what the constructor is going to be given, literals only, defaults included.
        """
        return {}

    def files(self) -> tuple[Path, ...]:
        """Returns the files and folders whose contents the component depends on. Default: none."""
        return ()

    def versions(self) -> Mapping[str, str]:
        """Returns the versions of what the component depends on that is no file here, such as data of the hub, by name.

        A resumed run compares them as it compares files. Default: nothing.
        """
        return {}


def _by_parameter(bound: inspect.BoundArguments) -> dict[str, object]:
    """Returns arguments by the names of parameters, those of ``**kwargs`` among them."""
    parameters, found = bound.signature.parameters, dict[str, object]()
    for name, value in bound.arguments.items():
        found.update(value if parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return found


def anchored_path(text: object) -> str | None:
    """Returns the absolute path of a file or folder named by a relative one; None for whatever else ``text`` is."""
    if not isinstance(text, str) or not text or "\0" in text:
        return None
    path = Path(text).expanduser()
    return None if Path(text).is_absolute() or not path.exists() else str(path.absolute())


def anchored_paths(settings: Mapping[str, object], *names: str) -> dict[str, object]:
    """Returns those of the named settings that are relative paths of files or folders, as absolute ones."""
    found = {name: anchored_path(settings.get(name)) for name in names}
    return {name: path for name, path in found.items() if path is not None}


INSTALLED = ("site-packages", "dist-packages")
"""Names of folders with installed packages, of which versions are kept, not contents."""


def code_of(module: str, file: Path) -> set[Path]:
    """Lists the Python files that a module depends on, itself included, without running any.

    Args:
        module: its full name.
        file: where it is.

    Returns:
        The file, or all files of the package that it is in, and those of modules and packages beside it that these
        import. Of what is installed the file alone.
    """
    root = root_of(module, file)
    if root is None or _is_installed(root):
        return {file}
    return with_imports({file, *(root / module.split(".")[0]).rglob("*.py")}, root)


def root_of(module: str, file: Path) -> Path | None:
    """Returns the folder on the Python path that a module, in ``file``, was found from; None where no folder fits."""
    top = module.split(".")[0]
    holding = (folder for folder in file.parents if (folder / top).is_dir() or (folder / f"{top}.py").is_file())
    return next(holding, None)


def with_imports(code: Iterable[Path], root: Path) -> set[Path]:
    """Adds to Python files those of the modules and packages that they import, of a package all files.

    Args:
        code: the files.
        root: folder of the top-level module or package that they belong to. Imports are looked up there and in the
            folder of the importing file; nowhere if it is one of installed packages. The kit itself is left out: its
            version is kept.
    """
    found, todo, packages = set[Path](), list(code), set[Path]()
    installed = _is_installed(root)
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.add(file)
        names = set() if installed else _imported(file) - {PACKAGE}
        for package in {folder / name for name in names for folder in (file.parent, root)} - packages:
            if (package / "__init__.py").is_file():
                packages.add(package)
                todo += package.rglob("*.py")
            elif (module := package.with_name(f"{package.name}.py")).is_file():
                todo.append(module)
    return found


def _is_installed(folder: Path) -> bool:
    """Tells whether a folder is one of installed packages, or of Python's own modules."""
    python = Path(sysconfig.get_path("stdlib"))
    return folder.is_relative_to(python) or any(part in INSTALLED for part in folder.parts)


def _imported(file: Path) -> frozenset[str]:
    """Returns the top-level names of the modules that a file imports; none if it is no Python."""
    try:
        about = file.stat()
    except OSError:
        return frozenset()
    return _parsed(file, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=4096)
def _parsed(file: Path, changed: int, size: int) -> frozenset[str]:
    """Parses a file once while it stays the same: each run of a process asks for all files of its plugins."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return frozenset()
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return frozenset(found)
