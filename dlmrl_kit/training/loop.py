"""The training loop: update, log, evaluate, checkpoint. A killed run can be resumed and ends with the same result."""

from __future__ import annotations

import json
import time
from pathlib import Path

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.errors import CheckpointError, RecipeError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.results import EvalResult, RunObserver, RunResult
from dlmrl_kit.core.version import VERSION
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.training.checkpoint import checkpoints, load_checkpoint, prune, save_checkpoint
from dlmrl_kit.training.curve import plot_curve
from dlmrl_kit.training.evaluation import evaluate
from dlmrl_kit.training.export import MODEL, export
from dlmrl_kit.training.start import start_training, trained
from dlmrl_kit.training.update import Update


def train(recipe: Recipe, folder: Path, *, observer: RunObserver | None = None) -> RunResult:
    """Trains a recipe in a new run folder.

    Args:
        recipe: from ``load_recipe``.
        folder: the run folder, which is created. It gets ``recipe.gin``, ``metrics.csv``, ``checkpoints/``, ``model/``,
            ``curve.png``, ``evaluations.json``, ``run.json`` and ``result.json``.
        observer: is told how the run goes.

    Raises:
        UserError: the recipe is broken, the folder holds a run already, or training cannot go on.
    """
    if (folder / "recipe.gin").exists():
        raise CheckpointError(
            f"{folder} already holds a run: resume it with 'dlmrl train --resume {folder}', or choose another folder"
        )
    algorithm = recipe.build_algorithm()
    run = Run(algorithm, folder, recipe.name, observer or RunObserver())  # first, as a failure must leave no folder
    write_atomic(folder / "run.json", json.dumps({"recipe": recipe.name, "dlmrl_kit": VERSION}))
    write_atomic(folder / "recipe.gin", recipe.text())
    return run.run()


def resume(folder: Path, *, observer: RunObserver | None = None, allow_imports: bool = False) -> RunResult:
    """Continues a run from its newest checkpoint, or from the start if it has none yet.

    A finished run is not trained further; its results are written and reported again.

    Args:
        folder: the run folder.
        observer: is told how the run goes.
        allow_imports: whether to run the import statements of the run's recipe.

    Raises:
        UserError: ``folder`` holds no run, or a checkpoint does not fit the recipe.
    """
    if not (folder / "recipe.gin").is_file():
        raise CheckpointError(f"{folder} holds no run (no recipe.gin in it)")
    recipe = load_recipe(str(folder / "recipe.gin"), allow_imports=allow_imports)
    algorithm = recipe.build()
    if not isinstance(algorithm, Algorithm):
        raise RecipeError(f"{folder} holds a pre-training run: go on with 'dlmrl pretrain RECIPE --out {folder}'")
    about = folder / "run.json"
    name = json.loads(about.read_text())["recipe"] if about.is_file() else folder.name
    return Run(algorithm, folder, name, observer or RunObserver()).run()


