"""Runs a comparison in one folder, from its specification to its tables; the same command goes on after a stop.

First each combination of settings is trained with the seeds for tuning. The combination with the highest mean accuracy
on validation examples, of the best model of each run, is then trained with the seeds that are reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.core.run_folder import one_writer
from dlmrl_kit.experiments.folder import Manifest, check_folder, check_run, open_folder, runs_at_once
from dlmrl_kit.experiments.referee.audits import audit_recipes
from dlmrl_kit.experiments.referee.entries import Entry, described, label_of, make_entries
from dlmrl_kit.experiments.referee.outcomes import Outcome, outcome_of, write_outcomes
from dlmrl_kit.experiments.referee.report import Report, write_report
from dlmrl_kit.experiments.referee.spec import Spec
from dlmrl_kit.experiments.runs import AblationObserver, Job, Scheduler, jobs_of

HOLDS = Manifest("comparison.json", "comparison")


class CompareObserver(AblationObserver):
    """Receives the reports of a comparison; this base class ignores them."""

    def on_plan(self, spec: Spec, entries: Sequence[Entry]) -> None:
        """Called when all recipes are built."""

    def on_tuned(self, entry: Entry, point: int, scores: Sequence[float]) -> None:
        """Called when the settings of an entry are chosen, with the validation accuracies of all of them."""


def compare(
    spec: Spec,
    folder: Path,
    *,
    parallel: int | None = None,
    observer: CompareObserver | None = None,
    run_observer: type[RunObserver] = RunObserver,
) -> tuple[Report, list[Job]]:
    """Does the runs that are not finished yet, then writes tables and figures.

    Args:
        spec: of the comparison.
        folder: is created, or belongs to the same comparison. It gets ``comparison.json``, ``recipes/``, ``runs/``,
            ``curves/``, ``runs.csv``, ``tuning.csv``, ``table.*`` and figures.
        parallel, run_observer: as ``ablate``.
        observer: is told how the runs go.

    Returns:
        The results, and the runs that failed. One of tuning that failed before its first evaluation counts as 0.

    Raises:
        UserError: as ``make_entries``; or ``folder`` holds something else, or another process is working on it.
    """
    observer = observer or CompareObserver()
    check_folder(folder, HOLDS)
    with one_writer(folder):
        stored = HOLDS.stored(folder)
        entries = make_entries(spec, stored["design"].get("forwards", {}) if stored else {})
        observer.on_plan(spec, entries)
        runner = _Runner(spec, entries, folder, parallel, observer, run_observer)
        outcomes = runner.measure(runner.tune())
        write_outcomes(outcomes, folder)
        if spec.audit:
            audit_recipes(spec, folder)
        return write_report(folder, label_of(spec.base), spec.forwards), runner.failed


def stored_question(folder: Path) -> tuple[str, int]:
    """Returns the base and the budget of the comparison that a folder holds, from its ``comparison.json``.

    Raises:
        UserError: it holds none.
    """
    stored = HOLDS.stored(folder)
    if stored is None:
        raise UserError(f"{folder} holds no comparison ({HOLDS.file} is missing)")
    asked = stored["design"]["comparison"]
    return label_of(asked["base"]), int(asked["forwards"])


class _Runner:
    def __init__(
        self,
        spec: Spec,
        entries: Sequence[Entry],
        folder: Path,
        parallel: int | None,
        observer: CompareObserver,
        run_observer: type[RunObserver],
    ) -> None:
        self.spec, self.entries, self.folder, self.observer = spec, entries, folder, observer
        self.variants = [variant for entry in entries for variant in entry.variants]
        runs = len(entries) * spec.seeds
        threads = open_folder(folder, HOLDS, described(spec, list(entries)), self.variants, runs, parallel)
        self.parallel = parallel or runs_at_once(self.variants, runs, threads)
        self.threads, self.run_observer = threads, run_observer
        self.failed: list[Job] = []

    def tune(self) -> list[int]:
        """Trains all combinations of settings; returns for each entry the number of the best one."""
        if not self.spec.grid:
            return [0] * len(self.entries)
        seeds = self.spec.all_seeds[self.spec.seeds :]
        tuned = [variant for entry in self.entries for variant in entry.variants if len(entry.variants) > 1]
        jobs = self._run(jobs_of(tuned, seeds, self.folder))
        found = {(job.variant.name, job.seed): job for job in jobs}
        chosen = []
        for entry in self.entries:
            scores = []
            for point, variant in enumerate(entry.variants if len(entry.variants) > 1 else ()):
                runs = [outcome_of(entry, point, found[variant.name, seed]) for seed in seeds]
                scores.append(math.fsum(map(_validation, runs)) / len(runs))
            best = max(range(len(scores)), key=lambda point: (scores[point], -point), default=0)
            if scores:
                self.observer.on_tuned(entry, best, scores)
            chosen.append(best)
        return chosen

    def measure(self, chosen: Sequence[int]) -> list[Outcome]:
        """Trains each entry as chosen, with the seeds that are reported."""
        variants = [entry.variants[point] for entry, point in zip(self.entries, chosen, strict=True)]
        jobs = self._run(jobs_of(variants, range(self.spec.seeds), self.folder))
        found = {(job.variant.name, job.seed): job for job in jobs}
        return [
            outcome_of(entry, point, found[entry.variants[point].name, seed])
            for entry, point in zip(self.entries, chosen, strict=True)
            for seed in range(self.spec.seeds)
        ]

    def _run(self, jobs: list[Job]) -> list[Job]:
        for job in jobs:
            check_run(job)
        self.observer.on_start(jobs, self.parallel, self.threads)
        where = (self.folder, self.parallel, self.threads)
        Scheduler(*where, self.observer, self.run_observer, self.spec.allow_imports).run(jobs)
        self.failed += [job for job in jobs if job.status == "failed"]
        return jobs


def _validation(outcome: Outcome) -> float:
    """Returns the validation accuracy of a run's best model; 0 for a run that failed before there was one."""
    return max((point.validation or 0.0 for point in outcome.curve[1:]), default=0.0)
