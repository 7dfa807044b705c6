"""Conversations: how rows are read, which answers are learned, what is refused."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from support.conversations import TALKS, conversation, turn, write_talks

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.tasks.conversations import Conversations


@pytest.fixture
def talks(tmp_path: Path) -> str:
    return str(write_talks(tmp_path / "talks.jsonl"))


def answers_of(task: Conversations, split: str = "pretrain") -> list[str]:
    return [task.example(split, index).answer for index in range(task.size(split))]


def test_turns_say_which_answers_are_learned(talks: str) -> None:
    assert answers_of(Conversations(talks, holdout=2)) == ["Hello", "4", "a", "A letter.", "Two", "Four", "Six"]
    assert answers_of(Conversations(talks, holdout=2), "heldout") == ["see", "dee, and so on"]
    assert answers_of(Conversations(talks, holdout=2, turns="last")) == ["4", "a", "A letter.", "Six"]
    one = answers_of(Conversations(talks, holdout=2, turns="one"))
    assert one == answers_of(Conversations(talks, holdout=2, turns="one"))
    assert one[1:3] == ["a", "A letter."]
    assert one[0] in ("Hello", "4")
    assert one[3] in ("Two", "Four", "Six")
    task = Conversations(talks, holdout=2)
    assert task.example("pretrain", 1).prompt == TALKS[0][:3]
    assert task.place("pretrain", 1) == f"{talks}:1, message 4"
    assert task.size("train") == 0
    assert task.score(" 4\n", task.example("pretrain", 1)) == {"reward": 1.0, "solved": 1.0}
    assert task.score("5", task.example("pretrain", 1))["reward"] == 0.0


def test_one_drawn_answer_of_many_is_any_of_them(tmp_path: Path) -> None:
    """Each of three answers is drawn in about a third of 300 conversations."""
    talks = [conversation(f"q{n}", "a", "b", "b", "c", "c") for n in range(600)]
    found = answers_of(Conversations(str(write_talks(tmp_path / "d.jsonl", talks)), holdout=300, turns="one"))
    assert len(found) == 300
    assert all(70 < found.count(answer) < 130 for answer in "abc")


def test_rows_may_have_other_names_and_forms(tmp_path: Path) -> None:
    rows = [{"talk": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"a{n}"}]} for n in range(4)]
    with gzip.open(tmp_path / "d.json.gz", "wt") as file:
        json.dump(rows, file)
    names = {"messages_field": "talk", "role_field": "from", "content_field": "value"}
    task = Conversations(
        str(tmp_path / "d.json.gz"), roles={"human": "user", "gpt": "assistant"}, holdout=1, system="Be kind", **names
    )
    assert task.example("pretrain", 0).prompt == [turn("system", "Be kind"), turn("user", "q0")]
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["q", "hint", "a"], ["x?", "h", "y"], ["z?", "i", "0140"]])
    task = Conversations(str(tmp_path / "d.csv"), template="{q} ({hint})", answer_field="a", holdout=1)
    assert task.example("pretrain", 0).prompt == [turn("user", "x? (h)")]
    assert answers_of(task, "heldout") == ["0140"]
    plain = Conversations(str(tmp_path / "d.csv"), prompt_field="q", answer_field="a", holdout=1, chat=False)
    assert plain.example("pretrain", 0).prompt == "x?\n\n"


def test_parquet_files_hold_conversations(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": t} for t in TALKS]), tmp_path / "d.parquet")
    task = Conversations(str(tmp_path / "d.parquet"), holdout=2)
    assert task.example("pretrain", 1).prompt == TALKS[0][:3]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    again = [*TALKS, TALKS[0], conversation(" c ", "other"), conversation("e", "f")]
    task = Conversations(str(write_talks(tmp_path / "d.jsonl", again)), holdout=2)
    notes = " ".join(task.notes())
    assert "1 conversations repeat one and are left out" in notes
    assert "1 conversations begin as a held-out one does and are not learned" in notes  # " c " as "c"
    assert answers_of(task, "heldout") == ["other", "f"]
    assert "see" not in answers_of(task)


def user(text: str) -> dict[str, str]:
    return turn("user", text)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [user("a")]}, "the assistant answers nothing"),
        ({"messages": [user("a"), turn("assistant", "b"), user("c")]}, "ends with the message of the user, which nobo"),
        ({"messages": [user("a"), turn("assistant", " \n")]}, "message 2, of the assistant, is empty"),
        ({"messages": [user(""), turn("assistant", "b")]}, "message 1, of the user, is empty"),
        ({"messages": [user("a"), turn("asistant", "b")]}, "message 2: no role 'asistant'; did you mean 'assistant'"),
        ({"messages": [turn("assistant", "b")]}, "nothing is asked before the assistant's first answer"),
        ({"messages": [turn("system", "s"), turn("assistant", "b")]}, "nothing is asked before"),
        ({"messages": []}, "'messages' must be a list of messages, got none"),
        ({"messages": "text"}, "'messages' must be a list of messages, got a text"),
        ({"messages": [user("a"), "b"]}, "message 2 must be an object with the texts 'role' and 'content'"),
        ({"messages": [user("a"), {"role": "assistant", "content": None}]}, "message 2 must be an object"),
        ({"messages": [user("a"), turn("assistant", "\ud800")]}, "surrogate pair"),
        ({"prompt": "a"}, "message 2, of the assistant, is empty"),
        ({"prompt": ["a"], "answer": "b"}, "'prompt' must be a text, got a list"),
        ({"question": "a", "answer": "b"}, "no field 'messages', and as prompt and answer: no field 'prompt'"),
    ],
)
def test_rows_that_cannot_be_learned_are_refused_with_their_place(row: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": TALKS[0]}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message) as error:
        Conversations(str(path)).size("pretrain")
    assert "d.jsonl:2: " in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"turns": "first"}, "Conversations.turns must be one of every, last, one"),
        ({"holdout": 0}, "Conversations.holdout must be an integer, at least 1"),
        ({"roles": {"human": "person"}}, "Conversations.roles must be a dict from names to system"),
        ({"system": " "}, "Conversations.system must be a text that is not empty"),
        ({"max_prompt_tokens": 0}, "Conversations.max_prompt_tokens"),
        ({"template": "{answer}"}, "which would show the answer"),
        ({"data": ""}, "Conversations.data must be a file"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict[str, Any], message: str, talks: str) -> None:
    with pytest.raises(ValueError, match=message):
        Conversations(**{"data": talks, **given})


def test_too_few_conversations_to_hold_any_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 conversations, of which 1 can be learned and 0 are held out"):
        Conversations(str(write_talks(tmp_path / "d.jsonl", TALKS[:1]))).size("pretrain")
    with pytest.raises(UserError, match="there is no such file"):
        Conversations(str(tmp_path / "none.jsonl")).size("pretrain")
