"""The run of docs/from-nothing.md in miniature: data, tokenizer, pre-training, reinforcement learning."""

from __future__ import annotations

import gzip
import json
import re
import runpy
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.command_line import dlmrl
from support.paths import ROOT

from dlmrl_kit.tasks.base import Example
from dlmrl_kit.training import evaluate_path

HERE = ROOT / "benchmarks" / "from_nothing"
SMALL = {
    "tokenizer": [],
    "pretrain": ["MaskedDiffusion.steps=2", "MaskedDiffusion.eval_size=4", "MaskedDiffusion.loss_size=8"],
    "train": ["Trainer.updates=1", "Trainer.prompts_per_update=2", "Trainer.group_size=2", "Trainer.eval_size=4"],
}


@pytest.mark.thorough
def test_the_commands_of_the_page_run_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = (ROOT / "docs" / "from-nothing.md").read_text()
    lines = re.findall(r"^\$ (.*)$", pages, re.MULTILINE)
    shutil.copytree(HERE, tmp_path / "benchmarks" / "from_nothing")
    monkeypatch.chdir(tmp_path)
    ran = []
    for line in lines:
        name, *arguments = shlex.split(line)
        if name == "python":
            monkeypatch.setattr(sys, "argv", [arguments[0], *arguments[1:]])
            runpy.run_path(arguments[0], run_name="__main__")
        elif name == "dlmrl" and arguments[0] in SMALL:
            ran.append(arguments[0])
            small = [part for binding in SMALL[arguments[0]] for part in ("--set", binding)]
            result = dlmrl(*arguments, *small)
            assert result.exit_code == 0, result.output
    assert ran == ["tokenizer", "pretrain", "train"]
    assert evaluate_path("runs/words", size=4).accuracy is not None


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(HERE / "word_problems.py"))


def test_the_data_are_as_the_page_says(script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    monkeypatch.setattr(sys, "argv", ["word_problems.py", str(tmp_path / "problems.jsonl")])
    script["main"]()
    written = (tmp_path / "problems.jsonl").read_bytes()
    assert written == gzip.decompress((HERE / "problems.jsonl.gz").read_bytes())
    rows = [json.loads(row) for row in written.splitlines()]
    assert Counter(row["split"] for row in rows) == {"pretrain": 15_000, "train": 4_000, "heldout": 400}
    assert len({row["prompt"] for row in rows}) == len(rows)
    legs = {name + plural: number for name, number in ANIMALS.items() for plural in ("", "s")}
    right = {split: 0 for split in ("pretrain", "train", "heldout")}
    for row in rows:
        kinds = re.findall(r"(\d) ([a-z ]+)[,?]", row["prompt"])
        assert len(kinds) == 2
        assert all(1 <= int(number) <= 4 for number, _ in kinds)
        first, second, total = map(int, re.findall(r"\d+", row["answer"]))
        assert first + second == total
        right[row["split"]] += (first, second) == tuple(int(number) * legs[kind] for number, kind in kinds)
    assert (right["train"], right["heldout"]) == (4_000, 400)
    assert 0.5 < right["pretrain"] / 15_000 < 0.65  # where each kind is there once, haste is right


@pytest.mark.parametrize(
    ("completion", "reward", "solved"),
    [
        ("12 legs and 8 legs, so 20.", 1, 1),
        ("12 legs and 8 legs, so 2", 2 / 3, 0),
        ("12 legs and 2 legs, so 14.", 1 / 3, 0),
        ("8 legs and 12 legs, so 20.", 1 / 3, 1),
        ("12 legs and 8 legs, so 20, so 21", 3 / 4, 0),
        ("so 20", 0, 1),
        ("so 020.", 0, 0),
        ("none", 0, 0),
        ("", 0, 0),
    ],
)
def test_right_numbers_earn_the_reward(script: dict[str, Any], completion: str, reward: float, solved: float) -> None:
    found = script["score"](completion, Example("", "12 legs and 8 legs, so 20."))
    assert found == {"reward": pytest.approx(reward), "solved": solved}
