"""The base class of experiment trackers: services that show runs beside one another, which may be out of reach."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.core.run_folder import read_json
from dlmrl_kit.core.validate import check
from dlmrl_kit.loggers.base import SAMPLE_COLUMNS, H, Handled

FILE = "trackers.json"
"""In the run folder: by tracker, the run that it has of this one, with which a resumed run goes on."""


class Tracker(Handled[H]):
    """A logger that a run can do without: if it fails, the run says so and goes on without it.

    Its methods are called in threads, one call at a time. Subclasses implement ``start``, which sets ``_handle``,
    ``log``, ``log_evaluation``, ``log_file``, and ``_end`` or ``close``.

    Raises:
        UserError: the package is not installed.
    """

    package: ClassVar[str]
    """The package that it needs, which is an extra of the kit, too."""

    def __init__(self) -> None:
        if find_spec(self.package) is None:
            name = type(self).__name__
            raise UserError(f"{name} needs the package {self.package}: pip install 'dlmrl-kit[{self.package}]'")

    def open(self, folder: Path, first_update: int) -> None:
        """Starts a run of the tracker, or goes on with the one that this run folder has there."""
        self.close()
        path, own = folder / FILE, type(self).__name__
        known: dict[str, str] = {}
        if path.is_file():
            known = read_json(path, lambda found: {**found}, "remove it: the tracker then starts a run of its own")
        started = self.start(folder, known.get(own))
        if known.get(own) != started:
            write_atomic(path, json.dumps({**known, own: started}))

    @abstractmethod
    def start(self, folder: Path, known: str | None) -> str:
        """Starts or continues a run of the tracker.

        Args:
            folder: the run folder, whose name is the run's where the user gave none.
            known: what ``start`` returned for this folder before; None: never called.

        Returns:
            What finds the run again: its id or name.
        """

    def _check_options(self, options: Mapping[str, object], own: Collection[str]) -> dict[str, Any]:
        """Returns options of the tracker's package as a dictionary.

        Raises:
            ParameterError: one of them is what the component sets itself.
        """
        taken = ", ".join(sorted(set(options) & set(own)))
        check(not taken, self, "options", taken, f"other than {', '.join(own)}, which the component sets")
        return dict(options)


def sample_rows(update: int, result: EvalResult) -> list[list[object]]:
    """Returns the completions that an evaluation shows as rows: the update, then ``SAMPLE_COLUMNS``."""
    return [[update, *(sample.get(column, "") for column in SAMPLE_COLUMNS)] for sample in result.samples]
