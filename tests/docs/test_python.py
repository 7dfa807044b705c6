"""docs/python.md and docs/notebooks: the loop by hand reaches the weights of the run, notebooks run in a kernel."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from support.paths import ROOT

import dlmrl_kit as dk

PAGE = ROOT / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
BARS = {"look_at_a_trajectory": 0, "own_loss": 1, "quickstart": 1}
"""How many progress bars a notebook shows."""
ROUNDING = 1e-5
"""How far weights may be apart that were learned from the same samples, summed in another order."""


@pytest.mark.thorough
def test_the_page_runs_and_the_loop_reaches_the_weights_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, text in enumerate(BLOCKS):
        exec(compile(text, f"python.md, block {number}", "exec"), names)
    by_hand, run = names["policy"], names["run"]
    assert isinstance(by_hand, dk.Policy)
    assert isinstance(run, dk.TrainedRun)
    start = dict(dk.load_policy("shipped:sudoku4x4").named_parameters())
    of_run = dict(run.policy().named_parameters())
    with torch.no_grad():
        found = dict(by_hand.named_parameters())
        apart = max((weight - of_run[name]).abs().max().item() for name, weight in found.items())
        learned = max((weight - start[name]).abs().max().item() for name, weight in found.items())
    assert apart < ROUNDING < 10 * ROUNDING < learned
    assert "SelectedReward reads ('step', 'greedy_ids'), which was not asked for" in capsys.readouterr().out


def test_the_loop_is_short() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line and not line.lstrip().startswith("#")]) <= 36


def test_there_are_notebooks_and_the_page_names_them() -> None:
    assert len(NOTEBOOKS) == 3
    for notebook in NOTEBOOKS:
        assert f"notebooks/{notebook.name}" in PAGE.read_text()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_as_they_ran_and_small(notebook: Path) -> None:
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert notebook.stat().st_size < 80_000, "python docs/building/notebooks.py"
    assert tempfile.gettempdir() not in notebook.read_text()


def shown(cells: list[nbformat.NotebookNode]) -> list[set[str]]:
    """Of each code cell, as what its outputs are shown."""
    outputs = [cell.outputs for cell in cells if cell.cell_type == "code"]
    return [{kind for output in found for kind in output.get("data", [output.get("name")])} for found in outputs]


@pytest.mark.thorough
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    read = nbformat.read(notebook, as_version=4)
    stored = shown(read.cells)
    NotebookClient(read, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in read.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"], "a notebook should warn of nothing"
    assert "image/png" in kinds, "every notebook shows a figure"
    assert shown(read.cells) == stored, "run python docs/building/notebooks.py again"
    texts = [output.get("data", {}).get("text/plain", "") for output in outputs]
    assert sum("2/2" in text and "━" in text for text in texts) == BARS[notebook.stem], "one bar that is replaced"
