"""Runs an ablation from its design to its tables, in one folder; the same command goes on after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dlmrl_kit.core.errors import CheckpointError, UserError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.core.run_folder import one_writer, read_json
from dlmrl_kit.experiments.aggregate import Summary, summarise, write_tables
from dlmrl_kit.experiments.design import Design
from dlmrl_kit.experiments.learning_curves import plot_curves
from dlmrl_kit.experiments.runs import MAX_JOBS, AblationObserver, Job, Scheduler, cores, jobs_of, recipe_file
from dlmrl_kit.recipe.provenance import KEY, provenance_of
from dlmrl_kit.training.identity import Identity, changes, identity_of

MANIFEST = "ablation.json"


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
    _check_folder(folder)
    with one_writer(folder):
        threads = _open(design, folder, parallel)
        jobs = jobs_of(design, folder)
        for job in jobs:
            _check_run(job)
        parallel = parallel or _default_parallel(design, len(jobs), threads)
        observer.on_start(jobs, parallel, threads)
        Scheduler(folder, parallel, threads, observer, run_observer, design.allow_imports).run(jobs)
        summary = summarise(design, jobs)
        write_tables(summary, folder)
        plot_curves(summary, folder)
    return summary


def _check_folder(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"cannot use {folder}: {existing} is no folder that can be written to")
    # Hidden files are the lock, and temporary files of an attempt that was killed before it wrote the manifest.
    used = existing is folder and not all(path.name.startswith(".") for path in folder.iterdir())
    if used and not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not empty and holds no ablation; choose another --out")


def _open(design: Design, folder: Path, parallel: int | None) -> int:
    """Writes the manifest and the recipes, or checks that the manifest is of this design.

    Returns:
        The threads of each run, as many as in earlier attempts: other sums would differ in the last digit.
    """
    path = folder / MANIFEST
    depends = _depends(design)
    if path.is_file():
        stored = _stored(path)
        difference = _difference(stored["design"], design.to_json())
        if difference:
            raise UserError(f"{folder} holds another ablation: {difference}; choose another --out")
        threads, known = stored["threads"], stored["depends"]
        changed = changes(known, depends) if known else []
        if changed:
            raise UserError(
                f"{folder} holds runs of something else: {changed[0]}; undo that, or choose another --out, so that all "
                "runs compare"
            )
    else:
        count = len(design.variants) * len(design.seeds)
        set_by_user = os.environ.get("OMP_NUM_THREADS", "")
        at_once = parallel or min(count, cores(), MAX_JOBS)
        threads = int(set_by_user) if set_by_user.isdigit() else max(1, cores() // at_once)
    origins = provenance_of(block for variant in design.variants for block in variant.recipe.blocks[1:])
    manifest = {"design": design.to_json(), "threads": threads, "depends": depends, KEY: origins}
    write_atomic(path, json.dumps(manifest, indent=1, ensure_ascii=False))
    for variant in design.variants:
        # An edited recipe is written again. The worker also compares what it loads with the design.
        write_atomic(recipe_file(folder, variant), variant.recipe.text())
    return threads


def _depends(design: Design) -> Identity:
    """Returns files, data and packages that variants depend on; settings and the kit are compared elsewhere."""
    found: Identity = {"files": {}, "data": {}, "packages": {}}
    for variant in design.variants:
        own = identity_of(variant.recipe, variant.recipe.build_algorithm(), torch.device("cpu"))
        for section, entries in found.items():
            entries |= own[section]
    del found["packages"]["dlmrl_kit"]
    return found


def _stored(path: Path) -> dict[str, Any]:
    def parse(stored: Any) -> dict[str, Any]:
        return {
            "design": dict(stored["design"]),
            "threads": int(stored["threads"]),
            "depends": dict(stored.get("depends", {})),
        }

    return read_json(path, parse, "it is not the design of an ablation; choose another --out")


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Says in what two designs differ first; "" if they are the same."""
    for key in ("dlmrl_kit", "recipe", "seeds"):
        if old.get(key) != new[key]:
            return f"{key} was {old.get(key)}, now {new[key]}"
    before, now = old.get("variants", {}), new["variants"]
    for what, names in (
        ("had", [n for n in before if n not in now]),
        ("did not have", [n for n in now if n not in before]),
    ):
        if names:
            return f"it {what} {' and '.join(names)}"
    for name, variant in now.items():
        changed = _changed_lines(before[name]["recipe"], variant["recipe"])
        if changed or before[name] != variant:
            return f"the recipe of {name} was another one{changed}"
    return "" if list(before) == list(now) else "its variants came in another order"


def _changed_lines(old: Iterable[str], new: Iterable[str]) -> str:
    old, new = list(old), list(new)
    lines = [f"was `{line}`" for line in old if line not in new] + [f"now `{line}`" for line in new if line not in old]
    return f" ({', '.join(lines[:2])})" if lines else ""


def _check_run(job: Job) -> None:
    path = job.folder / "recipe.gin"
    started, finished = path.is_file(), job.status == "finished"
    same = started and path.read_text(encoding="utf-8", errors="replace").endswith(job.variant.texts[job.seed])
    if not same and (started or finished):
        raise CheckpointError(f"{job.folder} holds a run of another recipe; move it away to have it run again")


def _default_parallel(design: Design, runs: int, threads: int) -> int:
    if _uses_gpu(design):
        return 1
    return min(runs, max(1, cores() // threads), MAX_JOBS)


def _uses_gpu(design: Design) -> bool:
    trainers = [v.recipe.bindings.get(f"{v.seed_key.rpartition('.')[0]}.device") for v in design.variants]
    wanted = {str(bound.value) for bound in trainers if bound is not None}
    return torch.cuda.is_available() and wanted != {"cpu"}
