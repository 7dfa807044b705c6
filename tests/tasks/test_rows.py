"""Rows of files in every published format, of folders laid out like a data set of the hub, and errors of one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.tasks import rows
from dlmrl_kit.tasks.rows import Source, read_rows

TEXTS = [{"puzzle": "0140", "note": 'a "b",\nc'}, {"puzzle": "3102", "note": "é"}]


def lines(made: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in made).encode() + b"\n\n"


def table(made: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    quoted = [['"' + str(value).replace('"', '""') + '"' for value in row.values()] for row in made]
    return "\r\n".join(delimiter.join(values) for values in [list(made[0]), *quoted]).encode() + b"\r\n"


def parquet(made: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(made), sink)
    return bytes(sink.getvalue())


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "jsonl": lines,
    "ndjson": lines,
    "json": lambda made: json.dumps(made, indent=1).encode(),
    "csv": table,
    "tsv": lambda made: table(made, "\t"),
    "parquet": parquet,
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_gives_the_same_rows(ending: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / f"some.data.{ending}{'.gz' * packed}"
    data = WRITERS[ending](TEXTS)
    path.write_bytes(gzip.compress(data) if packed else data)
    found = read_rows(Source(str(path)))
    assert found.rows == TEXTS
    assert found.origin.place(1) in (f"{path}:2", f"{path}:4", f"{path}, row 1")


def test_json_keeps_answers_of_every_type_and_bytes_of_order(tmp_path: Path) -> None:
    made: list[dict[str, Any]] = [{"a": 1}, {"a": "01"}, {"a": [1, None]}, {"a": {"b": True}}, {"a": 0.5}]
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(made))
    (tmp_path / "x.json").write_bytes(lines(made))
    assert read_rows(Source(str(tmp_path / "x.jsonl"))).rows == made
    assert read_rows(Source(str(tmp_path / "x.json"))).rows == made


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', r"x.jsonl:2: not JSON: .* at column 7"),
        ("x.jsonl", b'{"a": 1}\n[1]\n', r"x.jsonl:2: must be an object, got a list"),
        ("x.jsonl", b'\n\n{"a": "\\ud800"}\n', r"x.jsonl:3: half of a surrogate pair"),
        ("x.json", b'[{"a": 1}, 2]', r"x.json, row 1: must be an object, got a number"),
        ("x.json", b'[{"a": 1', r"x.json: not JSON"),
        ("x.csv", b"a,b\n1,2\n3\n", r"x.csv:3: has not as many values as the first line has names"),
        ("x.csv", b"a,b\n1,2,3\n", r"x.csv:2: has not as many values"),
        ("x.csv", b"a,b\n\xff,2\n", r"x.csv: not UTF-8"),
        ("x.parquet", b"PAR1", r"x.parquet: no parquet file"),
        ("x.jsonl.gz", b"not packed", r"x.jsonl.gz: cannot be read: Not a gzipped file"),
        ("x.txt", b"", r"x.txt: unknown format; use .jsonl, .ndjson, .json, .csv, .tsv, .parquet, each also with .gz"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_rows(Source(str(tmp_path / name)))
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like a data set of the hub, with a configuration and two splits."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "gsm8k"
    (folder / "main").mkdir(parents=True)
    for split in ("train", "test"):
        (folder / "main" / f"{split}-00000-of-00001.parquet").write_bytes(parquet([{"question": split, "answer": "1"}]))
    files = "".join(f"  - split: {split}\n    path: main/{split}-*\n" for split in ("train", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{files}---\n")
    return folder


@pytest.mark.thorough
def test_a_data_set_is_read_through_the_library_with_its_version(hub_folder: Path) -> None:
    found = read_rows(Source(str(hub_folder), "test", "main"))
    assert found.rows == [{"question": "test", "answer": "1"}]
    assert found.origin.revision
    assert found.origin.place(0) == f"{hub_folder} main test, row 0"
    with pytest.raises(UserError, match=r"has no split 'dev'; it has train, test"):
        read_rows(Source(str(hub_folder), "dev", "main"))
    with pytest.raises(UserError, match=r"the data set cannot be read: .*other"):
        read_rows(Source(str(hub_folder), "test", "other"))


def test_without_a_network_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "is_reachable", lambda: False)
    monkeypatch.setattr(rows, "is_offline", lambda: False)
    with pytest.raises(
        UserError, match=r"no such file, and the hub cannot be reached: name a copy .* HF_HUB_OFFLINE=1"
    ):
        read_rows(Source("someone/something"))
    with pytest.raises(UserError, match=r"^nowhere.csv: there is no such file$"):
        read_rows(Source("nowhere.csv"))


@pytest.mark.parametrize(("package", "name"), [("datasets", "someone/something"), ("pyarrow", "x.parquet")])
def test_without_a_package_the_message_says_how_to_install_it(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.parquet").write_bytes(parquet(TEXTS))
    monkeypatch.setattr("importlib.util.find_spec", lambda asked: None)
    with pytest.raises(UserError, match=rf"need the package {package}: pip install 'dlmrl-kit\[tasks\]'"):
        read_rows(Source(name))


def test_a_packed_file_that_holds_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 100_000))
    assert len(list(rows.rows_of_file(path))) == 100_000
    monkeypatch.setattr(rows, "UNPACKED_BYTES", 100_000)
    with pytest.raises(ValueError, match=r"x.jsonl.gz: it holds more than 100000 bytes unpacked"):
        list(rows.rows_of_file(path))
