"""Tiny training runs for the tests: the kit's recipes and its shipped small denoiser on a handful of examples."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.runs import NO_COUNT

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.training.loop import Run

TINY = (
    "Sampler.tokens_per_step = 4",
    "Trainer.updates = 3",
    "Trainer.prompts_per_update = 2",
    "Trainer.group_size = 3",
    "Trainer.learning_rate = 0.001",
    "Trainer.eval_every = 2",
    "Trainer.eval_size = 4",
    "Trainer.traced_examples = 0",
    "Trainer.checkpoint_every = 1",
    "Sudoku4x4.num_train = 8",
    "Sudoku4x4.num_heldout = 4",
)


def tiny_recipe(name: str = "egspo_sa", sets: Iterable[str] = (), uses: Iterable[str] = ()) -> Recipe:
    """A recipe of the kit, tiny; ``sets`` come last and win."""
    given = {binding.split("=")[0].strip() for binding in sets}
    if NO_COUNT & {*uses, name}:
        given.add("Sampler.tokens_per_step")
    small = [binding for binding in TINY if binding.split("=")[0].strip() not in given]
    return load_recipe(name, sets=[*small, *sets], uses=["logger=MetricsCSV", *uses])


def tiny_run(folder: Path, name: str = "egspo_sa", sets: Iterable[str] = (), uses: Iterable[str] = ()) -> Run:
    """A run that was not started."""
    algorithm: Any = tiny_recipe(name, sets, uses).build()
    assert isinstance(algorithm, Algorithm)
    return Run(algorithm, folder, name, RunObserver())
