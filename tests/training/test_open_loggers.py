"""Loggers while a run goes on: it needs its loggers, and does without a tracker that fails or does not answer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from support.runs import recipe
from support.trackers import Recorded, evaluation

from dlmrl_kit.core.errors import FileError
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.loggers.base import Logger
from dlmrl_kit.loggers.metrics_csv import MetricsCSV, read_metrics
from dlmrl_kit.training import open_loggers
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.open_loggers import OpenLoggers
from dlmrl_kit.training.thread_errors import ThreadErrors

METHODS = ["start", "log_settings", "log", "log_evaluation", "log_file", "close"]


def drive(folder: Path, *loggers: Logger) -> list[str]:
    """Logs one update, one evaluation and one file; returns what was said."""
    said: list[str] = []
    opened = OpenLoggers(loggers, folder, said.append)
    (folder / "page.html").write_text("page")
    with opened.open(0, {"Trainer.seed": "0"}):
        for update in (0, 1):
            opened.log(update, {"reward": 0.5})
        opened.log_evaluation(2, evaluation())
        opened.log_file(2, folder / "page.html")
        opened.log_file(2, folder / "not there.html")
    return said


def test_a_tracker_gets_everything_in_order(tmp_path: Path) -> None:
    tracker = Recorded()
    assert drive(tmp_path, tracker) == []
    assert tracker.got == [
        ("start", None),
        ("log_settings", {"Trainer.seed": "0"}),
        ("log", (0, {"reward": 0.5})),
        ("log", (1, {"reward": 0.5})),
        ("log_evaluation", (2, evaluation())),
        ("log_file", (2, "page.html")),
        ("close", None),
    ]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a\nb"), SystemExit(1)], ids=repr)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_without_a_tracker_that_fails(tmp_path: Path, method: str, error: BaseException) -> None:
    tracker, other = Recorded(method, error), Recorded()
    (said,) = drive(tmp_path, tracker, MetricsCSV(), other)
    assert said.startswith("Recorded gets nothing more of this run, which goes on without it: " + type(error).__name__)
    assert "\n" not in said
    assert read_metrics(tmp_path) == {"reward": [(0, 0.5), (1, 0.5)]}
    assert [name for name, _ in other.got].count("log") == 2
    assert [name for name, _ in tracker.got].count("log") == 2 * (METHODS.index(method) > METHODS.index("log"))
    assert [name for name, _ in tracker.got].count("close") == (method not in ("start", "close"))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_does_not_wait_for_a_tracker_for_ever(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_loggers, "PATIENCE", 0.05)
    tracker = Recorded(method)
    (said,) = drive(tmp_path, tracker, MetricsCSV())
    tracker.answered.set()
    assert said.endswith("no answer in 0.05 seconds")
    assert read_metrics(tmp_path) == {"reward": [(0, 0.5), (1, 0.5)]}


def test_a_run_ends_with_a_logger_that_it_needs(tmp_path: Path) -> None:
    class Full(MetricsCSV):
        def log_evaluation(self, update: int, result: object) -> None:
            raise OSError(28, "No space left on device")

    tracker = Recorded()
    with pytest.raises(FileError, match=r"Full cannot write metrics into .*: No space left on device"):
        drive(tmp_path, tracker, Full())
    assert tracker.got[-1] == ("close", None)


@pytest.mark.parametrize(("package", "kept"), [("tracker.sender", False), ("tensorboard.writer", True)])
def test_threads_of_trackers_may_end_as_they_like(package: str, kept: bool) -> None:
    names: dict[str, object] = {"__name__": package}
    exec("def fail():\n    raise ConnectionError('gone')", names)
    errors = ThreadErrors(["tracker"])
    with errors:
        thread = threading.Thread(target=names["fail"])  # type: ignore[arg-type]
        thread.start()
        thread.join()
    if kept:
        with pytest.raises(ConnectionError, match="gone"):
            errors.check()
    errors.check()


@pytest.mark.thorough
def test_what_a_run_hands_to_its_loggers(tmp_path: Path) -> None:
    algorithm = recipe(sets=["Trainer.traced_examples = 1", "Trainer.updates = 2"]).build_algorithm()
    tracker = Recorded()
    algorithm.loggers = [MetricsCSV(), tracker]
    run = Run(algorithm, tmp_path, "tiny", RunObserver())
    run.identity = {"recipe": {"Trainer.seed": "0"}}
    (tmp_path / "recipe.gin").write_text("")
    run.run()
    got = [(name, what[0] if name == "log_evaluation" else what) for name, what in tracker.got if name != "log"]  # type: ignore[index]
    assert got[1:-1] == [
        ("log_settings", {"Trainer.seed": "0"}),
        ("log_file", (0, "recipe.gin")),
        ("log_evaluation", 0),
        ("log_file", (0, "trajectories.html")),
        ("log_evaluation", 2),
        ("log_file", (2, "trajectories.html")),
        *(("log_file", (2, f"{name}.png")) for name in ("curve", "rewards", "steps", "updates", "updates-by-step")),
        ("log_file", (2, "completions.jsonl")),
    ]
    logged = {name for method, what in tracker.got if method == "log" for name in what[1]}  # type: ignore[index]
    assert logged == set(read_metrics(tmp_path))


@pytest.mark.parametrize(("loggers", "kept"), [([], False), ([Recorded()], False), ([Recorded(), MetricsCSV()], True)])
def test_a_run_that_keeps_no_metrics_says_so(tmp_path: Path, loggers: list[Logger], kept: bool) -> None:
    notes = OpenLoggers(loggers, tmp_path).notes
    assert len(notes) == (not kept)
    assert kept or "no metrics.csv is kept" in notes[0]
