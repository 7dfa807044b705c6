"""One way to say where data are: every task that reads data sets finds its training and test set by the same words."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from dlmrl_kit.core.registry import Entry, registered
from dlmrl_kit.tasks.base import BaseTask
from dlmrl_kit.tasks.conversations import Conversations
from dlmrl_kit.tasks.data_task import DataTask
from dlmrl_kit.tasks.questions import Questions
from dlmrl_kit.tasks.rows import Source

KINDS: list[type[DataTask]] = [Conversations, Questions]
ROWS = {"train": 5, "test": 2, "other": 3}


def rows(count: int, name: str) -> str:
    lines = (f'{{"prompt": "{name} {n}?", "question": "{name} {n}?", "answer": "{n}"}}\n' for n in range(count))
    return "".join(lines)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder laid out like a data set of the hub, with three splits."""
    place = tmp_path / "set"
    place.mkdir()
    for split, count in ROWS.items():
        (place / f"{split}.jsonl").write_text(rows(count, split))
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in ROWS)
    (place / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    return place


def test_every_task_that_names_data_and_a_test_set_is_one() -> None:
    for task in registered("task"):
        named = {"data", "test_data"} <= inspect.signature(task.cls).parameters.keys()
        assert named <= issubclass(task.cls, DataTask), task.cls.__name__


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_test_set_is(kind: type[DataTask], folder: Path, tmp_path: Path) -> None:
    file, split = tmp_path / "one.jsonl", {"test_split": "other", "config": "default"}
    file.write_text(rows(4, "one"))
    data, one = str(folder), str(file)
    own = Source(data, "train", "default")
    assert kind(data=data, **split).sources() == (own, Source(data, "other", "default"))
    assert kind(data=data, test_split=None).sources() == (Source(data, "train"),)
    assert kind(data=one, test_split="other").sources() == (Source(one, "train"),)
    assert kind(data=data, test_data=one, test_split=None).sources()[1] == Source(one, "test")
    hub = kind(data="of/hub", test_data="of/tests", **split, revision="main", test_revision="v2").sources()
    assert hub == (Source("of/hub", "train", "default", "main"), Source("of/tests", "other", None, "v2"))


@pytest.mark.parametrize("task", [entry for entry in registered("task") if issubclass(entry.cls, DataTask)])
def test_commits_are_pinned_for_the_published_data_alone(task: Entry, tmp_path: Path) -> None:
    cls, file = task.cls, tmp_path / "one.jsonl"
    file.write_text("")
    by_default = inspect.signature(cls).parameters["data"].default
    if isinstance(by_default, str):
        assert {source.path: source.revision for source in cls().sources() if source.revision} == cls.pinned
    assert cls(data="of/hub").sources()[0].revision is None
    with pytest.raises(ValueError, match="revision must be None, unless data is a data set of the hub, got 'v1'"):
        cls(data=str(file), revision="v1")
    if "test_data" in inspect.signature(cls).parameters:
        with pytest.raises(ValueError, match="test_revision must be None, unless test_data is a data set of the hub"):
            cls(data="of/hub", test_data=None, test_revision="v1")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_and_told(kind: type[DataTask], folder: Path) -> None:
    task = kind(data=str(folder), test_split="other")
    learned = task.size("pretrain") + task.size("train")
    assert (learned, task.size("heldout")) == (ROWS["train"], ROWS["other"])
    (note,) = task.notes()
    assert re.fullmatch(rf"data from {folder} train at (\w+) and {folder} other at \1", note)
    assert task.files() == (folder, folder)
    assert not any("set" in name for name in task.versions())  # no data set of the hub
    held = kind(data=str(folder), test_split=None, holdout=1)
    assert (held.size("pretrain") + held.size("train"), held.size("heldout")) == (ROWS["train"] - 1, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": ""}, "data must be a file or the id of a data set"),
        ({"data": None}, "data must be a file or the id of a data set"),
        ({"data": "x", "test_data": ""}, "test_data must be a file or the id of a data set"),
        ({"data": "x", "test_data": 3}, "test_data must be a file or the id of a data set"),
        ({"data": "x", "split": None}, "split must be a text that is not empty"),
        ({"data": "x", "test_split": 3}, "test_split must be a text that is not empty"),
        ({"data": "x", "test_revision": ""}, "test_revision must be a text that is not empty"),
        ({"data": "x", "holdout": 0}, "holdout must be an integer, at least 1"),
        ({"data": "x", "holdout": None}, "holdout must be an integer, at least 1"),
    ],
)
def test_settings_out_of_range(kind: type[BaseTask], settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)
