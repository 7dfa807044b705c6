"""``dlmrl eval``: its table, JSON and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command_line import dlmrl


def test_eval_table(run: Path) -> None:
    result = dlmrl("eval", str(run), "--size", "4")
    assert result.exit_code == 0, result.output
    assert "4 examples of heldout; greedy, sampler LowConfidence" in result.stdout
    assert "accuracy [95% CI]" in result.stdout
    assert result.stdout.count(":  ") >= 4  # the samples, whose prompts end in a colon


def test_eval_json_is_all_there_is_on_stdout(run: Path) -> None:
    options = ("--size", "4", "--temperature", "0.7", "--samples", "2", "--split", "train", "--json")
    result = dlmrl("eval", str(run), *options, "--set", "LowConfidence.tokens_per_step=4")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert (data["split"], data["size"]) == ("train", 4)
    assert data["decoding"]["temperature"] == 0.7
    assert data["decoding"]["tokens_per_step"] == 4
    assert set(data["pass_at_k"]) == {"1", "2"}


def test_eval_in_pieces_and_in_half_precision(run: Path) -> None:
    plain = dlmrl("eval", str(run), "--size", "4", "--json")
    pieces = dlmrl("eval", str(run), "--size", "4", "--batch-size", "3", "--json")
    assert json.loads(pieces.stdout) == json.loads(plain.stdout)
    half = dlmrl("eval", str(run), "--size", "4", "--precision", "bfloat16", "--json")
    assert half.exit_code == 0, half.output
    wrong = dlmrl("eval", str(run), "--precision", "float16")
    assert wrong.exit_code == 2
    assert "unknown precision 'float16'; available: float32, bfloat16" in wrong.stderr


def test_eval_of_a_model_with_a_recipe(run: Path) -> None:
    result = dlmrl("eval", str(run / "model"), "--recipe", "egspo", "--size", "2", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["size"] == 2


def test_eval_mistakes(run: Path) -> None:
    for options, message in (
        (("--samples", "4"), "temperature above 0"),
        (("--split", "test"), "unknown split 'test'"),
    ):
        result = dlmrl("eval", str(run), *options)
        assert result.exit_code == 2
        assert message in result.stderr


@pytest.mark.parametrize("key", ["LowConfidence.temperature", "Sampler.temperature"])
def test_settings_that_an_evaluation_replaces_are_refused(run: Path, tmp_path: Path, key: str) -> None:
    refused = f"--set {key}=0.5: an evaluation has a temperature of its own; give --temperature T"
    for options in ((), ("--out", str(tmp_path / "grid")), ("--temperature", "0.5")):
        result = dlmrl("eval", str(run), "--set", f"{key}=0.5", *options)
        assert result.exit_code == 2
        assert refused in result.stderr


@pytest.mark.parametrize(("key", "value"), [("Sampler.top_k", "3"), ("LowConfidence.top_p", "0.9")])
def test_filters_are_refused_where_nothing_is_drawn(run: Path, key: str, value: str) -> None:
    filters = ("--set", f"{key}={value}", "--size", "2", "--json")
    assert "is greedy, without filters; give --temperature T" in dlmrl("eval", str(run), *filters).stderr
    assert dlmrl("eval", str(run), *filters, "--temperature", "0.7").exit_code == 0
