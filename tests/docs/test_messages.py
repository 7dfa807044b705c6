"""Every message on the page is one that the kit writes."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from support.paths import ROOT

ROWS = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs" / "messages.md").read_text(), re.M)
VALUE = "\0"


@cache
def texts() -> list[str]:
    """The texts in the kit's code, with a mark in the place of each value that is filled in."""
    found = []
    for path in (ROOT / "dlmrl_kit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else VALUE for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("message", ROWS)
def test_the_kit_writes_it(message: str) -> None:
    pattern = ".*".join(re.escape(part) for part in message.removeprefix("note: ").split("…"))
    assert any(re.search(pattern, text, re.S) for text in texts()), message


def test_there_are_messages() -> None:
    assert len(ROWS) > 40
