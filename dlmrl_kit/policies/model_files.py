"""Reading the files of a model that others wrote: what is wrong with one is one line that names it and what to do."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.files import read_regular, reason_of
from dlmrl_kit.core.validate import clipped

DEEPEST = 100
"""Levels of nested lists and objects that a JSON file may have: far fewer than Python's own limit of recursion."""

AGAIN = "write, copy or download it again"
"""What to do with a damaged file."""

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a Git LFS pointer begins, which stands for a large file in a clone without Git LFS."""

_QUOTED = 200
"""Characters of another library's error that a message shows."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def refuse_pointer(path: Path, start: bytes) -> None:
    """Refuses a file whose first bytes are those of a Git LFS pointer.

    Raises:
        UserError: they are.
    """
    if start.startswith(POINTER):
        raise UserError(
            f"{path} is a Git LFS pointer, not the file itself: run 'git lfs pull' in its folder, or download the file"
        )


def read_bytes(path: Path, most: int = -1) -> bytes:
    """Reads a file, or at most its first ``most`` bytes.

    Raises:
        UserError: it is not there, cannot be read, or is a Git LFS pointer.
    """
    try:
        content = read_regular(path, most)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({reason_of(error)}): check that it is there and may be read"
        ) from error
    refuse_pointer(path, content[: len(POINTER)])
    return content


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8.

    Raises:
        UserError: as ``read_bytes``, or it is no UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 (byte {error.start}): {AGAIN}") from error


def read_json(path: Path, *, finite: bool = False) -> dict[str, Any]:
    """Reads a file with a JSON object.

    Args:
        path: of the file.
        finite: refuse the numbers NaN, Infinity, and those that are too large for a float.

    Raises:
        UserError: as ``read_text``, or it is no JSON object, is nested deeper than ``DEEPEST``, or has text that cannot
            be written again: half of a surrogate pair.
    """
    text = read_text(path)
    number = _finite if finite else None
    try:
        content = json.loads(text, parse_float=number, parse_constant=number)
    except RecursionError as error:
        _refuse_deep(path, error)
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): {AGAIN}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object: {AGAIN}")
    if text.count("{") + text.count("[") > DEEPEST and _depth(content) > DEEPEST:
        _refuse_deep(path, None)
    if _SURROGATE.search(text):
        _refuse_surrogates(path, content)
    return content


def _finite(literal: str) -> float:
    value = float(literal)
    if value - value != 0:
        raise ValueError(f"{literal} is no finite number")
    return value


def _depth(content: object) -> int:
    level, depth = [content], 0
    while level:
        depth += 1
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list)))
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
    return depth


def _refuse_deep(path: Path, cause: Exception | None) -> NoReturn:
    raise UserError(f"{path} is nested deeper than {DEEPEST} levels, which no such file needs: {AGAIN}") from cause


def _refuse_surrogates(path: Path, content: dict[str, Any]) -> None:
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise UserError(
            f"{path} has half of a surrogate pair ({half}), which is no character: replace it, or {AGAIN}"
        ) from error


@contextlib.contextmanager
def foreign(what: str) -> Iterator[None]:
    """Within the context, whatever another library raises over a file becomes one line.

    Args:
        what: what cannot be done, with the file; the beginning of the line.

    Raises:
        UserError: ``what`` and the error. A ``UserError`` passes as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tokenizers raises plain Exception, transformers anything for a strange config.json
        reason = clipped(" ".join(str(error).split()), _QUOTED)
        raise UserError(f"{what} ({type(error).__name__}: {reason})") from error
