"""Evaluations, and trackers that fail in the ways that a service can."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.loggers.tracker import Tracker


def evaluation(accuracy: float = 0.5, size: int = 4) -> EvalResult:
    sample = {"prompt": "1+1|<b>", "completion": "2\n", "answer": "2", "solved": 1.0, "reward": 0.75}
    return EvalResult("heldout", size, accuracy, 0.25, {"format": 1.0}, {1: accuracy, 4: 1.0}, samples=[sample])


class Recorded(Tracker):
    """Keeps what it gets; ``fails`` names a method that raises, or waits for ``answered``."""

    package = "json"

    def __init__(self, fails: str = "", error: BaseException | None = None) -> None:
        super().__init__()
        self.fails, self.error = fails, error
        self.answered = threading.Event()
        self.got: list[tuple[str, object]] = []
        self.started = False

    def _take(self, method: str, what: object) -> None:
        if method == self.fails:
            if self.error is None:
                self.answered.wait()
            else:
                raise self.error
        self.got.append((method, what))

    def start(self, folder: Path, known: str | None) -> str:
        self._take("start", known)
        self.started = True
        return known or "an id"

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        self._take("log", (update, dict(metrics)))

    def log_settings(self, settings: Mapping[str, str]) -> None:
        self._take("log_settings", dict(settings))

    def log_evaluation(self, update: int, result: EvalResult) -> None:
        self._take("log_evaluation", (update, result))

    def log_file(self, update: int, path: Path) -> None:
        self._take("log_file", (update, path.name))

    def close(self) -> None:
        if self.started:
            self.started = False
            self._take("close", None)


def wandb_history(file: Path) -> list[dict[str, Any]]:
    """Reads what wandb has kept of ``run.log``: records in the format of LevelDB's log, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts, rows = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:  # no header fits into the rest of the block
            at += room
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts = (parts if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            items = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            rows.append({key: json.loads(value) for key, value in items.items()})
    return [row for row in rows if row]
