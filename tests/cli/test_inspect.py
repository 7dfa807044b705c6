"""``dlmrl list``, ``show`` and ``check``."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    assert "base/egspo" in recipes


def test_list_as_json() -> None:
    everything = json.loads(dlmrl("list", "--json").stdout)
    selectors = json.loads(dlmrl("list", "selectors", "--json").stdout)
    recipes = json.loads(dlmrl("list", "recipes", "--json").stdout)
    assert [c for c in everything["components"] if c["kind"] == "selector"] == selectors["components"] != []
    assert everything["recipes"] == recipes["recipes"]
    assert {"egspo_sa", "base/egspo"} <= {recipe["name"] for recipe in recipes["recipes"]}


def test_show_as_json() -> None:
    shown = json.loads(dlmrl("show", "EntropyTopK", "--json").stdout)
    assert (shown["kind"], shown["gin_name"]) == ("selector", "dlmrl_kit.selector.EntropyTopK")
    assert {"name": "k", "type": "int", "default": "4"} in shown["parameters"]
    assert "step.entropy" in [key["key"] for key in shown["keys"]["reads"]]
    recipe = json.loads(dlmrl("show", "egspo", "--json").stdout)
    assert recipe == {"recipe": "egspo", "text": dlmrl("show", "egspo").stdout}


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
    from dlmrl_kit.report.catalogue_file import catalogue

    for component in catalogue().components:
        result = dlmrl("show", component.gin_name)
        assert result.exit_code == 0, (component.gin_name, result.output)


def test_show_recipe_is_its_file() -> None:
    source = Path(dlmrl_kit.__file__).parents[1] / "recipes" / "egspo.gin"
    result = dlmrl("show", "egspo")
    assert result.stdout == source.read_text(encoding="utf-8")
    assert dlmrl("show", "base/egspo").stdout == (source.parent / "base" / "egspo.gin").read_text(encoding="utf-8")


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


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Starts the command in a process that Ctrl-C ends, wherever the tests run, and that ends with the block."""

    def with_interrupts() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it

    command = [sys.executable, "-m", "dlmrl_kit", *arguments]
    kept: dict[str, Any] = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
        "text": True,
        "preexec_fn": with_interrupts,
    }
    with subprocess.Popen(command, **kept) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.thorough
def test_check_watch_checks_again_when_a_file_is_saved(tmp_path: Path) -> None:
    recipe, base = tmp_path / "mine.gin", tmp_path / "base.gin"
    base.write_text("include 'egspo_sa.gin'\n")
    recipe.write_text("include 'base.gin'\nTrainer.updates = 3\n")
    with started("check", str(recipe), "--watch") as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        # A file that is being written may be read half, and again: so further lines may stand between these.
        assert any("mine: ok" in line for line in lines)
        recipe.write_text("include 'base.gin'\nTrainer.updates: 3\n")
        assert any("not ':'" in line for line in lines)
        recipe.write_text("include 'base.gin'\nTrainer.updates = 4\n")
        assert any("mine: ok" in line for line in lines)
        base.write_text("include 'egspo_so.gin'\n")
        assert any("egspo_so.gin" in line for line in lines)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
