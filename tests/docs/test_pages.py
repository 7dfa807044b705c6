"""The documentation is executed: commands in a temporary folder with small sizes appended, Python blocks as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.paths import ROOT
from typer.testing import CliRunner

from dlmrl_kit.cli.app import app
from dlmrl_kit.core.keys import keys_table
from dlmrl_kit.core.registry import KINDS
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.recipe.load import recipe_names

PAGES = [
    "quickstart",
    "algorithms",
    "compose-an-algorithm",
    "run-an-ablation",
    "write-a-plugin",
    "check-a-component",
    "trajectory",
    "command-line",
    "mathematics",
    "audit",
    "torchrl-environment",
    "small-denoiser",
]
SMALL = {
    "train": ["Trainer.updates=2", "Trainer.prompts_per_update=2", "Trainer.group_size=2", "Trainer.eval_size=8"],
    "eval": ["Sudoku4x4.num_heldout=16"],
    "profile": ["Trainer.prompts_per_update=2", "Trainer.group_size=2", "Sudoku4x4.num_train=16"],
    "pretrain": ["MaskedDiffusion.steps=2", "MaskedDiffusion.eval_size=4", "Sudoku4x4.num_pretrain=16"],
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
runner = CliRunner()


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text())


def run(line: str, expected_error: str | None) -> None:
    words = shlex.split(line)
    assert words[0] == "dlmrl"
    arguments = words[1:]
    if "--resume" not in arguments:
        for binding in SMALL.get(arguments[0], []):
            arguments += ["--set", binding]
        if arguments[0] == "train":
            arguments += ["--set", "Sudoku4x4.num_train=16", "--set", "Sudoku4x4.num_heldout=16"]
    result = runner.invoke(app, arguments)
    if expected_error is None:
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    else:
        assert result.exit_code == 2
        assert expected_error in result.output


@pytest.mark.parametrize("page", ["quickstart", "compose-an-algorithm", "trajectory", "small-denoiser", "command-line"])
def test_examples_run_as_written(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for language, text in blocks(page):
        if language == "gin" and text.startswith("# file: "):
            (tmp_path / text.split("\n", 1)[0].removeprefix("# file: ")).write_text(text)
        elif language == "python":
            exec(compile(text, f"{page}.md", "exec"), {})
        elif language == "console":
            lines = text.splitlines()
            for line, after in zip(lines, [*lines[1:], ""], strict=True):
                if line.startswith("$ "):
                    run(line[2:], after.removeprefix("error: ... ") if after.startswith("error: ") else None)


def test_the_table_of_keys_is_current() -> None:
    assert keys_table() in (ROOT / "docs/trajectory.md").read_text()


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_component_and_recipe_is_documented() -> None:
    compose = (ROOT / "docs/compose-an-algorithm.md").read_text()
    slots = {"sampler", "cache", "selector", "advantage", "likelihood", "correction", "loss", "regulariser"}
    own = [c for c in components() if c.package == "dlmrl_kit"]
    for component in own:
        assert component.summary, component.name
        if component.kind in slots:
            assert f"`{component.name}`" in compose, f"{component.name} is missing in compose-an-algorithm.md"
    assert set(KINDS) == {c.kind for c in own}
    changelog = (ROOT / "CHANGELOG.md").read_text()
    for name in recipe_names():
        assert f"`{name}`" in changelog


@pytest.mark.parametrize("page", PAGES)
def test_pages_exist_and_are_linked_from_the_readme(page: str) -> None:
    assert (ROOT / "docs" / f"{page}.md").is_file()
    assert f"docs/{page}.md" in (ROOT / "README.md").read_text()


def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_examples_run_as_written("real-models", tmp_path, monkeypatch)
    assert (tmp_path / "runs" / "lora" / "adapter").is_dir()
