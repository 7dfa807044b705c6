"""The CSV of metrics: exact values, and what a killed and resumed run leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.loggers import drive

from dlmrl_kit.core.errors import CheckpointError
from dlmrl_kit.loggers.base import metric_name
from dlmrl_kit.loggers.metrics_csv import MetricsCSV, read_metrics
from dlmrl_kit.loggers.tensorboard import TensorBoard


def text(folder: Path) -> str:
    return (folder / "metrics.csv").read_text(encoding="utf-8")


def test_csv_is_long_and_exact(tmp_path: Path) -> None:
    logger = MetricsCSV()
    logger.open(tmp_path, 0)
    logger.log(0, {"reward": 0.1 + 0.2, "steps": 7})
    logger.log(1, {"late/metric": 1e-300, 'a, "quoted" name': -0.0})
    logger.close()
    assert text(tmp_path).splitlines()[:3] == ["update,metric,value", "0,reward,0.30000000000000004", "0,steps,7.0"]
    assert read_metrics(tmp_path) == {
        "reward": [(0, 0.1 + 0.2)],
        "steps": [(0, 7.0)],
        "late/metric": [(1, 1e-300)],
        'a, "quoted" name': [(1, -0.0)],
    }


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20))
def test_csv_round_trip_of_any_float(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    folder = tmp_path_factory.mktemp("run")
    logger = MetricsCSV()
    logger.open(folder, 0)
    for update, value in enumerate(values):
        logger.log(update, {"x": value})
    logger.close()
    read = [value for _, value in read_metrics(folder).get("x", [])]
    assert [repr(value) for value in read] == [repr(value) for value in values]


def test_every_log_reaches_the_file_at_once(tmp_path: Path) -> None:
    logger = MetricsCSV()
    logger.open(tmp_path, 0)
    logger.log(0, {"reward": 1.0})
    assert read_metrics(tmp_path) == {"reward": [(0, 1.0)]}
    logger.close()
    logger.close()


def test_log_before_open_is_an_error(tmp_path: Path) -> None:
    for logger in (MetricsCSV(), TensorBoard()):
        with pytest.raises(RuntimeError, match="is not open"):
            logger.log(0, {"reward": 1.0})


@pytest.mark.parametrize("checkpoint", [0, 2, 3, 4])
@pytest.mark.parametrize("killed_at", [4, 5])
def test_resumed_csv_equals_an_uninterrupted_one(tmp_path: Path, checkpoint: int, killed_at: int) -> None:
    """Also where the last checkpoint and an evaluation fall on the same update."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    drive(MetricsCSV(), whole, range(8), 0)
    drive(MetricsCSV(), cut, range(killed_at), 0)
    if checkpoint == 0:  # nothing to resume from: the loop has kept the evaluation at 0 and does not repeat it
        resumed = MetricsCSV()
        resumed.open(cut, 0)
        resumed.close()
        assert text(cut) == "update,metric,value\n0,eval/accuracy,0.0\n"
        return
    drive(MetricsCSV(), cut, range(checkpoint, 8), checkpoint)
    assert text(cut) == text(whole)


def test_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    drive(MetricsCSV(), tmp_path, range(3), 0)
    whole = text(tmp_path)
    path = tmp_path / "metrics.csv"
    for cut in range(1, len("2,kl,0.2") + 1):
        path.write_text(whole[:-cut], encoding="utf-8")  # a number that lost its last digits is still a number
        assert (2, 0.2) not in read_metrics(tmp_path).get("kl", [])
        assert read_metrics(tmp_path)["kl"][-1][0] <= 2
    path.write_text(whole + "3,rewa", encoding="utf-8")
    MetricsCSV().open(tmp_path, 3)
    assert text(tmp_path) == whole


def test_later_value_counts(tmp_path: Path) -> None:
    logger = MetricsCSV()
    logger.open(tmp_path, 0)
    logger.log(1, {"reward": 1.0})
    logger.log(0, {"reward": 2.0})
    logger.log(1, {"reward": 3.0})
    logger.close()
    assert read_metrics(tmp_path) == {"reward": [(0, 2.0), (1, 3.0)]}


@pytest.mark.parametrize(
    "content", ["a,b\n1,2\n", "update,metric,value\n1,reward\n", "update,metric,value\nx,reward,1\n"]
)
def test_foreign_file_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(CheckpointError, match=r"metrics\.csv"):
        MetricsCSV().open(tmp_path, 0)
    assert text(tmp_path) == content


def test_no_metrics(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no metrics\.csv"):
        read_metrics(tmp_path)


NAMES = [
    "reward/a\nb", "a\r\nb", "a\rb", "a\u2028b", "a\x85b", "a\x00b", "\ud800", "a,b", 'a"b', '"', "", " ", "\n", ",",
    "0,x,1", "é", "a\x0bb", "\ufeffa", "../../a", "/etc/a", "..", "a/./b", "\\n", "reward/" + "x" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_breaks_the_file(tmp_path: Path, name: str) -> None:
    logger = MetricsCSV()
    logger.open(tmp_path, 0)
    logger.log(0, {"before": 1.0, name: 0.5, "after": 2.0})
    logger.close()
    logger.open(tmp_path, 1)  # reads and writes it again
    logger.log(1, {name: 0.25})
    logger.close()
    series = read_metrics(tmp_path)
    assert series == {"before": [(0, 1.0)], metric_name(name): [(0, 0.5), (1, 0.25)], "after": [(0, 2.0)]}
    assert len(text(tmp_path).splitlines()) == 5
    if name.isprintable() and "." not in name and not name.startswith("/") and name:
        assert metric_name(name) == name


def test_names_that_differ_stay_apart() -> None:
    assert len({metric_name(name) for name in NAMES[:13]}) == 13


@pytest.mark.parametrize("name", NAMES[:-1], ids=ascii)
def test_no_name_leads_out_of_the_run_folder(tmp_path: Path, name: str) -> None:
    run = tmp_path / "one" / "two" / "run"
    run.mkdir(parents=True)
    logger = TensorBoard()
    logger.open(run, 0)
    logger.log(0, {name: 0.5, f"reward/{name}": 0.5})
    logger.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(run)] == []
