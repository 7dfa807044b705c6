"""``dlmrl list``, ``show`` and ``check``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.command_line import dlmrl

import dlmrl_kit


def test_list() -> None:
    everything = dlmrl("list").stdout
    for name in ("EntropyTopK", "MetricsCSV", "Sudoku4x4", "egspo_sa"):
        assert name in everything
    selectors = dlmrl("list", "selector").stdout
    assert "UniformSteps" in selectors
    assert "dlmrl_kit" in selectors
    assert "Sudoku4x4" not in selectors
    assert dlmrl("list", "selectors").stdout == selectors
    recipes = dlmrl("list", "recipes").stdout
    assert "egspo_sa" in recipes
    assert "EntropyTopK" not in recipes


def test_show_component() -> None:
    result = dlmrl("show", "StepTokenLogProb")
    assert result.exit_code == 0
    for expected in (
        "likelihood, package dlmrl_kit",
        "paper    arXiv 2603.12554",
        "gradient unbiased",
        "--use likelihood=StepTokenLogProb",
        "likelihoods/steps.py",
    ):
        assert expected in result.stdout
    assert re.search(r"sampling_temperature +bool +True", result.stdout)
    assert re.search(r"reads +prompt_ids +int64 \[B, P\]", result.stdout)
    assert re.search(r"writes +selected\.log_prob", result.stdout)
    assert re.search(r"on demand +selected\.token_mask", result.stdout)


def test_show_explains_parameters_documented_in_the_base_class() -> None:
    result = dlmrl("show", "dlmrl_kit.sampler.LowConfidence")
    assert "completion_length: L, number of positions to fill" in result.stdout
    assert re.search(r"completion_length +int +required", result.stdout)


@pytest.mark.thorough
def test_show_every_component() -> None:
    from dlmrl_kit.recipe.catalogue import components

    for component in components():
        result = dlmrl("show", component.gin_name)
        assert result.exit_code == 0, (component.gin_name, result.output)


def test_show_recipe_is_its_file() -> None:
    source = Path(dlmrl_kit.__file__).parents[1] / "recipes" / "egspo.gin"
    result = dlmrl("show", "egspo")
    assert result.stdout == source.read_text(encoding="utf-8")


def test_check_text(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.gin"
    recipe.write_text("include 'egspo_sa.gin'\nEntropyTopK.k = 3\n")
    result = dlmrl("check", str(recipe), "--use", "selector=UniformSteps", "--set", "UniformSteps.k=2")
    assert result.exit_code == 0, result.output
    order = re.findall(r"^ (sampler|reward|selector|advantage|likelihood|loss|regulariser) ", result.stdout, re.M)
    assert order[0] == "sampler"
    assert order.index("selector") < order.index("advantage") < order.index("likelihood") < order.index("loss")
    assert "UniformSteps.k = 2\n" in result.stdout
    assert "mine: ok" in result.stderr
    assert "note: dropped EntropyTopK.k = 3" in result.stderr


def test_check_json(tmp_path: Path) -> None:
    result = dlmrl("check", "egspo", "--json")
    data = json.loads(result.stdout)
    stages = {stage["component"]: stage for stage in data["stages"]}
    assert "step.entropy" in stages["EntropyTopK"]["reads"]
    assert "selected.step" in stages["EntropyTopK"]["writes"]
    copy = tmp_path / "copy.gin"
    copy.write_text(data["text"])
    again = json.loads(dlmrl("check", str(copy), "--json").stdout)
    assert again["stages"] == data["stages"]


def test_check_pretraining_recipe() -> None:
    result = dlmrl("check", "pretrain_sudoku4x4")
    assert result.exit_code == 0, result.output
    assert "MaskedDiffusion.steps" in result.stdout
