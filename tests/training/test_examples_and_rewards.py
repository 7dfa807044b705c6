"""What a run says of its task when it starts, and rewards that are no shares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.runs import new_run, recipe

from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.training import train

REWARDS = '''
def score(completion, example):
    """As published: components that add up to 3.5, and can be negative."""
    format_part = 0.5 if len({*completion}) > 2 else -1.25
    reward = 3.0 * completion.startswith("1") + format_part
    return {"reward": reward, "solved": completion == "1234", "format": format_part}
'''


class Noted(Sudoku4x4):
    def notes(self) -> list[str]:
        return ["these puzzles are easy"]


class Told(RunObserver):
    def __init__(self) -> None:
        self.info: dict[str, object] = {}
        self.messages: list[str] = []

    def on_start(
        self, *, folder: Path, recipe: str, total_updates: int, first_update: int, info: Mapping[str, object]
    ) -> None:
        self.info = dict(info)

    def on_message(self, text: str) -> None:
        self.messages.append(text)


def test_a_run_says_how_many_examples_there_are_and_what_its_task_notes(tmp_path: Path) -> None:
    told = Told()
    run = new_run(tmp_path, sets=["Trainer.updates = 1"], task=Noted(num_train=7, num_heldout=5))
    run.observer = told
    run.run()
    assert (told.info["train_examples"], told.info["heldout_examples"]) == (7, 5)
    assert "Noted: these puzzles are easy" in told.messages


def test_rewards_reach_training_as_they_are_and_accuracy_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kit_test_published.py").write_text(REWARDS)
    lines = [{"prompt": f"{a}{b}{c}_:", "answer": "1234"} for a in "1234" for b in "1234" for c in "1234"]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.syspath_prepend(str(tmp_path))
    sets = [f"JsonLines.path = {str(tmp_path / 'lines.jsonl')!r}", "JsonLines.reward = 'kit_test_published:score'"]
    sets += ["Trainer.updates = 1", "Trainer.prompts_per_update = 8", "Trainer.eval_size = 8"]
    result = train(recipe(sets=sets, uses=["task=JsonLines"]), tmp_path / "run")
    published: dict[str, Any] = {}
    exec(REWARDS, published)
    for found in (result.before, result.after):
        scores = [published["score"](str(sample["completion"]), None) for sample in found.samples]
        assert len(scores) == found.size == 8
        assert [sample["reward"] for sample in found.samples] == [score["reward"] for score in scores]
        assert found.reward == pytest.approx(sum(score["reward"] for score in scores) / 8)
        assert found.accuracy == sum(score["solved"] for score in scores) / 8
        assert set(found.components) == {"format", "failed"}
    metrics = {name: values[0][1] for name, values in read_metrics(tmp_path / "run").items()}
    assert 0 <= metrics["accuracy"] <= 0.5  # few begin with 1, and hardly any is the answer
    assert metrics["reward/format"] <= metrics["reward"]
    assert any(not 0 <= sample["reward"] <= 1 for sample in (*result.before.samples, *result.after.samples))
