"""Constructors as their callers see them, on every version of Python."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest

from dlmrl_kit.core.registry import Entry
from dlmrl_kit.core.signatures import constructor_of
from dlmrl_kit.recipe.catalogue import components

KIT = [entry for entry in components() if entry.package == "dlmrl_kit"]


class Made:
    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls)


class Plain(Made):
    def __init__(self, x: int, *, y: float = 2.0) -> None:
        pass


@dataclass(frozen=True)
class Data(Made):
    x: int
    y: float = 2.0


def test_what_a_base_class_makes_does_not_count() -> None:
    assert str(constructor_of(Plain)) == "(x: 'int', *, y: 'float' = 2.0) -> 'None'"
    assert list(constructor_of(Data).parameters) == ["x", "y"]
    assert list(constructor_of(type("Empty", (Made,), {})).parameters) == []


@pytest.mark.parametrize("entry", KIT, ids=lambda entry: entry.name)
def test_every_component_lists_its_parameters(entry: Entry) -> None:
    found = constructor_of(entry.cls).parameters.values()
    assert not [p for p in found if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    assert [p.name for p in entry.parameters] == [p.name for p in found]
    assert "self" not in {p.name for p in found}


def test_it_is_what_python_says_of_a_class_without_such_a_base() -> None:
    class Ordinary:
        def __init__(self, a: int, b: str = "") -> None:
            pass

    assert constructor_of(Ordinary).parameters == inspect.signature(Ordinary).parameters
