"""Rows of data sets: from the hub through the ``datasets`` library, or from a file in a published format.

Files are JSON, JSON Lines, CSV, TSV or parquet, each also compressed (``.gz``). JSON and CSV are read by Python's own
libraries: a column of ``datasets`` has one type, which turns ``"0140"`` into a number and refuses answers of mixed
types. ``datasets`` is imported when the hub, or a folder laid out like one of its data sets, is first read.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.files import read_regular, reason_of
from dlmrl_kit.core.hub import is_offline, is_reachable
from dlmrl_kit.core.prompt import has_surrogates

Row: TypeAlias = dict[str, Any]

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Endings of the files that can be read; ``.gz`` may follow."""
UNPACKED_BYTES = 4 * 2**30
"""The most bytes that a ``.gz`` file may hold."""
INSTALL = "pip install 'dlmrl-kit[tasks]'"


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Args:
        path: a file, a folder laid out like a data set of the hub, or the id of one (``openai/gsm8k``).
        split: of a data set; a file has none.
        config: of a data set with several configurations.
        revision: of a data set of the hub: a commit, tag or branch; None: the newest.
    """

    path: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None

    @property
    def local(self) -> Path | None:
        """The file or folder; None for a data set of the hub."""
        place = Path(self.path).expanduser()
        return place if place.exists() else None

    def __str__(self) -> str:
        if self.local is not None and self.local.is_file():
            return self.path
        return " ".join(filter(None, (self.path, self.config, self.split)))


@dataclass(frozen=True)
class Origin:
    """Where rows were read, kept when they are not.

    Attributes:
        source: what was read.
        numbers: of the lines that the rows stand in; None: rows have their own numbers.
        revision: the commit of a data set; "" for a file.
    """

    source: Source
    numbers: list[int] | None = None
    revision: str = ""

    def place(self, index: int) -> str:
        """Returns where a row is to be found: file and line, or data set and row."""
        return f"{self.source}, row {index}" if self.numbers is None else f"{self.source}:{self.numbers[index]}"

    def __str__(self) -> str:
        return f"{self.source} at {self.revision}" if self.revision else str(self.source)


@dataclass(frozen=True)
class Rows:
    """Rows, and where they were read."""

    rows: list[Row]
    origin: Origin


def read_rows(source: Source) -> Rows:
    """Reads all rows of a file or of a split of a data set.

    Raises:
        UserError: no such file or data set, no network, a missing package, or a row that cannot be read, with its
            place; one line that says what to do.
    """
    place = source.local
    if place is None or place.is_dir():
        return _from_library(source)
    try:
        numbered = list(rows_of_file(place))
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{place}: cannot be read: {reason_of(error)}") from error
    by_line = any(number != index for index, (number, _) in enumerate(numbered))
    return Rows([row for _, row in numbered], Origin(source, [n for n, _ in numbered] if by_line else None))


def rows_of_file(path: Path, unknown: str | None = None) -> Iterator[tuple[int, Row]]:
    """Yields the rows of a file, each with its line, or with its index in formats whose rows have no line.

    Args:
        path: of the file.
        unknown: the format of a file with another ending than ``FORMATS``; None: it is refused.

    Raises:
        ValueError: the file or a row cannot be read; the message begins with the place.
        OSError: there is no such file, or it may not be read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    ending = next(iter(suffixes[-2 if packed else -1 :]), "")
    ending = unknown if unknown is not None and ending not in FORMATS else ending
    if ending not in FORMATS:
        raise ValueError(f"{path}: unknown format; use {', '.join(FORMATS)}, each also with .gz")
    data = read_regular(path)
    data = _unpacked(path, data) if packed else data
    if ending == ".parquet":
        yield from enumerate(_parquet(path, data))
    elif ending in (".csv", ".tsv"):
        yield from _table(path, data, "," if ending == ".csv" else "\t")
    elif ending == ".json" and (whole := _array(path, data)) is not None:
        yield from enumerate(whole)
    else:
        yield from _lines(path, data)


