"""Checks of the class itself: base class, registration, documentation, constructor, copies."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import re

from dlmrl_kit.algorithm.bases import BASE_CLASSES
from dlmrl_kit.core.component import Component, settings
from dlmrl_kit.core.registry import Parameter
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.running import different, written
from dlmrl_kit.testing.subject import entry_of, fits_kind, kind_of, parameters_of, placeholder
from dlmrl_kit.testing.world import world

SECTION = re.compile(r"^ *Args: *\n(.*?)(?:\n *\n(?! {4,}\S)|\Z)", re.MULTILINE | re.DOTALL)
NAMES = re.compile(r"^ {4}([A-Za-z_][\w, *]*?)(?: \([^)]*\))?:", re.MULTILINE)
AS_BASE = re.compile(r"[Aa]rguments\b[^.:]*? as\b[^.:]*?`+(\w+)`+")


def docstring(cls: type) -> str:
    """Returns the docstring written in the class itself, without indentation; empty if there is none."""
    text = vars(cls).get("__doc__") or ""
    return "" if text.startswith(f"{cls.__name__}(") else inspect.cleandoc(text)  # dataclasses make up their own


def bases_named(cls: type) -> list[type]:
    """Returns the base classes that the docstring refers to: "Arguments as ``Base``"."""
    names = AS_BASE.findall(" ".join(docstring(cls).split()))
    return [base for base in inspect.getmro(cls)[1:] if base.__name__ in names]


def documented(cls: type) -> set[str]:
    """Returns the parameters named under Args, here or in a base class that the docstring refers to."""
    found: set[str] = set()
    for section in SECTION.findall(docstring(cls)):
        for names in NAMES.findall(section):
            found |= {name.strip(" *") for name in names.split(",")}
    return found.union(*(documented(base) for base in bases_named(cls)))


def says_raises(cls: type) -> bool:
    """Tells whether the docstring, or one that it refers to, has a section Raises."""
    return "Raises:" in docstring(cls) or any(says_raises(base) for base in bases_named(cls))


def check_base_class(name: str, component: object) -> None:
    """The class inherits from the base class of its kind, whose methods the kit calls."""
    kind = kind_of(type(component))
    if not fits_kind(type(component)):
        base = BASE_CLASSES[kind]
        fix = f"class {name}({base.__name__}), with `from {base.__module__} import {base.__name__}`"
        fail(name, f"is registered as a {kind}, but does not inherit from {base.__module__}.{base.__name__}", fix)


def check_registered(name: str, component: object) -> None:
    """The class is registered, so that recipes can use it by name."""
    cls = type(component)
    if entry_of(cls) is None:
        fail(name, "is not registered", f'decorate the class with @register("{kind_of(cls)}")')


def check_summary(name: str, component: object) -> None:
    """The class has a docstring of its own that starts with a summary of one line."""
    text = docstring(type(component))
    if not text:
        fail(name, "has no docstring", "give the class one: its first line is what `dlmrl list` shows")
    lines = text.split("\n")
    if len(lines) > 1 and lines[1].strip():
        fail(name, "has a summary of more than one line", "end it on the first line, and leave the second one empty")


def check_parameters_documented(name: str, component: object) -> None:
    """Every constructor parameter is named in the class docstring."""
    missing = [p.name for p in parameters_of(type(component)) if p.name not in documented(type(component))]
    if missing:
        fix = f'add "{missing[0]}: ..." to the section Args of the class docstring, or write "Arguments as ``Base``."'
        fail(name, f"does not document its parameter {', '.join(missing)}", fix)


def check_constructor_errors(name: str, component: object) -> None:
    """Numbers that make no sense are accepted or refused with a documented ValueError, nothing else."""
    cls = type(component)
    kept = settings(component)
    required = {p.name: kept.get(p.name, placeholder(p)) for p in parameters_of(cls) if p.required}
    for parameter in parameters_of(cls):
        for value in _probes(parameter):
            try:
                cls(**{**required, parameter.name: value})
            except ValueError:
                if not says_raises(cls):
                    problem = f"refuses {parameter.name}={value!r} with a ValueError that is not documented"
                    fail(name, problem, 'add a section Raises with "ValueError: a value out of range."')
            except Exception as error:  # a constructor may raise anything
                problem = f"raises {type(error).__name__} when built with {parameter.name}={value!r}: {error}"
                fail(name, problem, "check the value first (dlmrl_kit.core.validate.check) and raise a ValueError")


def check_copies(name: str, component: object) -> None:
    """Pickle and deepcopy give components that do the same."""
    fix = "define the class at the top of a module, and keep no lambdas, open files or generators in it"
    with attempt(name, "deep-copied", fix):
        copied = copy.deepcopy(component)
    with attempt(name, "pickled and loaded", fix):
        loaded = pickle.loads(pickle.dumps(component))
    if not isinstance(component, Component) or not fits_kind(type(component)):
        return
    expected = written(name, component, world())
    for how, twin in (("deepcopy", copied), ("pickle", loaded)):
        if isinstance(twin, Component) and (key := different(expected, written(name, twin, world()))):
            fix = "keep everything that decides its results in ordinary attributes"
            fail(name, f"writes other values of {key!r} after {how}", fix)


def _probes(parameter: Parameter) -> list[float]:
    number = isinstance(parameter.default, (int, float)) and not isinstance(parameter.default, bool)
    if isinstance(parameter.default, float) or "float" in parameter.annotation:
        return [-1.0, math.nan, math.inf]
    return [-1, 0] if number or parameter.annotation.startswith("int") else []


CHECKS = (
    check_base_class,
    check_registered,
    check_summary,
    check_parameters_documented,
    check_constructor_errors,
    check_copies,
)
