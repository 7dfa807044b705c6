"""Each task of the papers trains two updates of EGSPO-SA on a tiny LLaDA, from small files in the published formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from support.observers import Messages
from support.text_checkpoints import (
    SMALL_RUN,
    countdown_row,
    gsm8k_row,
    math_row,
    sudoku_row,
    text_checkpoint,
    write_csv,
    write_jsonl,
)

from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training.runs import train

FILES: dict[str, tuple[Any, Any, str]] = {
    "gsm8k": ("GSM8K", gsm8k_row, "correct_answer"),
    "math": ("MATH", math_row, "boxed_answer"),
    "countdown": ("CountdownNumbers", countdown_row, "countdown_value"),
    "sudoku": ("Sudoku4x4Puzzles", sudoku_row, "right_cells"),
}
SMALL = (*SMALL_RUN, "Sampler.completion_length = 24", "Trainer.group_size = 3")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_checkpoint(tmp_path_factory.mktemp("llada"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] * (name != "sudoku")) for name in FILES]
)
def test_two_updates_on_published_data(name: str, checkpoint: Path, tmp_path: Path) -> None:
    task, row, component = FILES[name]
    write, ending = (write_csv, "csv") if name == "sudoku" else (write_jsonl, "jsonl")
    data = write(tmp_path / f"train.{ending}", [row(n) for n in range(1, 9)])
    test = write(tmp_path / f"test.{ending}", [row(n) for n in range(8, 12)])
    sets = [f"Pretrained.path = '{checkpoint}'", f"{task}.data = '{data}'", f"{task}.test_data = '{test}'"]
    observer = Messages()
    result = train(
        load_recipe(f"egspo_sa_llada_{name}", sets=[*SMALL, *sets], uses=["logger=MetricsCSV"]),
        tmp_path / "run",
        observer=observer,
    )
    assert result.after.size == 2
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [line["update"] for line in rows if line["metric"] == f"reward/{component}"] == ["0", "1"]
    said = "\n".join(observer.messages)
    assert f"{task}: 1 questions are in the training set and in the test set" in said
    assert f"{task}: 7 of 7 prompts in train are cut from the left" in said
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]
    assert f"{task} prompt" in identity["data"]
    assert data in identity["files"]
