"""Each code task trains two updates of EGSPO-SA on a tiny LLaDA with its chat template; programs run in the sandbox."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from support.code_rows import human_eval_row, kodcode_row, mbpp_row
from support.sandboxes import needs_bubblewrap
from support.text_checkpoints import SMALL_RUN, text_checkpoint, write_jsonl

from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training.runs import train

ROWS: dict[str, Any] = {"KodCode": kodcode_row, "HumanEval": human_eval_row, "MBPP": mbpp_row}
SMALL = (*SMALL_RUN, "Sampler.completion_length = 16", "Trainer.group_size = 2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_checkpoint(tmp_path_factory.mktemp("llada"))


@pytest.mark.thorough
@needs_bubblewrap
@pytest.mark.parametrize("task", ROWS)
def test_two_updates_on_programs(task: str, checkpoint: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [ROWS[task](n) for n in range(1, 9)])
    sets = [*SMALL, f"Pretrained.path = '{checkpoint}'", f"{task}.data = '{data}'"]
    if task == "HumanEval":
        sets.append("HumanEval.num_train = 4")
    recipe = load_recipe("egspo_sa_llada_code", sets=sets, uses=["logger=MetricsCSV", f"task={task}"])
    result = train(recipe, tmp_path / "run")
    assert result.after.size == 2
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    for component in ("unit_tests", "code_in_answer", "tag_count"):
        assert [line["update"] for line in rows if line["metric"] == f"reward/{component}"] == ["0", "1"]
