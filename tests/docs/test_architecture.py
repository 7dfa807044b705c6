"""docs/architecture.md: its links lead to the lines that they name, and it fits on about one screen."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from support.paths import ROOT

PAGE = ROOT / "docs" / "architecture.md"
LINKS = re.findall(r"\[`([\w.]+)`\]\(\.\./([^)#]+)#L(\d+)\)", PAGE.read_text())


def defined(path: Path) -> dict[str, int]:
    """Line of each function and class of a module, methods as ``Class.method``."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found[node.name] = node.lineno
        if isinstance(node, ast.ClassDef):
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
            found |= {f"{node.name}.{method.name}": method.lineno for method in methods}
    return found


def test_there_are_links() -> None:
    assert len(LINKS) > 15


@pytest.mark.parametrize(("name", "file", "line"), LINKS, ids=[name for name, _, _ in LINKS])
def test_a_link_leads_to_the_line_of_its_name(name: str, file: str, line: str) -> None:
    lines = defined(ROOT / file)
    assert name in lines, f"{file} defines no {name}"
    assert int(line) == lines[name], f"write #L{lines[name]} behind {file} for {name}"


def test_it_is_short() -> None:
    assert len(PAGE.read_text().splitlines()) <= 100
