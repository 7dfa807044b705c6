"""Reward functions named ``module:function``: found without running code, loaded and called in worker processes."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import math
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import PathFinder
from typing import SupportsFloat, SupportsIndex

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.registry import nearest
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.tasks.reward_files import module_path

MAX_COMPONENTS = 64

_NAME = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<function>[^\W\d]\w*(\.[^\W\d]\w*)*)")


def check_reward_name(name: object, folder: str | None = None) -> None:
    """Checks what can be checked of ``module:function`` without running code: its form, and that there is a module.

    Args:
        name: ``module:function``.
        folder: as ``reward_files.module_path``.

    Raises:
        ValueError: another form, or no module of that name.
    """
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise ValueError(f"a reward function is written 'module:function', got {name!r}")
    top = match["module"].split(".")[0]
    if top == "__main__":
        raise ValueError("functions of the main script cannot be loaded elsewhere; put the function into a module")
    path = module_path(folder)
    if not (top in sys.modules or importlib.util.find_spec(top) or PathFinder.find_spec(top, path)):
        raise ValueError(_no_module(match["module"], top, path))


def load_reward_function(name: str, folder: str | None = None) -> Callable[[tuple[str, Example]], dict[str, float]]:
    """Imports the module of a reward function; returns the function, to be called with ``(completion, example)``.

    Args:
        name: ``module:function``.
        folder: as ``reward_files.module_path``; modules are looked for there from now on in this process.

    Raises:
        UserError: no such module or function.
    """
    module_name, _, path = name.partition(":")
    sys.path[:] = module_path(folder)
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{module_name}.".startswith(f"{missing}."):
            raise  # another module, which this one needs
        parent = missing.rpartition(".")[0]
        raise UserError(_no_module(module_name, missing, _path_of(parent) if parent else sys.path)) from error
    where = module_name
    for part in path.split("."):
        try:  # the user's module: whatever it says it has
            inner = getattr(found, part)
        except AttributeError:
            functions = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")]
            raise UserError(f"no function {part!r} in {where}; {nearest(part, functions)}") from None
        found, where = inner, f"{where}.{part}"
    if not callable(found):
        raise UserError(f"{name} is no function, but {type(found).__name__} {found!r:.80}")
    return functools.partial(_call, found, name)


def _call(function: Callable[..., object], name: str, item: tuple[str, Example]) -> dict[str, float]:
    """Calls a reward function and checks what it returns, which becomes components by name."""
    result = function(*item)
    values: Mapping[object, object] = result if isinstance(result, Mapping) else {"reward": result}
    if len(values) > MAX_COMPONENTS:
        raise ValueError(f"{name} returned {len(values)} components; {MAX_COMPONENTS} are the limit")
    components: dict[str, float] = {}
    for component, value in values.items():
        named = isinstance(component, str) and 0 < len(component) <= 64 and component.isprintable()
        if not isinstance(component, str) or not named or component == "failed":
            raise ValueError(f"{name} returned {component!r:.80} as the name of a component")
        if not isinstance(value, SupportsFloat | SupportsIndex) or not math.isfinite(float(value)):
            raise ValueError(f"{name} returned {component} = {value!r:.80}, which is no finite number")
        components[component] = float(value)
    return components


def _no_module(name: str, missing: str, path: Sequence[str]) -> str:
    last = missing.rpartition(".")[2]
    close = difflib.get_close_matches(last, {module.name for module in pkgutil.iter_modules(path)}, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    looked = " (looked in the Python path and in the current folder)" if "." not in missing else ""
    return f"no module named {missing!r} for the reward function of {name!r}{hint}{looked}"


def _path_of(module: str) -> Sequence[str]:
    """Returns where the modules of a package are looked for; empty for a module that is no package."""
    spec = sys.modules[module].__spec__ if module in sys.modules else None
    return [] if spec is None else spec.submodule_search_locations or []
