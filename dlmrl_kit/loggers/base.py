"""The interface of loggers, which take the metrics of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from dlmrl_kit.core.dependencies import Dependent


def metric_name(name: str) -> str:
    """Returns the name of a metric as loggers write it: on one line, encodable, and no way out of a folder.

    Components of a reward are named by the task, and so by anybody. What cannot be printed is escaped as in Python, and
    so are the parts of a path that lead elsewhere, for some loggers make a file of each metric.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    parts = [part.replace(".", "\\x2e") if part in (".", "..") else part for part in shown.split("/")]
    return "/".join(parts) if parts[0] else "\\x2f" + "/".join(parts[1:])


class Logger(Dependent, ABC):
    """Takes the metrics of a run, update by update: ``open``, then ``log`` any number of times, then ``close``.

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

    @abstractmethod
    def close(self) -> None:
        """Writes what is pending. Does nothing if the logger is not open."""

    def _not_open(self) -> RuntimeError:
        return RuntimeError(f"{type(self).__name__} is not open: call open(folder, first_update) before log()")
