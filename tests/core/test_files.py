"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dlmrl_kit.core.errors import FileError
from dlmrl_kit.core.files import atomic_folder, read_regular, write_atomic


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_atomic(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert listing(path.parent) == ["file.txt"]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Opening a pipe waits for a writer, and /dev/zero has no end."""
    regular, link, pipe = tmp_path / "file", tmp_path / "link", tmp_path / "pipe"
    regular.write_bytes(b"content")
    link.symlink_to(regular)
    os.mkfifo(pipe)
    assert read_regular(link) == b"content"
    assert read_regular(regular, 3) == b"con"
    others = {
        pipe: "not a regular file",
        Path("/dev/zero"): "not a regular file",
        tmp_path: "Is a directory",
        tmp_path / "missing": "No such file",
        tmp_path / "a\0b": "null",
    }
    for path, reason in others.items():
        with pytest.raises(OSError, match=reason):
            read_regular(path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_stays_as_it_was(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    monkeypatch.setattr(os if call == "fsync" else Path, call, full)
    with pytest.raises(FileError, match=f"cannot write {path}: No space left on device"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["file.txt"]


def write_folder(path: Path, text: str, fail: bool = False) -> None:
    with atomic_folder(path) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "file").write_text(text)
        assert not path.exists() or (path / "deep" / "file").read_text() == "old"
        if fail:
            raise ZeroDivisionError


@pytest.mark.parametrize("name", ["folder", "with [brackets]*"])
def test_a_folder_appears_whole_or_not_at_all(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / name
    with pytest.raises(ZeroDivisionError):
        write_folder(path, "half", fail=True)
    assert listing(path.parent) == []
    write_folder(path, "old")
    (path / "another").write_text("gone after the next one")
    with pytest.raises(ZeroDivisionError):
        write_folder(path, "half", fail=True)
    assert listing(path) == ["another", "deep"]
    write_folder(path, "new")
    assert (path / "deep" / "file").read_text() == "new"
    assert listing(path) == ["deep"]
    assert listing(path.parent) == [name]


def test_a_folder_is_never_half_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed while it removes what it replaced leaves the new folder, or none, under the final name."""
    path = tmp_path / "folder"
    write_folder(path, "old")
    remove, seen = shutil.rmtree, []

    def rmtree(victim: Path, **options: Any) -> None:
        seen.append(Path(victim).name)
        assert Path(victim) != path
        remove(victim, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    write_folder(path, "new")
    assert seen == [f".folder.old{os.getpid()}"]


def test_a_folder_is_flushed_to_disk_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    write_folder(tmp_path / "folder", "text")
    assert [Path(name).name for name in flushed] == ["file"]
    assert all(".folder.tmp" in name for name in flushed)
