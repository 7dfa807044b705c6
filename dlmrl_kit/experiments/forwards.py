"""Counts how many states go through the model while one update of a recipe runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training.model_work import ModelWork
from dlmrl_kit.training.start import start_training
from dlmrl_kit.training.update import Update


@dataclass(frozen=True)
class ForwardsPerSample:
    """How many states go through the model for each sample.

    Attributes:
        rollout: in the rollout, restarts included.
        update: in the update, forwards under the old and the reference policy included.
    """

    rollout: float
    update: float


def count_forwards(recipe: str, sets: Sequence[str] = ()) -> ForwardsPerSample:
    """Runs one update of a recipe, without its filters, and counts the rows of every forward pass.

    Args:
        recipe: name or path of a training recipe.
        sets: bindings that change it, as ``load_recipe``.

    Raises:
        UserError: the recipe is broken or not for training.
    """
    small = ["Trainer.prompts_per_update = 4", "Trainer.device = 'cpu'"]
    algorithm = load_recipe(recipe, sets=[*small, *sets], uses=["logger=none", "filter=none"]).build_algorithm()
    work = _one_update(algorithm)
    samples = algorithm.trainer.prompts_per_update * algorithm.trainer.group_size
    return ForwardsPerSample(work.rollout / samples, work.update / samples)


def forwards_per_update(recipe: str, sets: Sequence[str], uses: Sequence[str], *, allow_imports: bool = False) -> float:
    """Runs the first update of a recipe, filters and all, and counts the rows of every forward pass.

    Args:
        recipe, sets, uses, allow_imports: as ``load_recipe``.

    Raises:
        UserError: the recipe is broken or not for training.
    """
    loaded = load_recipe(recipe, sets=sets, uses=[*uses, "logger=none"], allow_imports=allow_imports)
    work = _one_update(loaded.build_algorithm())
    return float(work.rollout + work.update)


def _one_update(algorithm: Algorithm) -> ModelWork:
    started = start_training(algorithm)
    update, work = Update(algorithm, *started), ModelWork()
    with update.opened(), work.watching(started.policy):
        update(0)
    return work
