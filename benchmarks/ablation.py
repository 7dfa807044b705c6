"""What a run of an ablation costs besides its training: fresh processes against forks of one that has imported all.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py

Does the runs of one tiny ablation both ways, in turn, and prints CPU seconds of all processes per run. The metrics of
both ways must be the same, bit for bit, or the script fails.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path
from unittest import mock

from dlmrl_kit.experiments import ablate, make_design, runs
from dlmrl_kit.experiments.run_processes import Launcher
from dlmrl_kit.report.run_console import LogRunObserver

SETS = (
    *("Trainer.prompts_per_update=2", "Trainer.group_size=3", "Trainer.updates=1", "Trainer.eval_size=4"),
    *("Sampler.tokens_per_step=4", "Sudoku4x4.num_train=8", "Sudoku4x4.num_heldout=4"),
)


def cpu_seconds() -> float:
    """CPU seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def once(recipe: str, seeds: int, folder: Path) -> float:
    """Does the ablation; returns CPU seconds per run."""
    design = make_design(recipe, ["selector=UniformSteps"], seeds=seeds, sets=SETS)
    before = cpu_seconds()
    ablate(design, folder, parallel=1, run_observer=LogRunObserver)
    return (cpu_seconds() - before) / (2 * seeds)


def main() -> None:
    """Prints CPU seconds per run, both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="egspo", help="base of the ablation")
    parser.add_argument("--seeds", type=int, default=3, help="of each of the two variants")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        forked, fresh = Path(name, "forked"), Path(name, "fresh")
        print(f"forks:           {once(chosen.recipe, chosen.seeds, forked):5.2f} CPU seconds per run")
        with mock.patch.object(runs, "new_launcher", lambda threads, *_, **__: Launcher(threads)):
            print(f"fresh processes: {once(chosen.recipe, chosen.seeds, fresh):5.2f} CPU seconds per run")
        if (forked / "results.csv").read_bytes() != (fresh / "results.csv").read_bytes():
            raise SystemExit("the two ways have other metrics")


if __name__ == "__main__":
    main()
