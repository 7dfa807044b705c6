"""Broken recipes end in one clear line and exit code 2; the first line of each file says what the message must hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dlmrl_kit.cli.app import app

FOLDER = Path(__file__).parent / "broken_recipes"
NAMES_A_LINE = {"missing_value", "empty", "unfilled_slot", "unwritten_key"}
"""Mistakes that are no single line of the file: the file is named instead."""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.gin")), ids=lambda path: path.stem)
def test_broken_recipe(path: Path) -> None:
    expected = path.read_text().split("\n", 1)[0].removeprefix("# expect: ")
    result = CliRunner().invoke(app, ["check", str(path)])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert expected in result.stderr
    assert path.name in result.stderr
    if path.stem not in NAMES_A_LINE:
        assert f"{path.name}:" in result.stderr
