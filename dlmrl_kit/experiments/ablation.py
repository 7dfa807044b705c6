"""Runs an ablation from its design to its tables, in one folder; the same command goes on after an interruption."""

from __future__ import annotations

from pathlib import Path

from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.core.run_folder import one_writer
from dlmrl_kit.experiments.aggregate import Summary, summarise, write_tables
from dlmrl_kit.experiments.design import Design
from dlmrl_kit.experiments.folder import Manifest, check_folder, check_run, open_folder, runs_at_once
from dlmrl_kit.experiments.learning_curves import plot_curves
from dlmrl_kit.experiments.runs import AblationObserver, Scheduler, jobs_of

HOLDS = Manifest("ablation.json", "ablation")


def ablate(
    design: Design,
    folder: Path,
    *,
    parallel: int | None = None,
    observer: AblationObserver | None = None,
    run_observer: type[RunObserver] = RunObserver,
) -> Summary:
    """Does the runs that are not finished yet, then writes tables and plot.

    Args:
        design: from ``make_design``.
        folder: is created, or belongs to the same ablation. It gets ``ablation.json``, ``recipes/``, ``runs/``,
            ``results.csv``, ``summary.csv``, ``summary.json`` and ``curves.png``.
        parallel: runs at a time; default: one per core, at most 8, but one if they would share a GPU.
        observer: is told how the runs go.
        run_observer: class that each run reports to in its own process, in which it must be importable. It is built
            without arguments, and what it prints goes to the run's ``log.txt``.

    Returns:
        The results, which list failed runs, too.

    Raises:
        UserError: ``folder`` holds something else, or another process is working on it.
    """
    observer = observer or AblationObserver()
    check_folder(folder, HOLDS)
    with one_writer(folder):
        runs = len(design.variants) * len(design.seeds)
        threads = open_folder(folder, HOLDS, design.to_json(), design.variants, runs, parallel)
        jobs = jobs_of(design.variants, design.seeds, folder)
        for job in jobs:
            check_run(job)
        parallel = parallel or runs_at_once(design.variants, len(jobs), threads)
        observer.on_start(jobs, parallel, threads)
        Scheduler(folder, parallel, threads, observer, run_observer, design.allow_imports).run(jobs)
        summary = summarise(design, jobs)
        write_tables(summary, folder)
        plot_curves(summary, folder)
    return summary
