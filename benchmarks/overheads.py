"""What commands cost besides the algorithm: CPU seconds of the first update, of evaluation, of a comparison's start.

    OMP_NUM_THREADS=1 python benchmarks/overheads.py --out results

Each command in a process of its own, as a user starts it, with the recipe that is shipped. An audit is of the recipe
alone, or of all recipes in one process; a comparison starts when every recipe is built for every task and setting
(``benchmarks/referee/referee.toml``: 16 recipes, 3 tasks, 3 learning rates, 6 seeds, forwards known).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from common import report

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ("train", "egspo_sa", "--set", "Trainer.updates=1")

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "help": ("--help",),
    "one update, no evaluation to speak of": (*TRAIN, "--set", "Trainer.eval_size=1", "--out", "{out}"),
    "one update": (*TRAIN, "--out", "{out}"),
    "audit of one recipe": ("audit", "egspo_sa"),
}
"""Commands of ``dlmrl``; ``{out}`` is a new folder."""


def comparison() -> float:
    """Builds what a comparison runs; returns CPU seconds, imports left out."""
    from dlmrl_kit.experiments.referee.entries import make_entries
    from dlmrl_kit.experiments.referee.spec_file import read_spec
    from dlmrl_kit.recipe.catalogue import components

    os.chdir(ROOT)
    spec = read_spec(Path("benchmarks/referee/referee.toml"))
    counts = {f"{task.name}/{algorithm.name}": 400.0 for task in spec.tasks for algorithm in spec.algorithms}
    components()
    started = time.process_time()
    make_entries(spec, counts)
    return time.process_time() - started


def audits() -> float:
    """Audits every recipe for training that is shipped; returns CPU seconds, imports left out."""
    from dlmrl_kit.audit.auditing import audit_recipe
    from dlmrl_kit.recipe.load import load_recipe, recipe_names

    load_recipe("egspo_sa")
    started = time.process_time()
    for name in recipe_names():
        if load_recipe(name).root == "Algorithm":
            audit_recipe(name)
    return time.process_time() - started


PARTS = {"start of a comparison": comparison, "audits of all recipes": audits}


def cpu_seconds(command: tuple[str, ...]) -> float:
    """Runs a command of ``dlmrl`` and returns its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        words = [word.format(out=Path(folder, "run")) for word in command]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "dlmrl_kit", *words], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(name: str) -> float:
    """Measures a command, or a part in a process of its own."""
    if name in COMMANDS:
        return cpu_seconds(COMMANDS[name])
    command = [sys.executable, __file__, "--part", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


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
        print(PARTS[given.part]())
        return
    rows = [
        {"what": name, "CPU seconds": statistics.median(measured(name) for _ in range(given.repeats))}
        for name in given.only or names
    ]
    report("overheads", given.out, rows)


if __name__ == "__main__":
    main()
