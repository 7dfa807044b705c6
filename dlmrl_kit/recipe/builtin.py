"""Loads the kit's own components."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from dlmrl_kit.core.registry import KINDS
from dlmrl_kit.core.version import PACKAGE


@functools.cache
def load_builtin() -> None:
    """Imports the module of every component of the kit, torch with them; further calls do nothing."""
    for kind in [kind for kind in KINDS.values() if kind.package == PACKAGE]:
        package = importlib.import_module(f"dlmrl_kit.{kind.folder}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
