"""What commands cost besides the algorithm: the first update, evaluation, checkpoints, audits, a comparison's start.

    OMP_NUM_THREADS=1 python benchmarks/overheads.py --out results

CPU seconds. Each command in a process of its own, as a user starts it, with the recipe that is shipped. An audit is of
the recipe alone, or of all recipes in one process, on one problem and with a tenth of the batches; a checkpoint is of
25 million weights, all of them trained, or of the shipped denoiser's adapter, and its files are counted, too; a
comparison starts when every recipe is built for every task and setting (``benchmarks/referee/referee.toml``: 16
recipes, 3 tasks, 3 learning rates, 6 seeds, forwards known).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from common import report

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ("train", "egspo_sa", "--set", "Trainer.updates=1")

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "help": ("--help",),
    "one update, no evaluation to speak of": (*TRAIN, "--set", "Trainer.eval_size=1", "--out", "{out}"),
    "one update": (*TRAIN, "--out", "{out}"),
    "evaluation of 512 examples": ("eval", "shipped:sudoku4x4"),
    "audit of one recipe": ("audit", "egspo_sa"),
    "audit of one recipe by sampling": ("audit", "wd1", "--problems", "1"),
}
"""Commands of ``dlmrl``; ``{out}`` is a new folder."""


SECONDS, SIZE = "CPU seconds", "MB"

CHECKPOINTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "all weights": {
        "uses": ("policy=CharacterLlama",),
        "sets": ("CharacterLlama.hidden_size=512", "CharacterLlama.num_layers=8"),
    },
    "LoRA": {"sets": ("Pretrained.lora_rank=16", "Pretrained.lora_alpha=16")},
}
"""What is trained where checkpoints are measured: changes of ``egspo_sa``."""


def comparison() -> dict[str, float]:
    """Builds what a comparison runs; imports are left out."""
    from dlmrl_kit.experiments.referee.entries import make_entries
    from dlmrl_kit.experiments.referee.spec_file import read_spec
    from dlmrl_kit.recipe.catalogue import components

    os.chdir(ROOT)
    spec = read_spec(Path("benchmarks/referee/referee.toml"))
    counts = {f"{task.name}/{algorithm.name}": 400.0 for task in spec.tasks for algorithm in spec.algorithms}
    components()
    started = time.process_time()
    make_entries(spec, counts)
    return {SECONDS: time.process_time() - started}


def audits() -> dict[str, float]:
    """Audits every recipe for training that is shipped and has a gradient to audit; imports are left out."""
    from dlmrl_kit.audit import AuditError, audit_recipe
    from dlmrl_kit.recipe.load import load_recipe, recipe_names

    load_recipe("egspo_sa")
    started = time.process_time()
    for name in recipe_names():
        if load_recipe(name).root == "Algorithm":
            with contextlib.suppress(AuditError):  # of a sampler that does not sample from the policy
                audit_recipe(name, problems=1, batches=40)
    return {SECONDS: time.process_time() - started}


def checkpoint(kind: str, load: bool) -> dict[str, float]:
    """Saves a checkpoint, or loads one as a resumed run does; making what it holds is left out."""
    from dlmrl_kit.core.component import trained
    from dlmrl_kit.recipe.load import load_recipe
    from dlmrl_kit.training.checkpoint import identity_in, load_checkpoint, save_checkpoint
    from dlmrl_kit.training.start import start_training

    algorithm = load_recipe("egspo_sa", **CHECKPOINTS[kind]).build_algorithm()
    _, policy, optimiser, scheduler = start_training(algorithm)
    parameters = trained(policy, algorithm.components)
    for parameter in parameters.values():
        parameter.grad = parameter.detach().clone()
    optimiser.step()
    with tempfile.TemporaryDirectory() as name:
        started = time.process_time()
        folder = save_checkpoint(Path(name), 1, parameters, optimiser, scheduler, {})
        saved = time.process_time()
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        if not load:
            return {SECONDS: saved - started, SIZE: size}
        identity_in(folder)
        load_checkpoint(folder, parameters, optimiser, scheduler)
        return {SECONDS: time.process_time() - saved, SIZE: size}


PARTS: Mapping[str, Callable[[], dict[str, float]]] = {
    "start of a comparison": comparison,
    "audits of all recipes": audits,
    **{f"saving a checkpoint, {kind}": functools.partial(checkpoint, kind, False) for kind in CHECKPOINTS},
    **{f"loading a checkpoint, {kind}": functools.partial(checkpoint, kind, True) for kind in CHECKPOINTS},
}


def cpu_seconds(command: tuple[str, ...]) -> float:
    """Runs a command of ``dlmrl`` and returns its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        words = [word.format(out=Path(folder, "run")) for word in command]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "dlmrl_kit", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)  # not this checkout's package
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(name: str) -> dict[str, float]:
    """Measures a command, or a part in a process of its own; returns numbers by column."""
    if name in COMMANDS:
        return {SECONDS: cpu_seconds(COMMANDS[name])}
    command = [sys.executable, __file__, "--part", name]
    found: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    return found


def row(name: str, repeats: int) -> dict[str, str | float]:
    """Measures several times; returns the medians."""
    found = [measured(name) for _ in range(repeats)]
    return {"what": name, **{column: statistics.median(one[column] for one in found) for column in found[0]}}


def main() -> None:
    """See the module docstring."""
    names = [*COMMANDS, *PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(PARTS[given.part]()))
        return
    rows = [row(name, given.repeats) for name in given.only or names]
    report("overheads", given.out, rows)


if __name__ == "__main__":
    main()
