"""How many states go through the model per sample and update, counted while one update of a recipe runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlmrl_kit.recipe.load import load_recipe


@dataclass(frozen=True)
class Forwards:
    """States per sample: ``rollout`` of sampling and restarts, ``update`` of old, reference and current passes."""

    rollout: float
    update: float


def count_forwards(recipe: str, sets: Sequence[str] = ()) -> Forwards:
    """Runs one update of a recipe, without its filters, and counts the rows of every forward pass.

    Args:
        recipe: name or path of a training recipe.
        sets: bindings that change it, as ``load_recipe``.
    """
    from dlmrl_kit.core.results import Observer
    from dlmrl_kit.training.loop import Run

    small = ["Trainer.prompts_per_update = 4", "Trainer.device = 'cpu'"]
    algorithm = load_recipe(recipe, sets=[*small, *sets], uses=["logger=none", "filter=none"]).build()
    rows = 0

    with tempfile.TemporaryDirectory() as folder:
        run = Run(algorithm, Path(folder), recipe, Observer())
        hidden_at = run.policy.hidden_at

        def counted(input_ids: Any, *given: Any) -> Any:
            nonlocal rows
            rows += len(input_ids)
            return hidden_at(input_ids, *given)

        run.policy.hidden_at = counted  # type: ignore[assignment,method-assign]  # every forward comes here
        trajectory = run.collect(0).kept
        sampled, rows = rows, 0
        run.updater.update(run.updater.prepare(trajectory), 0)
    return Forwards(sampled / len(trajectory), rows / len(trajectory))