def _unpacked(path: Path, data: bytes) -> bytes:
    """Unpacks a ``.gz`` file, of which a small one can hold more than the memory does."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            found = file.read(UNPACKED_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if len(found) > UNPACKED_BYTES:
        raise ValueError(f"{path}: it holds more than {UNPACKED_BYTES} bytes unpacked; unpack it, and give that file")
    return found


def json_object(text: bytes) -> Row:
    """Returns the object that a JSON text is.

    Raises:
        ValueError: it is none; says what is wrong with it.
    """
    try:
        fields = json.loads(text.decode())
        broken = b"\\u" in text and has_surrogates(json.dumps(fields, ensure_ascii=False))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    if broken:
        raise ValueError("half of a surrogate pair (\\ud800 to \\udfff) in a text, which is no character")
    if not isinstance(fields, dict):
        raise ValueError(f"must be an object, got {kind_of(fields)}")
    return fields


def kind_of(value: object) -> str:
    """Returns what a JSON value is called in an error."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _lines(path: Path, data: bytes) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, json_object(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error


def _array(path: Path, data: bytes) -> list[Row] | None:
    """Returns the rows of a JSON file that is one list of objects; None if it is something else, such as lines."""
    text = data.removeprefix(b"\xef\xbb\xbf").strip()
    if not text.startswith(b"["):
        return None
    try:
        rows = json_object(b'{"rows": ' + text + b"}")["rows"]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: must be an object, got {kind_of(row)}")
    return rows


def _table(path: Path, data: bytes, delimiter: str) -> Iterator[tuple[int, Row]]:
    """Yields the rows of a CSV file; every value is a text, and so keeps its leading zeros."""
    try:
        lines = io.StringIO(data.decode("utf-8-sig"), newline="")
        reader = csv.DictReader(lines, delimiter=delimiter, restkey="", strict=True)
        for row in reader:
            if None in row.values() or "" in row:
                raise ValueError(f"{path}:{reader.line_num}: has not as many values as the first line has names")
            yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: {error}") from error


def _parquet(path: Path, data: bytes) -> list[Row]:
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{path}: parquet files need the package pyarrow: {INSTALL}")
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: no parquet file: {' '.join(str(error).split())}") from error
    return rows


def _from_library(source: Source) -> Rows:
    """Reads a split of a data set of the hub, or of a folder laid out like one."""
    if source.local is None and source.path.endswith((*FORMATS, ".gz")):
        raise UserError(f"{source.path}: there is no such file")
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"{source}: data sets need the package datasets: {INSTALL}")
    if source.local is None and not (is_offline() or is_reachable()):
        advice = "name a copy of it (a file or a folder), or set HF_HUB_OFFLINE=1 to use what was downloaded before"
        raise UserError(f"{source}: there is no such file, and the hub cannot be reached: {advice}")
    import datasets

    builder = _attempt(source, lambda: _builder(source))
    splits = _attempt(source, lambda: list(builder.info.splits or {}) or _prepared(builder))
    if source.split not in splits:
        raise UserError(f"{source.path} has no split {source.split!r}; it has {', '.join(map(str, splits))}")
    found: datasets.Dataset = _attempt(source, lambda: (_prepared(builder), builder.as_dataset(source.split))[1])
    return Rows(found.to_list(), Origin(source, revision=str(builder.hash)))


def _builder(source: Source) -> Any:
    import datasets

    return datasets.load_dataset_builder(source.path, source.config, revision=source.revision)


def _prepared(builder: Any) -> list[str]:
    """Downloads what is not here yet, without progress bars; returns the names of the splits."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        builder.download_and_prepare()
    finally:
        if shown:
            datasets.enable_progress_bars()
    return list(builder.info.splits)


def _attempt(source: Source, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:  # datasets passes on what its readers, huggingface_hub and the network raise
        said = " ".join(str(error).split())
        raise UserError(f"{source}: the data set cannot be read: {said[:300]}") from error
