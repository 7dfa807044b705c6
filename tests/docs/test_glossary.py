"""docs/glossary.md: what it calls the kit's own is there."""

from __future__ import annotations

import functools
import re

import pytest
from support.paths import ROOT

from dlmrl_kit.core.keys import KEYS, key_text
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.recipe.load import recipe_names

PAGE = (ROOT / "docs" / "glossary.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if "|" in line]
NAMES = sorted({name for row in ROWS for cell in row[1:] for name in re.findall(r"`([^`]+)`", cell)})


@functools.cache
def known() -> tuple[set[str], set[str]]:
    """The names of classes, and those of parameters."""
    found = components()
    classes = {cls.__name__ for entry in found for cls in (entry.cls, *entry.ancestors)}
    return classes, {parameter.name for entry in found for parameter in entry.parameters}


def test_there_are_names() -> None:
    assert len(NAMES) > 60


@pytest.mark.parametrize("name", NAMES)
def test_the_kit_has_it(name: str) -> None:
    classes, parameters = known()
    head, _, last = name.partition(".")
    others = {*recipe_names(), *map(key_text, KEYS), "dlmrl pretrain", "@"}
    assert name in classes | parameters | others or (head in classes and last in parameters)
