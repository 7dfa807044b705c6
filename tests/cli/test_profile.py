"""``dlmrl profile``: its table, JSON and trace."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.runs import model_path, recipe
from typer.testing import CliRunner, Result

from dlmrl_kit.cli.app import app
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.training.profiling import MODEL, PHASES
from dlmrl_kit.training.update import Update


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files, empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    model_path()  # which goes elsewhere
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def dlmrl(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["profile", "egspo_sa", *shlex.split(" ".join(recipe().overrides)), *arguments])


def test_table() -> None:
    result = dlmrl("--updates", "1")
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    assert "nothing was learned" not in result.stdout
    assert lines[0] == "egspo_sa: 1 update, after one that is not counted"
    rows = [re.fullmatch(r"(.+?)  +(\d+\.\d{4}) +(\d+\.\d)%", line) for line in lines[3:-1]]
    assert {row[1] for row in rows if row} == set(PHASES)
    shares = [float(row[3]) for row in rows if row]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.5)
    end = re.fullmatch(r"one update takes \S+ s; (\d+\.\d)% of it is not body, head, backward or optimiser", lines[-1])
    assert end
    outside = sum(float(row[3]) for row in rows if row and row[1] not in MODEL)
    assert float(end[1]) == pytest.approx(outside, abs=0.3)


def test_json_is_all_there_is_on_stdout() -> None:
    result = dlmrl("--updates", "2", "--json", "--set", "EntropyTopK.k=1")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert (data["recipe"], data["updates"]) == ("egspo_sa", 2)
    assert sum(row["seconds"] for row in data["phases"]) == pytest.approx(data["seconds"])
    assert sum(row["share"] for row in data["phases"]) == pytest.approx(1)
    assert 0 < data["not_model"] < 1


def test_trace(tmp_path: Path) -> None:
    """A trace of the measured updates with the phases in it; a file that exists is not replaced."""
    trace = tmp_path / "traces" / "update.json.gz"
    result = dlmrl("--updates", "2", "--trace", str(trace))
    assert result.exit_code == 0, result.output
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    assert names["bookkeeping"] == 2
    assert set(names) >= set(PHASES)
    assert any(event["name"] == "aten::mm" for event in events)
    assert [path.name for path in trace.parent.iterdir()] == [trace.name]
    content = trace.read_bytes()
    result = dlmrl("--trace", str(trace))
    assert result.exit_code == 2
    assert result.stderr == f"error: {trace} exists already; choose another --trace\n"
    assert trace.read_bytes() == content


def test_no_trace_of_an_update_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Update.__call__

    def broken(self: Update, number: int) -> dict[str, float]:
        metrics = inner(self, number)
        if number == 1:
            raise RecipeError("something\nis wrong")
        return metrics

    monkeypatch.setattr(Update, "__call__", broken)
    result = dlmrl("--trace", str(tmp_path / "trace.json"))
    assert result.exit_code == 2
    assert result.stderr == "error: something is wrong\n"
    assert not (tmp_path / "trace.json").exists()
