"""Begins training runs and goes on with them. A killed run can be resumed and ends with the same result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.errors import CheckpointError, RecipeError
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.results import RunObserver, RunResult
from dlmrl_kit.core.run_folder import RECIPE, holds_run, one_writer
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.training.blaming import blaming
from dlmrl_kit.training.checkpoint import checkpoints
from dlmrl_kit.training.identity import Change, Identity, identity_of
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.record import check_unchanged, name_of, note_failure, notes, record_changes, start_record
from dlmrl_kit.training.start import find_device


def train(
    recipe: Recipe, folder: Path, *, observer: RunObserver | None = None, processes: Processes = ALONE
) -> RunResult:
    """Trains a recipe in a new run folder.

    Args:
        recipe: from ``load_recipe``.
        folder: the run folder, which is created. It gets ``recipe.gin``, ``metrics.csv``, ``checkpoints/``, ``model/``,
            ``curve.png``, ``trajectories.html``, ``evaluations.json``, ``steps.jsonl``, ``completions.jsonl``,
            ``run.json`` and ``result.json``. A run in it that failed before its first checkpoint is replaced.
        observer: is told how the run goes, in the first process.
        processes: that train together, from ``core.processes.joined``; each of them calls this.

    Raises:
        UserError: the recipe is broken, the folder holds a run already, or training cannot go on.
    """
    with contextlib.ExitStack() as stack:
        processes.of_first(lambda: stack.enter_context(_new(folder)))
        algorithm = recipe.build_algorithm()
        with blaming(recipe, folder):  # before anything is written, as a failure must leave no folder
            run = Run(algorithm, folder, recipe.name, observer or RunObserver(), processes)
            run.identity = _identity(recipe, algorithm, processes)
        processes.of_first(lambda: start_record(folder, recipe, run.identity))
        return _run(run, recipe)


@contextlib.contextmanager
def _new(folder: Path) -> Iterator[None]:
    """Holds the folder of a new run.

    Raises:
        CheckpointError: it holds one already.
    """
    with one_writer(folder):
        if holds_run(folder):
            raise CheckpointError(
                f"{folder} already holds a run: resume it with 'dlmrl train --resume {folder}', or choose another "
                "folder"
            )
        yield


def resume(
    folder: Path,
    *,
    observer: RunObserver | None = None,
    allow_imports: bool = False,
    sets: Sequence[str] = (),
    accept_changes: bool = False,
    processes: Processes = ALONE,
) -> RunResult:
    """Continues a run from its newest checkpoint, or from the start if it has none yet.

    A finished run is not trained further; its results are written and reported again. With ``sets`` a run may be made
    longer. Whatever else it depends on must be as it was: settings, files, package versions, device and threads. The
    number of processes may be another one.

    Args:
        folder: the run folder.
        observer: is told how the run goes.
        allow_imports: whether to run the import statements of the run's recipe.
        sets: bindings that replace those of the run's recipe: ``"Trainer.updates = 200"``.
        accept_changes: whether to go on although something that the run depends on has changed.
        processes: as ``train``.

    Raises:
        UserError: ``folder`` holds no run, a checkpoint does not fit the recipe or is damaged, or something that the
            run depends on has changed.
    """
    if not (folder / RECIPE).is_file():
        raise CheckpointError(f"{folder} holds no run (no recipe.gin in it)")
    with contextlib.ExitStack() as stack:
        processes.of_first(lambda: stack.enter_context(one_writer(folder)))
        recipe = load_recipe(str(folder / RECIPE), sets=sets, allow_imports=allow_imports)
        algorithm = recipe.build()
        if not isinstance(algorithm, Algorithm):
            raise RecipeError(f"{folder} holds a pre-training run: go on with 'dlmrl pretrain RECIPE --out {folder}'")
        now, length = _identity(recipe, algorithm, processes), recipe.key_in("trainer", "updates")

        def compared() -> list[Change]:
            found = checkpoints(folder)
            finished = bool(found) and found[-1][0] == algorithm.trainer.updates
            return check_unchanged(folder, now, length=length, finished=finished, accept=accept_changes)

        changed = processes.of_first(compared)
        with blaming(recipe, folder):
            run = Run(algorithm, folder, name_of(folder), observer or RunObserver(), processes)
        run.identity = now
        first = run.restore()
        processes.of_first(lambda: record_changes(folder, recipe, now, changed, first))
        run.notes += notes(changed, length, float(run.update.scheduler.get_last_lr()[0]))
        return _run(run, recipe)


def _identity(recipe: Recipe, algorithm: Algorithm, processes: Processes) -> Identity:
    return identity_of(recipe, algorithm, find_device(algorithm.trainer.device), processes.world)


def _run(run: Run, recipe: Recipe) -> RunResult:
    try:
        with blaming(recipe, run.folder):
            return run.run()
    except Exception as error:
        note_failure(run.folder, error)
        raise
