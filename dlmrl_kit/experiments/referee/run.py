"""Runs a comparison in one folder, from its specification to its tables; the same command goes on after a stop.

First each combination of settings is trained with the seeds for tuning. The combination with the highest mean accuracy
on validation examples, of the best model of each run, is then trained with the seeds that are reported.

What a run came to is written as CSV as soon as it ends. A run that stands there is not done again, even where its run
folder is gone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.core.run_folder import one_writer
from dlmrl_kit.experiments.folder import Manifest, check_folder, check_run, open_folder, runs_at_once
from dlmrl_kit.experiments.referee.audits import audit_recipes
from dlmrl_kit.experiments.referee.entries import Entry, common, described, make_entries
from dlmrl_kit.experiments.referee.outcomes import Outcome, outcome_of
from dlmrl_kit.experiments.referee.records import RUNS, TUNING, Records
from dlmrl_kit.experiments.referee.report import Report, write_report
from dlmrl_kit.experiments.referee.spec import Claim, Spec, label_of
from dlmrl_kit.experiments.runs import AblationObserver, Job, Scheduler, jobs_of
from dlmrl_kit.experiments.weights import Keep, remove_weights

HOLDS = Manifest("comparison.json", "comparison", common)


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
    keep: Keep = "all",
) -> tuple[Report, list[Job]]:
    """Does the runs that are not finished yet, then writes tables and figures.

    Args:
        spec: of the comparison.
        folder: is created, or belongs to the same comparison, of possibly fewer recipes, tasks and seeds. It gets
            ``comparison.json``, ``recipes/``, ``runs/``, ``curves/``, ``runs.csv``, ``tuning.csv``, ``table.*`` and
            figures.
        parallel, run_observer: as ``ablate``.
        observer: is told how the runs go.
        keep: what stays of the weights of a run once its row is written.

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
        runner = _Runner(spec, entries, folder, parallel, observer, run_observer, keep)
        runner.measure(runner.tune())
        if spec.audit:
            audit_recipes(spec, folder)
        return write_report(folder, label_of(spec.base), spec.forwards, spec.claims), runner.failed


def stored_question(folder: Path) -> tuple[str, int, tuple[Claim, ...]]:
    """Returns base, budget and claims of the comparison that a folder holds, from its ``comparison.json``.

    Raises:
        UserError: it holds none.
    """
    design = HOLDS.required(folder)["design"]
    asked, claims = design["comparison"], tuple(Claim(**claim) for claim in design.get("claims", ()))
    return label_of(asked["base"]), int(asked["forwards"]), claims


class _Runner:
    def __init__(
        self,
        spec: Spec,
        entries: Sequence[Entry],
        folder: Path,
        parallel: int | None,
        observer: CompareObserver,
        run_observer: type[RunObserver],
        keep: Keep,
    ) -> None:
        self.spec, self.entries, self.folder, self.observer = spec, entries, folder, observer
        self.variants = [variant for entry in entries for variant in entry.variants]
        runs = len(entries) * spec.seeds
        threads = open_folder(folder, HOLDS, described(spec, list(entries), folder), self.variants, runs, parallel)
        self.parallel = parallel or runs_at_once(self.variants, runs, threads)
        self.threads, self.run_observer, self.keep = threads, run_observer, keep
        self.failed: list[Job] = []

    def tune(self) -> list[int]:
        """Trains all combinations of settings; returns for each entry the number of the best one."""
        if not self.spec.grid:
            return [0] * len(self.entries)
        seeds = self.spec.all_seeds[self.spec.seeds :]
        tuned = {
            variant.name: (entry, point)
            for entry in self.entries
            for point, variant in enumerate(entry.variants if len(entry.variants) > 1 else ())
        }
        found = self._run(tuned, seeds, TUNING)
        chosen = []
        for entry in self.entries:
            scores = []
            for variant in entry.variants if len(entry.variants) > 1 else ():
                runs = [found[variant.name, seed] for seed in seeds]
                scores.append(math.fsum(map(_validation, runs)) / len(runs))
            best = max(range(len(scores)), key=lambda point: (scores[point], -point), default=0)
            if scores:
                self.observer.on_tuned(entry, best, scores)
            chosen.append(best)
        return chosen

    def measure(self, chosen: Sequence[int]) -> None:
        """Trains each entry as chosen, with the seeds that are reported."""
        places = zip(self.entries, chosen, strict=True)
        self._run({entry.variants[point].name: (entry, point) for entry, point in places}, range(self.spec.seeds), RUNS)

    def _run(
        self, places: Mapping[str, tuple[Entry, int]], seeds: Sequence[int], table: str
    ) -> dict[tuple[str, int], Outcome]:
        """Does the runs of some variants that are not in a table yet; each gets its row as soon as it ends.

        Args:
            places: by the name of a variant, its entry, and its number there.
            seeds: of each.
            table: ``RUNS`` or ``TUNING``.

        Returns:
            What they came to, by the variant's name and the seed.
        """
        records, found = Records(self.folder, table), dict[tuple[str, int], Outcome]()

        def ended(job: Job) -> None:
            outcome = found[job.variant.name, job.seed] = outcome_of(*places[job.variant.name], job, self.folder)
            records.add(outcome)
            clear(job)

        def clear(job: Job) -> None:
            if job.status == "finished":
                remove_weights(job.folder, self.keep)

        jobs = jobs_of([entry.variants[point] for entry, point in places.values()], seeds, self.folder)
        for job in jobs:
            known = records.finished(job)
            if known is not None:
                job.status, job.done = "finished", job.variant.updates
                found[job.variant.name, job.seed] = known
                clear(job)
                continue
            check_run(job)
            if job.status == "finished":
                ended(job)
        self.observer.on_start(jobs, self.parallel, self.threads)
        where = (self.folder, self.parallel, self.threads)
        Scheduler(*where, self.observer, self.run_observer, self.spec.allow_imports, ended).run(jobs)
        self.failed += [job for job in jobs if job.status == "failed"]
        records.arrange(found[name, seed].run for name in places for seed in seeds)
        return found


def _validation(outcome: Outcome) -> float:
    """Returns the validation accuracy of a run's best model; 0 for a run that failed before there was one."""
    return max((point.validation or 0.0 for point in outcome.curve[1:]), default=0.0)