class Run:
    """One training run.

    Args:
        algorithm: the built recipe.
        folder: the run folder.
        name: of the recipe.
        observer: is told how the run goes.
    """

    def __init__(self, algorithm: Algorithm, folder: Path, name: str, observer: RunObserver) -> None:
        self.algorithm = algorithm
        self.trainer = algorithm.trainer
        self.folder = folder
        self.name = name
        self.observer = observer
        started = start_training(algorithm)
        self.policy = started.policy
        self.parameters = trained(started.policy, algorithm.components)
        self.update = Update(algorithm, *started, observer.on_message)
        self.evaluations: dict[int, EvalResult] = {}

    def run(self) -> RunResult:
        """Trains to the end from the newest checkpoint, if there is one; returns the result."""
        started = time.perf_counter()
        first = self._restore()
        total = self.trainer.updates
        self.observer.on_start(
            folder=self.folder, recipe=self.name, total_updates=total, first_update=first, info=self._info()
        )
        for logger in self.algorithm.loggers:
            logger.open(self.folder, first)
        try:
            if 0 not in self.evaluations:
                self._evaluate(0)
            for number in range(first, total):
                self.step(number)
        finally:
            for logger in self.algorithm.loggers:
                logger.close()
        return self._finish(time.perf_counter() - started, trained=first < total)

    def _restore(self) -> int:
        prune(self.folder)
        found = checkpoints(self.folder)
        first = 0
        if found:
            first, counters = load_checkpoint(
                found[-1][1], self.parameters, self.update.optimiser, self.update.scheduler
            )
            self.update.restore(counters)
        stored = self.folder / "evaluations.json"
        if stored.is_file():
            entries = {int(k): EvalResult.from_json(v) for k, v in json.loads(stored.read_text()).items()}
            self.evaluations = {update: result for update, result in entries.items() if update <= first}
        if first and 0 not in self.evaluations:
            raise CheckpointError(f"{stored} is missing or lost the evaluation before training; start a new run")
        return first

    def _info(self) -> dict[str, int | str]:
        return {
            "parameters": self.policy.num_parameters,
            "trainable": sum(p.numel() for _, p in self.policy.trainable()),
            "device": str(self.policy.device),
            "samples_per_update": self.trainer.prompts_per_update * self.trainer.group_size,
        }

    def step(self, number: int) -> None:
        """Takes one update and logs its metrics; evaluates and saves a checkpoint if these are due."""
        started = time.perf_counter()
        metrics = self.update(number)
        seconds = time.perf_counter() - started
        metrics |= {"seconds": seconds, "tokens_per_second": metrics.pop("tokens") / seconds}
        self._log(number, metrics)
        done = number + 1
        if done == self.trainer.updates or (self.trainer.eval_every and done % self.trainer.eval_every == 0):
            self._evaluate(done)
        if done == self.trainer.updates or done % self.trainer.checkpoint_every == 0:
            self._save(done)

    def _save(self, done: int) -> None:
        update = self.update
        save_checkpoint(self.folder, done, self.parameters, update.optimiser, update.scheduler, update.counters())

    def _evaluate(self, done: int) -> None:
        task, sampler = self.algorithm.task, self.algorithm.sampler
        result = evaluate(self.policy, sampler, task, size=self.trainer.eval_size, seed=self.trainer.seed)
        # Log, then store: a run killed in between evaluates again. The other way round the log would miss a result.
        self._log_values(done, {"eval/accuracy": result.accuracy, "eval/reward": result.reward})
        self.evaluations[done] = result
        entries = {str(update): entry.to_json() for update, entry in sorted(self.evaluations.items())}
        write_atomic(self.folder / "evaluations.json", json.dumps(entries, indent=1))
        self.observer.on_eval(done, result)

    def _log(self, update: int, metrics: dict[str, float]) -> None:
        self.observer.on_update(update, metrics)
        self._log_values(update, metrics)

    def _log_values(self, update: int, metrics: dict[str, float]) -> None:
        for logger in self.algorithm.loggers:
            logger.log(update, metrics)

    def _finish(self, seconds: float, trained: bool) -> RunResult:
        stored = self.folder / "result.json"
        if not trained and stored.is_file():
            seconds = json.loads(stored.read_text())["seconds"]
        result = RunResult(
            folder=self.folder,
            before=self.evaluations[0],
            after=self.evaluations[max(self.evaluations)],
            updates=self.trainer.updates,
            seconds=seconds,
            model=self.folder / MODEL,
            skipped=self.update.skipped,
        )
        export(self.policy, result, recipe=self.name, task=self.algorithm.task, components=self.algorithm.components)
        summary = {
            "recipe": self.name,
            "updates": result.updates,
            "seconds": seconds,
            "skipped": result.skipped,
            "before": result.before.to_json(),
            "after": result.after.to_json(),
        }
        if (self.folder / "metrics.csv").is_file():
            plot_curve(self.folder)
        write_atomic(stored, json.dumps(summary, indent=1))  # the last file: a run that has it is complete
        self.observer.on_end(result)
        return result
