"""docs/architecture.md: its links lead to the lines that they name, an update runs the files that it lists."""

from __future__ import annotations

import ast
import re
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.paths import ROOT
from support.runs import new_run

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


def executed(tmp_path: Path) -> set[str]:
    """The files of the package in which functions are called during the second update of EGSPO-SA."""
    run = new_run(tmp_path / "run")
    run.update(0)  # which also makes the examples, and compares old and new log-probabilities once
    seen = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    try:
        threading.setprofile(note)
        sys.setprofile(note)
        run.update(1)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    package = ROOT / "dlmrl_kit"
    return {str(path.relative_to(ROOT)) for path in map(Path, seen) if path.is_relative_to(package)}


def test_an_update_runs_the_files_that_are_listed(tmp_path: Path) -> None:
    section = PAGE.read_text().partition("## The files of one update\n")[2].partition("\n## ")[0]
    to_read, behind, rest = section.partition("\nBehind them")
    assert behind
    files = [re.findall(r"\]\(\.\./([^)#]+)\)", part) for part in (to_read, rest)]
    assert len(files[0]) == len(set(files[0])) <= 18, "more files to read than the page may ask for"
    assert not set(files[0]) & set(files[1])
    python = {file for part in files for file in part if file.endswith(".py")}
    assert executed(tmp_path) == python
    assert len(python) <= 25
