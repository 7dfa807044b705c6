"""The run of docs/from-nothing.md in miniature: data, tokenizer, pre-training, reinforcement learning."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from support.command_line import dlmrl
from support.paths import ROOT

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
    for path in HERE.glob("*.gin"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    ran = []
    for line in lines:
        name, *arguments = shlex.split(line)
        if name == "python":
            monkeypatch.setattr(sys, "argv", [arguments[0], *arguments[1:]])
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        elif name == "dlmrl" and arguments[0] in SMALL:
            ran.append(arguments[0])
            arguments = [part.removeprefix("benchmarks/from_nothing/") for part in arguments]
            small = [part for binding in SMALL[arguments[0]] for part in ("--set", binding)]
            result = dlmrl(*arguments, *small)
            assert result.exit_code == 0, result.output
    assert ran == ["tokenizer", "pretrain", "train"]
    assert evaluate_path("runs/words", size=4).accuracy is not None


def test_the_data_are_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = runpy.run_path(str(HERE / "word_problems.py"))
    assert problems["hasty"]("State the final answer to the following arithmetic problem: 1 - 0 + 5 - 3 =") == "9"
    monkeypatch.setattr(sys, "argv", ["word_problems.py", str(tmp_path)])
    problems["main"]()
    rows = {name: [json.loads(row) for row in (tmp_path / f"{name}.jsonl").open()] for name in ("shown", "heldout")}
    rows["asked"] = [json.loads(row) for row in (tmp_path / "asked.jsonl").open()]
    questions = {name: {row["question"] for row in found} for name, found in rows.items()}
    assert {name: len(found) for name, found in questions.items()} == {"shown": 20800, "asked": 805, "heldout": 400}
    sums = {name: {question.split(": ")[-1] for question in found} for name, found in questions.items()}
    assert {name: len(found) for name, found in sums.items()} == {"shown": 2600, "asked": 805, "heldout": 400}
    assert len(set.union(*sums.values())) == 3805

    def right(row: dict[str, str]) -> bool:
        said = row["question"].split(": ")[-1].removesuffix(" =")
        return eval(said) == int(row["answer"])  # digits, plus and minus

    assert all(right(row) for name in ("asked", "heldout") for row in rows[name])
    wrong = sum(not right(row) for row in rows["shown"])
    assert 0.4 < wrong / 20800 < 0.5  # of the hasty answers, those to sums without a minus are right
