"""The evaluations of a run as its folder keeps them: JSON objects, results by the number of updates before them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.core.run_folder import read_json

EVALUATIONS = "evaluations.json"
"""Those on held-out examples."""
VALIDATIONS = "validations.json"
"""Those on which the best model is chosen (``training.best_model``)."""


def read_evaluations(path: Path) -> dict[int, EvalResult]:
    """Reads the results in a file, by the number of updates.

    Raises:
        CheckpointError: it cannot be read, or is damaged.
    """
    return read_json(
        path, lambda data: {int(updates): EvalResult.from_json(result) for updates, result in data.items()}
    )


def write_evaluations(path: Path, results: Mapping[int, EvalResult]) -> None:
    """Writes results, atomically, in the order of their updates.

    Raises:
        FileError: the file cannot be written.
    """
    entries = {str(updates): result.to_json() for updates, result in sorted(results.items())}
    write_atomic(path, json.dumps(entries, indent=1))
