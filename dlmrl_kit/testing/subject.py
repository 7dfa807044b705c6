"""Of which kind a component is, and an instance of it."""

from __future__ import annotations

import inspect
from typing import Any

from dlmrl_kit.core.registry import Component, registered
from dlmrl_kit.testing.core import attempt, fail

BASES: dict[str, str] = {
    "task": "dlmrl_kit.tasks.base.Task",
    "sampler": "dlmrl_kit.samplers.base.Sampler",
    "cache": "dlmrl_kit.caches.base.Cache",
    "filter": "dlmrl_kit.filters.base.Filter",
    "selector": "dlmrl_kit.selectors.base.Selector",
    "advantage": "dlmrl_kit.advantages.base.GroupAdvantage",
    "likelihood": "dlmrl_kit.likelihoods.base.Likelihood",
    "correction": "dlmrl_kit.corrections.base.Correction",
    "value": "dlmrl_kit.values.base.Value",
    "loss": "dlmrl_kit.losses.base.Objective",
    "regulariser": "dlmrl_kit.regularisers.base.Regulariser",
    "normaliser": "dlmrl_kit.normalisers.base.Normaliser",
    "schedule": "dlmrl_kit.schedules.base.Schedule",
    "logger": "dlmrl_kit.loggers.base.Logger",
    "demonstrator": "dlmrl_kit.demonstrators.base.Demonstrator",
}
"""Base class of each kind that has one: tells the kind of a class that is not registered (yet)."""

BY_NAME: dict[str, Any] = {"completion_length": 12, "path": "shipped:sudoku4x4"}
BY_ANNOTATION: dict[str, Any] = {"int": 1, "float": 0.5, "str": "", "bool": False}


def entry_of(cls: type) -> Component | None:
    """The registration of exactly this class."""
    return next((entry for entry in registered() if entry.cls is cls), None)


def kind_of(cls: type) -> str:
    """The kind of a component class: as registered (it or a base class), or by the base class of the kind.

    Raises:
        ConformanceError: it cannot be told.
    """
    for base in cls.__mro__:
        if (entry := entry_of(base)) is not None:
            return entry.kind
    names = {f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__}
    found = [kind for kind, base_name in BASES.items() if base_name in names]
    if not found:
        fail(cls.__name__, "is of no kind", 'decorate the class with @register("selector"), or whichever kind it is')
    return found[0]


def build(component: Any) -> Any:
    """The instance itself; of a class, an instance with defaults and placeholders for what has none.

    Raises:
        ConformanceError: the class cannot be built like that.
    """
    if not isinstance(component, type):
        return component
    required = {
        p.name: BY_NAME.get(p.name, BY_ANNOTATION.get(str(p.annotation)))
        for p in inspect.signature(component).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    given = ", ".join(f"{name}={value!r}" for name, value in required.items())
    fix = "give its parameters defaults that work, or check an instance instead of the class"
    with attempt(component.__name__, f"built as {component.__name__}({given})", fix):
        return component(**required)
