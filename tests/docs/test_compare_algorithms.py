"""docs/compare-algorithms.md is followed as it is written; runs of its commands only write what a run leaves behind."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.comparisons import fake_comparisons
from support.paths import ROOT
from typer.testing import CliRunner

from dlmrl_kit.cli.app import app
from dlmrl_kit.experiments.referee.report import TITLES
from dlmrl_kit.experiments.referee.spec_file import read_spec

__all__ = ["fake_comparisons"]
PAGE = (ROOT / "docs" / "compare-algorithms.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.thorough
@pytest.mark.usefixtures("fake_comparisons")
def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(text[2:]) for language, text in BLOCKS if language == "console"]
    assert [command[:2] for command in commands] == [["dlmrl", "compare"]] * 3
    for command in commands:
        result = CliRunner().invoke(app, command[1:])
        assert result.exit_code == 0, result.output
    for name in ("table.md", "runs.csv", "curves/default-egspo-seed-4.csv", "curves.svg", "differences.pdf"):
        assert (tmp_path / "compared" / name).is_file()


def test_the_file_is_read(tmp_path: Path) -> None:
    (text,) = [text for language, text in BLOCKS if language == "toml"]
    (tmp_path / "spec.toml").write_text(text)
    spec = read_spec(tmp_path / "spec.toml")
    assert [task.name for task in spec.tasks] == ["easy", "hard"]
    assert [algorithm.name for algorithm in spec.algorithms][-1] == "even steps"
    assert spec.claims
    assert spec.recipes[-1] == str(tmp_path / "own.gin")


def test_every_column_is_explained() -> None:
    explained = {name.strip() for row in re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE) for name in row.split(",")}
    assert {*TITLES} - {"algorithm", "forwards"} <= explained


@pytest.mark.thorough
def test_the_python_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = [text for language, text in BLOCKS if language == "python"]
    names: dict[str, object] = {}
    exec(compile(text, "compare-algorithms.md", "exec"), names)
    assert (tmp_path / "compared" / "table.md").is_file()
    assert names["failed"] == []
