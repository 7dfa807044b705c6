"""Where a training step's time goes, for any recipe, and the share that is not the model.

    OMP_NUM_THREADS=1 python benchmarks/step_profile.py egspo_sa --updates 5 --out results
    OMP_NUM_THREADS=1 python benchmarks/step_profile.py egspo_sa --use policy=CharacterLlama \\
        --set CharacterLlama.hidden_size=256 --out results

Each second is counted once, in the innermost phase. ``body`` and ``head`` run in the policy's forwards, ``backward`` in
autograd; ``sampling`` is the rest of the rollout, ``old and reference`` and ``update`` the rest of those stages
(states, log-probabilities, losses), ``bookkeeping`` all that is left: prompts, selection, advantages, logging.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import report

MODEL = ("body", "head", "backward", "optimiser")


class Clock:
    """Seconds by phase, processor time where there is one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._last = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time within the context belongs to ``name``, but for phases within it."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        now = time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._last
        self._last = now

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Makes every call of ``owner.attribute`` a phase."""
        inner = getattr(owner, attribute)

        def timed(*given: Any, **named: Any) -> Any:
            with self.phase(name):
                return inner(*given, **named)

        setattr(owner, attribute, timed)


def profile(recipe: str, updates: int, sets: list[str], uses: list[str]) -> dict[str, float]:
    """Mean seconds per update by phase, after one update that is not counted."""
    from dlmrl_kit.recipe import load_recipe
    from dlmrl_kit.training.loop import Run
    from dlmrl_kit.training.results import Observer

    built: Any = load_recipe(recipe, sets=[f"Trainer.updates={updates + 1}", *sets], uses=uses).build()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(built, Path(folder), recipe, Observer())
        for logger in built.loggers:
            logger.open(Path(folder), 0)
        run._evaluate = lambda done: None  # type: ignore[method-assign]
        run._save = lambda done: None  # type: ignore[method-assign]
        run._update(0)
        clock = Clock()
        clock.wrap(run.policy, "features", "body")
        clock.wrap(run.policy, "head", "head")
        clock.wrap(torch.Tensor, "backward", "backward")
        clock.wrap(run.updater.optimiser, "step", "optimiser")
        clock.wrap(type(built.sampler), "resume", "sampling")
        clock.wrap(type(run.scorer), "__call__", "rewards")
        clock.wrap(run.updater, "prepare", "old and reference")
        clock.wrap(run.updater, "update", "update")
        clock.wrap(run, "_update", "bookkeeping")
        for update in range(1, updates + 1):
            run._update(update)
        for logger in built.loggers:
            logger.close()
    return {name: seconds / updates for name, seconds in clock.seconds.items()}


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="egspo_sa")
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="BINDING")
    parser.add_argument("--use", action="append", default=[], metavar="KIND=NAME")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    given = parser.parse_args()
    seconds = profile(given.recipe, given.updates, given.set, given.use)
    total = sum(seconds.values())
    rows: list[dict[str, Any]] = [
        {"phase": name, "seconds": value, "share": value / total}
        for name, value in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    outside = sum(value for name, value in seconds.items() if name not in MODEL) / total
    report("step_profile", given.out, rows, recipe=given.recipe, not_model=outside, bookkeeping=rows[-1]["share"])
    print(f"one update takes {total:.3g} s; {outside:.1%} of it is not body, head, backward or optimiser")


if __name__ == "__main__":
    main()
