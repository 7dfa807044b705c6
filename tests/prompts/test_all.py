"""Prompt layouts: instruction, worked examples, prefix, files; and what every layout refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlmrl_kit.core.errors import ParameterError
from dlmrl_kit.prompts.base import PromptLayout
from dlmrl_kit.prompts.chat_prompt import ChatPrompt
from dlmrl_kit.prompts.plain_prompt import PlainPrompt

LAYOUTS = [ChatPrompt, PlainPrompt]
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)


@pytest.fixture
def shots(tmp_path: Path) -> str:
    pairs = [{"question": "1+1?", "answer": "<answer>2</answer>"}, {"question": "2+2?", "answer": "<answer>4</answer>"}]
    (tmp_path / "shots.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n\n")
    return str(tmp_path / "shots.jsonl")


def test_a_conversation_has_the_instruction_where_the_papers_put_it(shots: str) -> None:
    assert ChatPrompt().prompt("Add.", "3+3?") == [{"role": "user", "content": "Add.\n\n3+3?"}]
    assert ChatPrompt(instruction="").prompt("Add.", "3+3?") == [{"role": "user", "content": "3+3?"}]
    assert ChatPrompt(instruction="Sum.", system=True).prompt("Add.", "3+3?") == [
        {"role": "system", "content": "Sum."},
        {"role": "user", "content": "3+3?"},
    ]
    assert ChatPrompt(shots_file=shots, shots=1).prompt("Add.", "3+3?") == [
        {"role": "user", "content": "Add.\n\n1+1?"},
        {"role": "assistant", "content": "<answer>2</answer>"},
        {"role": "user", "content": "3+3?"},
    ]


def test_a_plain_prompt_is_one_text(shots: str) -> None:
    whole = "Add.\n\n1+1?\n<answer>2</answer>\n\n2+2?\n<answer>4</answer>\n\n3+3?\n"
    assert PlainPrompt(shots_file=shots).prompt("Add.", "3+3?") == whole
    assert PlainPrompt(instruction="", prefix="").prompt("Add.", "3+3?") == "3+3?"


@every_layout
def test_a_published_wording_is_read_from_a_file(layout: type[PromptLayout], tmp_path: Path, shots: str) -> None:
    wording = tmp_path / "wording.txt"
    wording.write_text("\nAs published.\nLine 2.\n\n")
    found = layout(instruction_file=str(wording), shots_file=shots)
    assert "As published.\nLine 2." in json.dumps(found.prompt("the kit's", "?"), ensure_ascii=False).replace(
        "\\n", "\n"
    )
    assert "the kit's" not in json.dumps(found.prompt("the kit's", "?"))
    assert set(found.files()) == {wording, Path(shots)}


@every_layout
def test_files_named_by_a_relative_path_are_made_absolute(
    layout: type[PromptLayout], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wording.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert layout.anchored({"instruction_file": "wording.txt"}) == {"instruction_file": str(tmp_path / "wording.txt")}


@every_layout
def test_what_cannot_be_read_or_meant_is_refused(layout: type[PromptLayout], tmp_path: Path, shots: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "1+1?", "answer": 2}\n')
    (tmp_path / "latin.txt").write_bytes(b"\xff")
    with pytest.raises(ParameterError, match=r"instruction_file must be None where there is an instruction"):
        layout(instruction="x", instruction_file=str(tmp_path / "latin.txt"))
    with pytest.raises(ParameterError, match=r"instruction_file: '.*latin.txt' cannot be read as UTF-8 text"):
        layout(instruction_file=str(tmp_path / "latin.txt"))
    with pytest.raises(ParameterError, match=r"bad.jsonl:1: expected an object with the texts 'question' and 'answer'"):
        layout(shots_file=str(tmp_path / "bad.jsonl"))
    with pytest.raises(ParameterError, match=r"shots must be at most 2, as many as shots_file has"):
        layout(shots_file=shots, shots=3)
    with pytest.raises(ParameterError, match=r"max_tokens must be at least 1"):
        layout(max_tokens=0)
