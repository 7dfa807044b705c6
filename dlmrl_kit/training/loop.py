"""The training loop: update, log, evaluate, checkpoint; what ``training.runs`` begins and goes on with.

Several processes go through it together; the first of them alone reports and writes (``core.processes``).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import NoReturn

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.component import trained
from dlmrl_kit.core.errors import CheckpointError, NotFiniteError, StoppedError
from dlmrl_kit.core.finite import require_finite
from dlmrl_kit.core.policy import autocast
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.results import EvalResult, RunObserver, RunResult
from dlmrl_kit.core.run_folder import RECIPE, require
from dlmrl_kit.policies.sharding import is_sharded
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.rollout.services import cut_prompts
from dlmrl_kit.tasks.base import said_of
from dlmrl_kit.training.best_model import SPLIT, BestModel
from dlmrl_kit.training.blow_up import start_weights, what_is_left
from dlmrl_kit.training.checkpoint import checkpoints, load_checkpoint, load_rollouts, prune, save_checkpoint
from dlmrl_kit.training.ending import Ending
from dlmrl_kit.training.evaluation import evaluate, evaluation_seed
from dlmrl_kit.training.evaluation_files import EVALUATIONS, read_evaluations, write_evaluations
from dlmrl_kit.training.figures import draw_at_the_end
from dlmrl_kit.training.identity import Identity
from dlmrl_kit.training.model_work import ModelWork
from dlmrl_kit.training.open_loggers import OpenLoggers
from dlmrl_kit.training.record import note_parts
from dlmrl_kit.training.results import seconds_of, write_results
from dlmrl_kit.training.rollout_record import KEPT, RolloutRecord
from dlmrl_kit.training.start import start_training, whole_copy
from dlmrl_kit.training.trace import trace_examples
from dlmrl_kit.training.trajectories import PAGE, write_trajectories
from dlmrl_kit.training.update import Update
from dlmrl_kit.training.update_lines import COMPLETIONS


class Run:
    """One training run.

    Args:
        algorithm: the built recipe.
        folder: the run folder.
        name: of the recipe.
        observer: is told how the run goes, in the first process.
        processes: that train together.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        folder: Path,
        name: str,
        observer: RunObserver,
        processes: Processes = ALONE,
    ) -> None:
        self.algorithm = algorithm
        self.trainer = algorithm.trainer
        self.folder = folder
        self.name = name
        self.processes = processes
        self.observer = observer if processes.is_first else RunObserver()
        self.loggers = OpenLoggers(algorithm.loggers if processes.is_first else [], folder, self.observer.on_message)
        self.notes: list[str] = []
        """What the user should read once the run starts."""
        started = start_training(algorithm, processes, self.notes.append)
        self.policy = started.policy
        samples = max(KEPT, self.observer.shown_samples)
        self.record = RolloutRecord(folder, algorithm.task, self.policy, samples, processes)
        self.parameters = trained(started.policy, algorithm.components)
        self.update = Update(algorithm, *started, self.observer.on_message, processes)
        self.work = ModelWork()
        self.evaluations: dict[int, EvalResult] = {}
        self.best = BestModel(folder, self.parameters) if self.trainer.validation_size else None
        self.first = 0
        self.identity: Identity = {}
        """What the run depends on; checkpoints hold it."""

    def run(self) -> RunResult:
        """Trains to the end, from the checkpoint that was restored if one was; returns the result."""
        started = time.perf_counter()
        self.processes.of_first(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        first, total = self.first, self.trainer.updates
        self.observer.on_start(
            folder=self.folder, recipe=self.name, total_updates=total, first_update=first, info=self._info()
        )
        task = self.algorithm.task
        cut = [note for split in ("train", "heldout") for note in cut_prompts(task, split, self.policy)]
        for note in (*said_of(task), *cut, *self.loggers.notes, *self.notes):
            self.observer.on_message(note)
        if self.trainer.sharding != "none":
            self._say_how()
        with Ending(self.processes, self.trainer.timeout_minutes, self.folder) as ending:
            settings = self.identity.get("recipe", {})
            with self.loggers.open(first, settings), self.update.opened(), self.work.watching(self.policy):
                try:
                    self._go_on(ending)
                    self._draw()
                except NotFiniteError as error:
                    if not self.processes.is_first:
                        raise
                    left = what_is_left(self.folder, lambda: start_weights(self.algorithm.policy, self.trainer.seed))
                    raise NotFiniteError(f"{error}; {left}") from error
            seconds = time.perf_counter() - started
            policy = self.policy
            if any(map(is_sharded, self.parameters.values())):
                policy = whole_copy(policy, self.algorithm.policy, self.trainer.seed, self.processes)
            return self.processes.of_first(lambda: self._finish(policy, seconds))

    def _say_how(self) -> None:
        """Says, and records in ``run.json``, how sharded weights are put together for rollouts."""
        parts = self.policy.parts
        if parts is None:
            self.observer.on_message("Trainer.sharding has no effect in one process, which holds all weights")
            return
        how = "blocks" if parts.in_blocks else "whole"
        self.observer.on_message(
            f"Trainer.rollout_weights = {self.trainer.rollout_weights!r}: rollouts and evaluations put "
            f"{'one block together at a time' if parts.in_blocks else 'all weights together in every process'}"
        )
        self.processes.of_first(lambda: note_parts(self.folder, how))

    def _go_on(self, ending: Ending) -> None:
        """Takes the updates that are left.

        Raises:
            StoppedError: SIGTERM has come; there is a checkpoint of what was done.
        """
        self.loggers.log_file(self.first, self.folder / RECIPE)
        if self.processes.is_first:
            self.record.open(self.first)
        if 0 not in self.evaluations:
            self._evaluate(0)
        for number in range(self.first, self.trainer.updates):
            ending.beat(f"update {number}" if number else "the first evaluation")
            if ending.all_asked():
                self._stop(number)
            self.step(number)
        ending.beat(f"update {self.trainer.updates}")

    def _stop(self, done: int) -> NoReturn:
        if done > self.first:
            self._save(done)
        raise StoppedError(
            f"stopped by SIGTERM with {done} of {self.trainer.updates} updates done; go on with: dlmrl train --resume "
            f"{self.folder}"
        )

    def restore(self) -> int:
        """Takes over the newest checkpoint and the evaluations up to it; returns the next update.

        Raises:
            CheckpointError: the checkpoint or the evaluations are damaged, or it has more updates than the run is to
                have.
        """
        found, entries = self.processes.of_first(self._stored)
        if found and found[-1][0] > self.trainer.updates:
            raise CheckpointError(
                f"{found[-1][1]} is of more updates than Trainer.updates = {self.trainer.updates}; set that to "
                f"{found[-1][0]} or more"
            )
        if found:
            update = self.update
            self.first, counters = load_checkpoint(found[-1][1], self.parameters, update.optimiser, update.scheduler)
            self.update.restore(counters, load_rollouts(found[-1][1]))
        self.evaluations = {update: result for update, result in entries.items() if update <= self.first}
        if self.best is not None:
            self.best.restore(self.first)
        if self.first and 0 not in self.evaluations:
            stored = self.folder / EVALUATIONS
            raise CheckpointError(f"{stored} is missing or lost the evaluation before training; start a new run")
        return self.first

    def _stored(self) -> tuple[list[tuple[int, Path]], dict[int, EvalResult]]:
        """Clears up, and returns the checkpoints and the evaluations that the folder holds."""
        prune(self.folder)
        path, entries = self.folder / EVALUATIONS, dict[int, EvalResult]()
        if path.is_file():
            entries = read_evaluations(path)
        return checkpoints(self.folder), entries

    def _info(self) -> dict[str, int | str]:
        return {
            "parameters": self.policy.num_parameters,
            "trainable": sum(p.numel() for _, p in self.policy.trainable()),
            "device": str(self.policy.device),
            "samples_per_update": self.trainer.prompts_per_update * self.trainer.group_size,
            "train_examples": self.algorithm.task.size("train"),
            "heldout_examples": self.algorithm.task.size("heldout"),
        }

    def step(self, number: int) -> None:
        """Takes one update and logs its metrics; evaluates and saves a checkpoint if these are due.

        Raises:
            NotFiniteError: losses, gradients, weights or the policy's probabilities are not finite.
        """
        started, computed = time.perf_counter(), time.process_time()
        self.work.clear()
        metrics = self.update(number) | self.work.metrics(self.processes)
        self._check_numbers(number, metrics)
        seconds = time.perf_counter() - started
        self.record.take(number, self.update.take_rollout(), self.update.scorer, self.update.by_step)
        # Other load on the machine makes the clock's seconds more, not those of the CPU.
        spent = sum(self.processes.gather(time.process_time() - computed))
        metrics |= {"seconds": seconds, "cpu_seconds": spent, "tokens_per_second": metrics.pop("tokens") / seconds}
        self._log(number, metrics)
        done = number + 1
        if done == self.trainer.updates or (self.trainer.eval_every and done % self.trainer.eval_every == 0):
            self._evaluate(done)
        if done == self.trainer.updates or done % self.trainer.checkpoint_every == 0:
            self._save(done)

    def _check_numbers(self, number: int, metrics: dict[str, float]) -> None:
        """Refuses to go on, to evaluate or to save where an update has left no policy behind."""
        advice = "lower Trainer.learning_rate or Trainer.max_grad_norm"
        require_finite(self.parameters.items(), f"after update {number + 1} ({advice})")
        if math.isnan(metrics.get("entropy", 0.0)):
            raise NotFiniteError(f"in update {number + 1} the policy's probabilities are not finite: {advice}")

    def _save(self, done: int) -> None:
        update = self.update
        state = (self.parameters, update.optimiser, update.scheduler, update.counters())
        self.processes.of_first(lambda: require(self.folder))
        save_checkpoint(self.folder, done, *state, self.identity, self.processes, update.rollouts_ahead())

    def _evaluate(self, done: int) -> None:
        result = self._answers("heldout", self.trainer.eval_size)
        chosen_on = self._answers(SPLIT, self.trainer.validation_size) if self.best is not None else None
        self.evaluations[done] = result
        with self.policy.whole(), self.policy.in_step():  # for the traces, which the first process makes alone
            if self.processes.is_first:
                self._note_evaluation(done, result, chosen_on)

    def _answers(self, split: str, size: int) -> EvalResult:
        trainer, algorithm = self.trainer, self.algorithm
        return evaluate(
            self.policy,
            algorithm.sampler,
            algorithm.task,
            split=split,
            size=size,
            temperature=trainer.eval_temperature,
            seed=trainer.seed,
            batch_size=trainer.eval_batch_size,
            precision=trainer.precision,
            processes=self.processes,
        )

    def _note_evaluation(self, done: int, result: EvalResult, chosen_on: EvalResult | None) -> None:
        require(self.folder)
        # Log, then store: a run killed in between evaluates again. The other way round the log would miss a result.
        self.loggers.log(done, {"eval/accuracy": result.accuracy, "eval/reward": result.reward})
        if self.best is not None and chosen_on is not None:
            found = {"eval/validation/accuracy": chosen_on.accuracy, "eval/validation/reward": chosen_on.reward}
            self.loggers.log(done, found)
            self.best.note(done, chosen_on, safe=max((updates for updates, _ in checkpoints(self.folder)), default=0))
        self.loggers.log_evaluation(done, result)
        write_evaluations(self.folder / EVALUATIONS, self.evaluations)
        self._trace(done)
        self.observer.on_eval(done, result)

    def _trace(self, done: int) -> None:
        """Writes the page that shows how the first examples of the evaluation are decoded."""
        if self.trainer.traced_examples == 0:
            return
        name = f"after {done} update{'s' if done > 1 else ''}" if done else "before training"
        shown = min(self.trainer.traced_examples, self.trainer.eval_size)
        decoder = self.algorithm.sampler.at_temperature(self.trainer.eval_temperature)
        task, seed = self.algorithm.task, evaluation_seed(self.trainer.seed)
        with autocast(self.policy, self.trainer.precision):
            traces = trace_examples(self.policy, decoder, task, shown, name=name, seed=seed)
        write_trajectories(self.folder, self.name, done, traces)
        self.loggers.log_file(done, self.folder / PAGE)

    def _log(self, update: int, metrics: dict[str, float]) -> None:
        if self.processes.is_first:
            require(self.folder)
        self.record.write()
        self.observer.on_update(update, metrics)
        self.loggers.log(update, metrics)
        self.observer.on_samples(update, self.record.samples)

    def _draw(self) -> None:
        """Draws the figures, and hands them and the completions to the loggers."""
        if self.processes.is_first:
            drawn = draw_at_the_end(self.folder, everything=self.loggers.has_trackers)
            for path in (*drawn, self.folder / COMPLETIONS):
                self.loggers.log_file(self.trainer.updates, path)

    def _finish(self, policy: TransformersPolicy, seconds: float) -> RunResult:
        """Writes what the run leaves, and reports it; of a run that had nothing left to train the seconds stay."""
        trained = self.first < self.trainer.updates
        result = write_results(
            self.algorithm,
            policy,
            folder=self.folder,
            name=self.name,
            evaluations=self.evaluations,
            best=self.best,
            skipped=self.update.skipped,
            seconds=seconds if trained else seconds_of(self.folder, seconds),
            say=self.observer.on_message,
        )
        self.observer.on_end(result)
        return result
