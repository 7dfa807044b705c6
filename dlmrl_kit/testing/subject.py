"""Of which kind a component is, what its constructor takes, and an instance of it."""

from __future__ import annotations

import inspect

from dlmrl_kit.algorithm.bases import BASE_CLASSES
from dlmrl_kit.core.registry import Claims, Entry, Parameter, registered
from dlmrl_kit.testing.core import attempt, fail

BY_NAME: dict[str, object] = {"completion_length": 12, "path": "shipped:sudoku4x4"}
BY_ANNOTATION: dict[str, object] = {"int": 1, "float": 0.5, "str": "", "bool": False}


def entry_of(cls: type) -> Entry | None:
    """Returns the registration of exactly this class."""
    return next((entry for entry in registered() if entry.cls is cls), None)


def kind_of(cls: type) -> str:
    """Returns the kind of a component class: that of its registration or an ancestor's, else of its base class.

    Raises:
        ConformanceError: it cannot be told.
    """
    for ancestor in inspect.getmro(cls):
        if (entry := entry_of(ancestor)) is not None:
            return entry.kind
    found = [kind for kind, base in BASE_CLASSES.items() if issubclass(cls, base)]
    if not found:
        fail(cls.__name__, "is of no kind", 'decorate the class with @register("selector"), or whichever kind it is')
    return found[0]


def fits_kind(cls: type) -> bool:
    """Whether the class inherits from the base class of its kind."""
    return issubclass(cls, BASE_CLASSES[kind_of(cls)])


def parameters_of(cls: type) -> tuple[Parameter, ...]:
    """Returns the parameters of a component's constructor, registered or not."""
    return Entry("", cls.__name__, cls, "", "", Claims()).parameters


def placeholder(parameter: Parameter) -> object:
    """Returns a value for a parameter without a default; None where none is known."""
    return BY_NAME.get(parameter.name, BY_ANNOTATION.get(parameter.annotation))


def build(component: object) -> object:
    """Returns the instance itself; of a class, an instance with defaults and placeholders for what has none.

    Raises:
        ConformanceError: the class cannot be built like that.
    """
    if not isinstance(component, type):
        return component
    required = {p.name: placeholder(p) for p in parameters_of(component) if p.required}
    given = ", ".join(f"{name}={value!r}" for name, value in required.items())
    fix = "give its parameters defaults that work, or check an instance instead of the class"
    with attempt(component.__name__, f"built as {component.__name__}({given})", fix):
        built: object = component(**required)
    return built
