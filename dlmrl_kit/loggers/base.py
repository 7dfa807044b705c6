"""The interface of loggers, which take the metrics of a run, and what else they want to show of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

from dlmrl_kit.core.dependencies import Dependent
from dlmrl_kit.core.results import EvalResult

H = TypeVar("H")

SAMPLE_COLUMNS = ("prompt", "completion", "answer", "solved", "reward")
"""What an evaluation says of each completion that it shows."""


def metric_name(name: str) -> str:
    """Returns the name of a metric as loggers write it: on one line, encodable, and no way out of a folder.

    Components of a reward are named by the task, and so by anybody. What cannot be printed is escaped as in Python, and
    so are the parts of a path that lead elsewhere, for some loggers make a file of each metric.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    parts = [part.replace(".", "\\x2e") if part in (".", "..") else part for part in shown.split("/")]
    return "/".join(parts) if parts[0] else "\\x2f" + "/".join(parts[1:])


def evaluation_metrics(result: EvalResult) -> dict[str, float]:
    """Returns the numbers of an evaluation that ``metrics.csv`` lacks: the interval, parts of the reward, pass@k."""
    low, high = result.interval()
    parts = {metric_name(f"eval/reward/{name}"): value for name, value in result.components.items()}
    passed = {f"eval/pass@{k}": value for k, value in result.pass_at_k.items() if k > 1}
    return {"eval/accuracy_low": low, "eval/accuracy_high": high, **parts, **passed}


class Logger(Dependent, ABC):
    """Takes the metrics of a run, update by update: ``open``, then the others any number of times, then ``close``.

    Constructors open nothing: building a recipe must not touch the disk or the network.
    """

    @abstractmethod
    def open(self, folder: Path, first_update: int) -> None:
        """Starts logging into a run folder, which exists.

        Args:
            folder: the run folder.
            first_update: the next update of the run, 0 if it is new. Whatever an interrupted run logged for this update
                and later ones will be logged again and is to be dropped, except the evaluation (``eval/...``) at
                ``first_update``: it is of the policy with which the run resumes.
        """

    @abstractmethod
    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Logs metrics of one update; may be called more than once per update, with other metrics."""

    def log_settings(self, settings: Mapping[str, str]) -> None:
        """Takes the settings of the recipe, right after ``open``. Default: nothing.

        Args:
            settings: values as gin text, by parameter: ``{"Trainer.seed": "0"}``.
        """
        return

    def log_evaluation(self, update: int, result: EvalResult) -> None:
        """Takes an evaluation of the policy after ``update`` updates: its interval, some completions. Default: nothing.

        Its accuracy and reward come by ``log`` as ``eval/accuracy`` and ``eval/reward``.
        """
        return

    def log_file(self, update: int, path: Path) -> None:
        """Takes a file of the run folder as it is after ``update`` updates: recipe, page, figure. Default: nothing.

        A file of the same name replaces the one before.
        """
        return

    @abstractmethod
    def close(self) -> None:
        """Writes what is pending. Does nothing if the logger is not open."""

    def _not_open(self) -> RuntimeError:
        return RuntimeError(f"{type(self).__name__} is not open: call open(folder, first_update) before log()")


class Handled(Logger, Generic[H]):
    """A logger that holds something, such as a file or a run, from ``open``, which sets ``_handle``, to ``close``."""

    _handle: H | None = None

    def close(self) -> None:
        """Lets go of what it holds, if it is open."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._end(handle)

    def _end(self, handle: H) -> None:
        """Writes what is pending, and ends what ``open`` has begun. Default: nothing."""
        return

    def _opened(self) -> H:
        """Returns what it holds.

        Raises:
            RuntimeError: it is not open.
        """
        if self._handle is None:
            raise self._not_open()
        return self._handle
