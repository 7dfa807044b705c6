"""What a finished run leaves in its folder: its model, the best one where it chose one, ``result.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.results import EvalResult, RunResult
from dlmrl_kit.core.run_folder import RESULT, read_json
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.training.best_model import BestModel
from dlmrl_kit.training.export import BEST, MODEL, export


def seconds_of(folder: Path, seconds: float) -> float:
    """Returns how long the run took by its ``result.json``; ``seconds`` where there is none."""
    stored = folder / RESULT
    if not stored.is_file():
        return seconds
    return read_json(stored, lambda data: float(data["seconds"]), "remove it, and resume the run again")


def write_results(
    algorithm: Algorithm,
    policy: TransformersPolicy,
    *,
    folder: Path,
    name: str,
    evaluations: Mapping[int, EvalResult],
    best: BestModel | None,
    skipped: int,
    seconds: float,
    say: Callable[[str], None],
) -> RunResult:
    """Writes the model and, last of all, ``result.json``: a run that has it is complete.

    Args:
        algorithm: that was trained.
        policy: with all weights; those of the best model are loaded into it at the end, where there is one.
        folder: the run folder.
        name: of the recipe.
        evaluations: by the updates that were done.
        best: chooses the best model; None: none is chosen.
        skipped: optimiser steps that were left out.
        seconds: that the run took.
        say: is called with what the user should read.
    """
    result = RunResult(
        folder=folder,
        before=evaluations[0],
        after=evaluations[max(evaluations)],
        updates=algorithm.trainer.updates,
        seconds=seconds,
        model=folder / MODEL,
        skipped=skipped,
    )
    parts = algorithm.task, algorithm.sampler, algorithm.components
    export(policy, result, name, *parts)
    summary = {
        "recipe": name,
        "updates": result.updates,
        "seconds": seconds,
        "skipped": result.skipped,
        "before": result.before.to_json(),
        "after": result.after.to_json(),
    }
    if best is not None and (chosen := best.best) is not None:
        best.load(chosen)
        after = evaluations[chosen.updates]
        export(policy, replace(result, after=after, updates=chosen.updates), name, *parts, prefix=BEST)
        summary["best"] = {"updates": chosen.updates, "validation": chosen.result.to_json(), "heldout": after.to_json()}
        say(f"{chosen}; held-out {after.accuracy:.1%}: {folder / (BEST + MODEL)}")
    write_atomic(folder / RESULT, json.dumps(summary, indent=1))
    return result
