"""Run folders have one writer; failed starts block nothing; damaged JSON is one line that names the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dlmrl_kit.core.errors import CheckpointError, UserError
from dlmrl_kit.core.run_folder import failed_start, holds_run, is_free, one_writer, read_about, read_json

HOLD = """
import sys, pathlib
from dlmrl_kit.core.run_folder import one_writer
with one_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with one_writer(folder):
        (folder / "recipe.gin").touch()
        with pytest.raises(UserError, match=f"another process is working on {folder}"), one_writer(folder):
            pass
    with one_writer(folder):
        assert (folder / "recipe.gin").exists()
    assert [path.name for path in folder.iterdir()] == ["recipe.gin"]


def test_a_folder_that_stays_empty_is_removed_with_those_above_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), one_writer(tmp_path / "a" / "b" / "run"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with one_writer(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_killed_writer_does_not_block_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is working on"), one_writer(folder):
            pass
        process.kill()
        process.wait()
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert is_free(folder)
    with one_writer(folder):
        pass


@pytest.mark.parametrize(
    ("present", "free"),
    [
        ([], True),
        ([".lock"], True),
        (["run.json"], True),  # killed before the recipe was written
        ([".run.json.tmp77", ".lock"], True),
        (["notes.txt"], False),
        ([".git"], False),
        (["run.json", "recipe.gin"], False),
    ],
)
def test_what_a_killed_start_leaves_is_free(present: list[str], free: bool, tmp_path: Path) -> None:
    for name in present:
        (tmp_path / name).write_text("{}")
    assert is_free(tmp_path) is free
    assert holds_run(tmp_path) is ("recipe.gin" in present)


def test_a_failed_start_is_no_run_until_there_is_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "recipe.gin").touch()
    (tmp_path / "run.json").write_text(json.dumps({"failed_start": "no such function"}))
    assert failed_start(tmp_path)
    assert is_free(tmp_path)
    assert not holds_run(tmp_path)
    (tmp_path / "checkpoints" / "update-000002").mkdir(parents=True)
    assert holds_run(tmp_path)
    assert not is_free(tmp_path)


DAMAGED = {
    "empty": b"",
    "cut off": b'{"recipe": "x"',
    "a list": b"[]",
    "null": b"null",
    "too deep": b"[" * 100_000,
    "no UTF-8": b'{"recipe": "\xff"}',
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_json_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(DAMAGED[damage])
    with pytest.raises(CheckpointError, match=f"{path} is damaged ") as info:
        read_about(tmp_path)
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < len(str(path)) + 300


def test_json_without_what_is_looked_for_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"result\.json is damaged .*KeyError.*seconds.*; remove it"):
        read_json(path, lambda data: float(data["seconds"]), "remove it")
    with pytest.raises(CheckpointError, match=r"none\.json cannot be read \(No such file"):
        read_json(tmp_path / "none.json", dict)
