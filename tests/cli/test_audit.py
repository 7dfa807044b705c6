"""``dlmrl audit``: its table and JSON."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from dlmrl_kit.cli.app import app

runner = CliRunner()


def test_the_command() -> None:
    result = runner.invoke(app, ["audit", "egspo", "--problems", "1", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    wanted = {"relative_bias", "scale", "cosine", "variance", "verdict", "attribution", "mdp"}
    assert wanted <= set(found)
    assert found["mdp"][0]["method"] == "exact"
    table = runner.invoke(app, ["audit", "egspo", "--problems", "1", "--use", "likelihood=StepLogProb"])
    assert table.exit_code == 0
    assert "drops the steps of low entropy" in table.stdout
    refused = runner.invoke(app, ["audit", "pretrain_sudoku4x4"])
    assert refused.exit_code == 2
    assert "no policy gradient" in refused.output
