"""Does the runs of an experiment, each in a process of its own and several at a time.

A killed run can be resumed, and a failed one does not stop the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from dlmrl_kit.core.errors import FileError
from dlmrl_kit.core.files import reason_of, write_atomic
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.core.run_folder import RESULT, read_json
from dlmrl_kit.experiments.design import Variant
from dlmrl_kit.experiments.run_processes import Launcher, RunProcess, new_launcher
from dlmrl_kit.loggers.metrics_csv import FILE as METRICS

RUNS, RECIPES = "runs", "recipes"
LOG, FAILURE = "log.txt", "failed.json"
MAX_JOBS = 8
"""The most runs at a time, unless the user asks for more."""

Status = Literal["waiting", "running", "finished", "failed"]

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 10.0


@dataclass
class Job:
    """One run of an ablation or a comparison.

    Attributes:
        name: such as ``"selector-UniformSteps/seed-0"``.
        variant, seed: what is run.
        folder: the run folder.
        status: how far it is.
        done: updates that are done, as far as is known.
        error: says why it failed; "" if it did not.
    """

    name: str
    variant: Variant
    seed: int
    folder: Path
    status: Status = "waiting"
    done: int = 0
    error: str = ""

    @property
    def log(self) -> Path:
        """The file with everything that the run printed, over all attempts."""
        return self.folder / LOG

    def result(self) -> dict[str, Any]:
        """Reads the ``result.json`` of a finished run."""
        path = self.folder / RESULT
        return read_json(
            path, lambda data: {str(k): v for k, v in data.items()}, f"remove {path} to finish the run again"
        )


class AblationObserver:
    """Receives the reports of an ablation; this base class ignores them. Subclasses override the methods they need."""

    def on_start(self, jobs: list[Job], parallel: int, threads: int) -> None:
        """Called when the runs begin.

        Args:
            jobs: all runs; some may be finished already.
            parallel: how many runs go on at a time.
            threads: of each run.
        """

    def on_status(self, job: Job) -> None:
        """Called when a run has started, finished or failed."""

    def on_progress(self, job: Job) -> None:
        """Called when a run has done more updates."""

    def on_end(self) -> None:
        """Called when nothing runs any more, also after an interrupt."""


def jobs_of(variants: Iterable[Variant], seeds: Iterable[int], folder: Path) -> list[Job]:
    """Lists the runs of variants, those of the first seed first; marks those that are finished already."""
    jobs, variants = [], list(variants)
    for seed in seeds:
        for variant in variants:
            name = f"{variant.folder}/seed-{seed}"
            job = Job(name, variant, seed, folder / RUNS / variant.folder / f"seed-{seed}")
            if (job.folder / RESULT).is_file():
                job.status, job.done = "finished", variant.updates
            jobs.append(job)
    return jobs


def recipe_file(folder: Path, variant: Variant) -> Path:
    """Returns the path of a variant's resolved recipe, which has the first seed."""
    return folder / RECIPES / f"{variant.folder}.gin"


def cores() -> int:
    """Returns how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def uses_gpu(variants: Iterable[Variant]) -> bool:
    """Returns whether a run of one of the variants may use a GPU."""
    trainers = [v.recipe.bindings.get(f"{v.seed_key.rpartition('.')[0]}.device") for v in variants]
    wanted = {str(bound.value) for bound in trainers if bound is not None}
    return torch.cuda.is_available() and wanted != {"cpu"}


@dataclass
class Scheduler:
    """Does the runs that are not finished.

    Args:
        folder: of the experiment.
        parallel: runs at a time.
        threads: of each run.
        observer: is told how the runs go.
        run_observer: class that each run reports to in its own process.
        allow_imports: whether recipes may run import statements.
        ended: is called with each run that has finished or failed, before the observer.
    """

    folder: Path
    parallel: int
    threads: int
    observer: AblationObserver
    run_observer: type[RunObserver] = RunObserver
    allow_imports: bool = False
    ended: Callable[[Job], None] = lambda job: None
    _running: list[tuple[Job, RunProcess]] = field(default_factory=list)

    def run(self, jobs: Iterable[Job]) -> None:
        """Does the runs; returns when all are finished or failed. An exception, such as an interrupt, stops them."""
        waiting = [job for job in jobs if job.status != "finished"]
        forks = len(waiting) > 1 and not uses_gpu(job.variant for job in waiting)
        with contextlib.ExitStack() as stack:
            stack.callback(self.observer.on_end)
            launcher = new_launcher(self.threads, self.run_observer.__module__, forks=forks)
            stack.callback(launcher.close)
            stack.callback(self._stop)
            while waiting or self._running:
                while waiting and len(self._running) < self.parallel:
                    self._start(waiting.pop(0), launcher)
                time.sleep(_POLL_SECONDS)
                self._look()

    def _start(self, job: Job, launcher: Launcher) -> None:
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / FAILURE).unlink(missing_ok=True)
            job.log.touch()
        except OSError as error:
            raise FileError(f"cannot write in {job.folder}: {reason_of(error)}") from error
        task = {
            "path": [str(entry) for entry in sys.path],
            "recipe": str(recipe_file(self.folder, job.variant)),
            "folder": str(job.folder),
            "seed": f"{job.variant.seed_key}={job.seed}",
            "text": job.variant.texts[job.seed],
            "allow_imports": self.allow_imports,
            "observer": f"{self.run_observer.__module__}:{self.run_observer.__qualname__}",
        }
        self._running.append((job, launcher.launch(task, job.log)))
        job.status = "running"
        self.observer.on_status(job)

    def _look(self) -> None:
        """Looks how many updates the runs have done, and which have ended; reports what is new."""
        for job, process in list(self._running):
            code = process.poll()
            if code is None:
                done = updates_done(job.folder)
                if done > job.done:
                    job.done = done
                    self.observer.on_progress(job)
                continue
            self._running.remove((job, process))
            process.close()
            if (job.folder / RESULT).is_file():
                job.status, job.done = "finished", job.variant.updates
            else:
                job.status, job.error = "failed", _failure(job, code)
            self.ended(job)
            self.observer.on_status(job)

    def _stop(self) -> None:
        for _, process in self._running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for job, process in self._running:
            if not process.ends(deadline - time.monotonic()):
                process.send_signal(signal.SIGKILL)
                process.ends(_PATIENCE_SECONDS)
            process.close()
            job.status = "waiting"
        self._running.clear()


def updates_done(folder: Path) -> int:
    """Reads how many updates a run has logged so far, from the end of its ``metrics.csv``."""
    try:
        with (folder / METRICS).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().split(b"\n")[1:-1]
    except OSError:
        return 0
    return max((_updates_of(line) for line in lines), default=0)


def _updates_of(line: bytes) -> int:
    update, _, rest = line.partition(b",")
    # Metrics at u are logged when u + 1 updates are done, an evaluation at u when u are done.
    return (int(update) + (not rest.startswith(b"eval/"))) if update.isdigit() else 0


def _failure(job: Job, code: int) -> str:
    """Says why a run failed, by what the worker wrote or how its process ended; writes that to the run folder."""
    path = job.folder / FAILURE
    if path.is_file():
        return read_json(path, lambda data: str(data["error"]))
    error = f"the process ended with exit code {code}" if code >= 0 else f"the process was killed by {_signal(-code)}"
    write_atomic(path, json.dumps({"error": error}))
    return error


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
