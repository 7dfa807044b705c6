"""Packages whose names are imported when they are first used (PEP 562), so that importing the package is cheap."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence


def lazily(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Makes what a package needs to offer names of its modules without importing them.

    Args:
        package: its ``__name__``.
        modules: the names by module below the package; the module ``""`` is the package itself, and its names are
            subpackages. The package repeats the names under ``if TYPE_CHECKING``, where editors and type checkers look.

    Returns:
        ``__getattr__``, ``__dir__`` and ``__all__`` of the package.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}{_hint(name, module_of)}")
        module = module_of[name]
        if not module:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(f"{package}.{module}"), name)

    names = sorted(module_of)
    return find, lambda: names, names


def _hint(name: str, known: Mapping[str, str]) -> str:
    """Returns the end of a message that suggests a name; "" for what may be a module that is yet to be imported."""
    if name.startswith("_") or name.islower():
        return ""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
