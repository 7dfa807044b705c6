"""The best model of a run, chosen on examples that it neither trains on nor is tested on.

At every evaluation the policy also answers the first ``Trainer.validation_size`` examples of the task's split
``pretrain``. The best of these evaluations is that of the highest accuracy, then the highest reward, then the earliest;
the one before training does not count. Its weights are kept, and exported as ``best_model/`` when the run ends. What it
does on held-out examples was measured at the same time, and had no part in the choice.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dlmrl_kit.core.checksums import CHECKSUMS, damage, read_checksums, write_checksums
from dlmrl_kit.core.errors import CheckpointError, RecipeError
from dlmrl_kit.core.files import atomic_folder, reason_of
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.rollout.services import require_examples
from dlmrl_kit.tasks.base import BaseTask
from dlmrl_kit.trainers.trainer import Trainer
from dlmrl_kit.training.evaluation_files import VALIDATIONS, read_evaluations, write_evaluations
from dlmrl_kit.training.tensor_files import SUFFIX, read, write_whole

SPLIT = "pretrain"
"""The split that the choice is made on."""
WEIGHTS = "weights"
FOLDER = "best"
"""The folder of a run that keeps the weights of the best evaluation, and those of one that a resume may go back to."""


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: after how many updates, and its result on the split ``pretrain``."""

    updates: int
    result: EvalResult

    def __str__(self) -> str:
        share = f"{self.result.accuracy:.1%} of {self.result.size} examples of {SPLIT}"
        return f"best on validation: after {self.updates} updates, {share}"


class BestModel:
    """Keeps the weights of the best evaluation of a run.

    Args:
        folder: of the run.
        parameters: that are trained, by name.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
        self.folder = folder
        self.parameters = parameters
        self.results: dict[int, EvalResult] = {}

    @property
    def best(self) -> Best | None:
        """The best evaluation so far; None before the first one after an update."""
        return _best(self.results, max(self.results, default=0))

    def note(self, done: int, result: EvalResult, safe: int) -> None:
        """Takes an evaluation into account, and keeps the weights if it is the best.

        Args:
            done: updates that were taken.
            result: of the evaluation.
            safe: updates of the newest checkpoint, to which a resume would go back.

        Raises:
            FileError: the weights cannot be written.
        """
        self.results[done] = result
        best = self.best
        if best is not None and best.updates == done:
            with atomic_folder(self._place(done)) as temporary:
                write_whole(temporary, WEIGHTS, self.parameters)
                write_checksums(temporary)
        write_evaluations(self.folder / VALIDATIONS, self.results)
        known = _best(self.results, safe)
        kept = {self._place(one.updates) for one in (best, known) if one is not None}
        for place in (self.folder / FOLDER).glob("update-*"):
            if place not in kept:
                shutil.rmtree(place, ignore_errors=True)

    def restore(self, first: int) -> None:
        """Takes over what a run knew after ``first`` updates; what came later is done again.

        Raises:
            CheckpointError: the evaluations are damaged.
        """
        path = self.folder / VALIDATIONS
        if path.is_file():
            self.results = {done: result for done, result in read_evaluations(path).items() if done <= first}

    def load(self, best: Best) -> None:
        """Puts the weights of an evaluation into the policy.

        Raises:
            CheckpointError: they are not there, or not as they were written.
        """
        place, file = self._place(best.updates), f"{WEIGHTS}{SUFFIX}"
        try:
            problem = damage(place / file, read_checksums(place).get(file))
            found = {} if problem else read(place, WEIGHTS, lambda name, size: None)
        except (OSError, ValueError) as error:
            problem = f"{CHECKSUMS}: {reason_of(error) if isinstance(error, OSError) else error}"
        if problem:
            raise CheckpointError(f"{place} cannot be read ({problem}); start a new run")
        if {name: value.shape for name, value in found.items()} != {n: p.shape for n, p in self.parameters.items()}:
            raise CheckpointError(f"{place}: its weights do not have the names and shapes of the run's")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(found[name])

    def _place(self, updates: int) -> Path:
        return self.folder / FOLDER / f"update-{updates:06d}"


def check_validation(task: BaseTask, trainer: Trainer) -> None:
    """Refuses a run that cannot choose a best model as its trainer asks.

    Raises:
        RecipeError: the task has no examples to choose on, or weights are sharded.
    """
    if not trainer.validation_size:
        return
    require_examples(task, SPLIT)
    if trainer.sharding != "none":
        raise RecipeError(
            "Trainer.validation_size is not for Trainer.sharding = 'full', where no process holds the weights; set one "
            "of them to its default, and choose among exported models with dlmrl eval --split pretrain"
        )


def _best(results: Mapping[int, EvalResult], most: int) -> Best | None:
    """Returns the best of the evaluations after 1 to ``most`` updates."""
    counted = [updates for updates in results if 0 < updates <= most]
    if not counted:
        return None
    updates = max(counted, key=lambda u: (results[u].accuracy, results[u].reward, -u))
    return Best(updates, results[updates])
