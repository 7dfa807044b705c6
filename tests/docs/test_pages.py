"""The documentation is executed: commands in a temporary folder with small sizes appended, Python blocks as written.

Its tables, links and names are compared with what is there.
"""

from __future__ import annotations

import operator
import pkgutil
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
from dlmrl_kit.recipe.load import load_recipe, recipe_names
from dlmrl_kit.recipe.plugins import ENTRY_POINT_GROUP

PAGES = [
    "quickstart",
    "algorithms",
    "compose-an-algorithm",
    "run-an-ablation",
    "compare-algorithms",
    "write-a-plugin",
    "check-a-component",
    "trajectory",
    "command-line",
    "mathematics",
    "audit",
    "python",
    "torchrl-environment",
    "small-denoiser",
    "real-models",
    "add-a-family",
    "own-data",
    "fine-tune",
    "from-nothing",
    "evaluation",
    "trackers",
    "performance",
    "rollouts-elsewhere",
    "architecture",
]
SMALL = {
    "train": ["Trainer.updates=2", "Trainer.prompts_per_update=2", "Trainer.group_size=2", "Trainer.eval_size=8"],
    "eval": ["Sudoku4x4.num_heldout=16"],
    "steps": ["Trainer.prompts_per_update=2", "Trainer.group_size=2", "Sudoku4x4.num_train=16"],
    "profile": ["Trainer.prompts_per_update=2", "Trainer.group_size=2", "Sudoku4x4.num_train=16"],
    "pretrain": ["MaskedDiffusion.steps=2", "MaskedDiffusion.eval_size=4", "Sudoku4x4.num_pretrain=16"],
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
every_page = pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=operator.attrgetter("name"),
)
runner = CliRunner()


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text())


def run(line: str, expected_error: str | None, *, own_data: bool = False) -> None:
    words = shlex.split(line)
    assert words[0] == "dlmrl"
    arguments = words[1:]
    if "--resume" not in arguments:
        small = [*SMALL.get(arguments[0], [])]
        if arguments[0] == "train":
            small += ["Sudoku4x4.num_train=16", "Sudoku4x4.num_heldout=16"]
        for binding in small:
            arguments += [] if own_data and binding.startswith("Sudoku4x4") else ["--set", binding]
    result = runner.invoke(app, arguments)
    if expected_error is None:
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    else:
        assert result.exit_code == 2
        assert expected_error in result.output


@pytest.mark.parametrize(
    "page",
    [
        "trajectory",
        "small-denoiser",
        "rollouts-elsewhere",
        pytest.param("look-at-trajectories", marks=pytest.mark.thorough),
        pytest.param("trackers", marks=pytest.mark.thorough),
        pytest.param("add-a-family", marks=pytest.mark.thorough),
        pytest.param("own-data", marks=pytest.mark.thorough),
        pytest.param("fine-tune", marks=pytest.mark.thorough),
        pytest.param("evaluation", marks=pytest.mark.thorough),
        pytest.param("quickstart", marks=pytest.mark.thorough),
        pytest.param("compose-an-algorithm", marks=pytest.mark.thorough),
        pytest.param("command-line", marks=pytest.mark.thorough),
        pytest.param("steps", marks=pytest.mark.thorough),
        pytest.param("many-processes", marks=pytest.mark.thorough),
    ],
)
def test_examples_run_as_written(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}  # later Python blocks use what earlier ones define
    for language, text in blocks(page):
        if language == "gin" and text.startswith("# file: "):
            (tmp_path / text.split("\n", 1)[0].removeprefix("# file: ")).write_text(text)
        elif language == "python":
            exec(compile(text, f"{page}.md", "exec"), names)
        elif language == "console":
            lines = text.splitlines()
            for line, after in zip(lines, [*lines[1:], ""], strict=True):
                if line.startswith("$ "):
                    error = after.removeprefix("error: ... ") if after.startswith("error: ") else None
                    run(line[2:], error, own_data=page in ("own-data", "fine-tune"))


def test_the_recipe_in_the_readme_is_the_default_recipe(tmp_path: Path) -> None:
    (shown,) = [text for language, text in BLOCK.findall((ROOT / "README.md").read_text()) if language == "gin"]
    (tmp_path / "shown.gin").write_text(shown)
    assert load_recipe(tmp_path / "shown.gin").text(header=False) == load_recipe("egspo_sa").text(header=False)


def test_the_table_of_keys_is_what_the_package_gives() -> None:
    page = (ROOT / "docs" / "trajectory.md").read_text()
    assert re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE) == [keys_table() + "\n"]


def headings(page: str) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for path, place in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {path}"
        if target.suffix == ".md" and place:
            assert place in headings(target.read_text()), f"{page.name} links to {path}#{place}"


ELSEWHERE = {"acme-steps/", "my_"}
"""What examples of pages call their own files."""


@every_page
def test_files_and_objects_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"[\w./-]*\b(?:tests|benchmarks|dlmrl_kit|recipes|plugins)/[\w/.-]+\.(?:py|gin)\b", text):
        if not any(own in path for own in ELSEWHERE):
            assert (page.parent / path).exists() or (ROOT / path).exists(), path
    for name in re.findall(r"`(dlmrl_kit(?:\.\w+)+)(?:\(.*\))?`", text):
        if name not in ("dlmrl_kit.json", ENTRY_POINT_GROUP):
            pkgutil.resolve_name(name)


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


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("*.md")}
    notebooks = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}
    linked = re.findall(r"^- \[[^]]*\]\((?!\.\.)([^)]+)\)", index, re.MULTILINE)
    assert sorted(linked) == sorted({*linked}), "a page is listed twice"
    assert {*linked} == (pages | notebooks) - {"index.md"}


@pytest.mark.parametrize("page", PAGES)
def test_pages_exist_and_are_linked_from_the_readme(page: str) -> None:
    assert (ROOT / "docs" / f"{page}.md").is_file()
    assert f"docs/{page}.md" in (ROOT / "README.md").read_text()


def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_examples_run_as_written("real-models", tmp_path, monkeypatch)
    assert (tmp_path / "runs" / "lora" / "adapter").is_dir()
