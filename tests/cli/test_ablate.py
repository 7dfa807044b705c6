"""``dlmrl ablate``: JSON, tables, failures, wrong usage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.fake_runs import SWAPS, fake
from typer.testing import CliRunner, Result

from dlmrl_kit.cli.app import app


def dlmrl(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["ablate", *arguments])


@fake
def test_the_command_prints_json_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["egspo", "--swap", SWAPS[0], "--seeds", "2", "--out", str(tmp_path / "out")]
    result = dlmrl(*arguments, "--set", "Trainer.updates=20", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "out/summary.json").read_text())
    assert [v["swap"] for v in found["variants"]] == ["base", "selector=UniformSteps", "selector=FirstK"]
    assert "verified: selector=FirstK differs in Algorithm.selector (EntropyTopK -> FirstK)" in result.stderr
    assert "Trainer.updates = 20" in (tmp_path / "out/recipes/base.gin").read_text()


@fake
def test_the_command_shows_a_table_and_tells_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_selector_FirstK_seed_1", "fails")
    arguments = ["egspo", "--swap", SWAPS[0], "--seeds", "2", "--out", str(tmp_path / "out")]
    result = dlmrl(*arguments, "--set", "Trainer.updates=20")
    assert result.exit_code == 1, result.output
    squeezed = " ".join(result.stdout.split())
    for expected in (
        *("6 runs; ", "base/seed-0: starts", "base/seed-0: finished, accuracy 40.0% -> 40.0%"),
        "accuracy on 50 examples of heldout after 20 updates, greedy",
        "base (selector=EntropyTopK) 2 40.0% 41.0% [40.0, 42.0]",
        "selector=UniformSteps 2 40.0% 42.5% [41.0, 44.0] +1.5 points [+1.0, +2.0]",
        "selector=FirstK 1 (1 failed) 40.0% 39.0% — -1.0 points —",
        "failed: selector-FirstK/seed-1: the loss is not finite; see",
        str(tmp_path / "out" / "curves.png"),
    ):
        assert expected in squeezed, (expected, result.stdout)
    again = dlmrl(*arguments, "--set", "Trainer.updates=21")
    assert again.exit_code == 2
    assert "holds another ablation" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("egspo", "--swap", "selector=First", "--out", "x"), 2, "error: selector=First: no selector named 'First'"),
        (("egspo", "--out", "x"), 2, "--swap"),
        (("egspo", "--swap", "selector=FirstK"), 2, "--out"),
        (("egspo", "--swap", "selector=FirstK", "--out", "x", "--seeds", "0"), 2, "--seeds"),
        (("--help",), 0, "Example: dlmrl ablate egspo"),
    ],
)
def test_wrong_usage(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = dlmrl(*arguments)
    assert (result.exit_code, message in result.output) == (code, True), result.output
    assert not list(tmp_path.iterdir())
