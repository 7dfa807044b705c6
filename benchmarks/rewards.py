"""Time of a training update with a slow scorer: rewards while the model works, and rewards waited for.

    OMP_NUM_THREADS=1 python benchmarks/rewards.py --wait 0 --wait 0.01 --wait 0.05 --out results

EGSPO-SA on 4x4 Sudoku. The scorer waits ``--wait`` seconds per completion, as one does that asks a sandbox or another
process. Wall-clock time, since waiting takes no other; the gain is at most what scoring takes, and at most the time of
sampling and of old and reference log-probabilities.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common import interleaved, report

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.component import rebuilt
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.training.start import start_training
from dlmrl_kit.training.update import Update


class Slow(Sudoku4x4):
    """Waits for every completion that it scores.

    Args:
        wait: seconds per completion.
        main_thread: score where the update waits for it.
    """

    def __init__(self, wait: float, main_thread: bool) -> None:
        super().__init__()
        self.wait = wait
        self.main_thread = main_thread

    def score_many(self, completions: Sequence[str], examples: Sequence[Example]) -> list[dict[str, float]]:
        """Returns the rewards, later."""
        time.sleep(self.wait * len(completions))
        return super().score_many(completions, examples)


def updates(wait: float, main_thread: bool, pieces: int) -> Callable[[], object]:
    """Makes a function that does the next update of a training run.

    Args:
        wait, main_thread: as ``Slow``.
        pieces: of a rollout.
    """
    recipe = load_recipe("egspo_sa", uses=["logger=none"]).build()
    assert isinstance(recipe, Algorithm)
    samples = recipe.trainer.prompts_per_update * recipe.trainer.group_size
    trainer = rebuilt(recipe.trainer, rollout_batch_size=samples // pieces)
    algorithm = Algorithm(Slow(wait, main_thread), recipe.policy, trainer=trainer, **recipe.fillings)
    update, numbers = Update(algorithm, *start_training(algorithm)), itertools.count()
    return lambda: update(next(numbers))


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wait", type=float, action="append", help="seconds per completion")
    parser.add_argument("--pieces", type=int, default=2, help="pieces of a rollout")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    given = parser.parse_args()
    rows = []
    for wait in given.wait or (0.0, 0.005, 0.02):
        works = {
            "meanwhile": updates(wait, False, given.pieces),
            "waited for": updates(wait, True, given.pieces),
        }
        seconds = interleaved(works, given.repeats, clock=time.perf_counter)
        rows.append({"wait": wait, **seconds, "gain": seconds["waited for"] / seconds["meanwhile"]})
    report("rewards", given.out, rows)


if __name__ == "__main__":
    main()
