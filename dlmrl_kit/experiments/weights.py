"""Removes the weights of finished runs, which fill a disk where there are hundreds; their numbers stay."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, TypeAlias

from dlmrl_kit.core.errors import FileError
from dlmrl_kit.core.files import reason_of
from dlmrl_kit.core.run_folder import CHECKPOINTS
from dlmrl_kit.training.best_model import FOLDER as BEST_WEIGHTS
from dlmrl_kit.training.export import ADAPTER, BEST, MODEL

Keep: TypeAlias = Literal["all", "models", "none"]
"""What stays of the weights of a finished run: checkpoints and models, the models alone, or nothing."""

_RESUMED = (CHECKPOINTS, BEST_WEIGHTS)
_MODELS = (MODEL, ADAPTER, f"{BEST}{MODEL}", f"{BEST}{ADAPTER}")


def remove_weights(run: Path, keep: Keep) -> None:
    """Removes from the folder of a finished run what is not to be kept.

    Raises:
        FileError: something cannot be removed.
    """
    gone = {"all": (), "models": _RESUMED, "none": (*_RESUMED, *_MODELS)}[keep]
    for folder in (run / name for name in gone):
        try:
            if folder.is_dir():
                shutil.rmtree(folder)
        except OSError as error:
            raise FileError(f"cannot remove {folder}: {reason_of(error)}") from error
