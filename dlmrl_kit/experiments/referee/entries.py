"""The entries of a comparison: each algorithm on each task, with as many updates as its budget of forwards allows.

All recipes are loaded and built before anything runs, so that what does not fit is an error at once.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.core.version import VERSION
from dlmrl_kit.experiments.design import Variant
from dlmrl_kit.experiments.folder import portable
from dlmrl_kit.experiments.forwards import forwards_per_update
from dlmrl_kit.experiments.partial_settings import load_what_concerns, seed_key_of, texts_of_seeds
from dlmrl_kit.experiments.referee.spec import Algorithm, Spec, TaskSpec, label_of
from dlmrl_kit.loggers.metrics_csv import MetricsCSV
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.tasks.base import BaseTask
from dlmrl_kit.trainers.trainer import Trainer

Counts = Mapping[str, float]
"""By the name of an entry, the forwards of an update: they are counted once, and kept in the folder."""


@dataclass(frozen=True)
class Entry:
    """An algorithm on a task.

    Attributes:
        task, recipe: their names in tables.
        points: settings that were tuned, one tuple for each combination; one empty tuple without tuning.
        variants: what runs for each of the ``points``.
        forwards: of an update, as counted in the first one.
        updates: of a run.
        skipped: settings of task and comparison that concern none of its components.
    """

    task: str
    recipe: str
    points: tuple[tuple[str, ...], ...]
    variants: tuple[Variant, ...]
    forwards: float
    updates: int
    skipped: tuple[str, ...]

    @property
    def name(self) -> str:
        """``task/recipe``."""
        return f"{self.task}/{self.recipe}"


def make_entries(spec: Spec, counted: Counts) -> list[Entry]:
    """Loads and builds every algorithm on every task.

    Args:
        spec: of the comparison.
        counted: what is known of forwards; the others are counted, by the first update of each.

    Raises:
        UserError: a recipe cannot be loaded or built on a task, or one update costs more than the budget; names both.
    """
    entries, tasks = [], _Tasks()
    for task, algorithm in itertools.product(spec.tasks, spec.algorithms):
        try:
            entries.append(_entry(spec, task, algorithm, counted, tasks))
        except UserError as error:
            raise RecipeError(f"{algorithm.name} on {task.name}: {error}") from error
    _check_own_files(entries)
    _check_all_used(spec, entries)
    return entries


def described(spec: Spec, entries: list[Entry], folder: Path) -> dict[str, Any]:
    """Returns what identifies a comparison in a folder, for JSON: version, specification and every resolved recipe."""
    seed = spec.all_seeds[0]
    return {
        "dlmrl_kit": VERSION,
        "comparison": spec.to_json(),
        "claims": [asdict(claim) for claim in spec.claims],
        "forwards": {entry.name: entry.forwards for entry in entries},
        "variants": {
            variant.name: {"folder": variant.folder, "recipe": portable(variant.texts[seed], folder).splitlines()}
            for entry in entries
            for variant in entry.variants
        },
    }


def common(old: Mapping[str, Any], new: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what of a comparison's description must be as it was: algorithms, tasks and seeds may be added to it.

    The base and the claims may be others, as no run depends on them. Values may be added behind those of the first
    setting to tune: the combinations that there were keep their numbers then.
    """
    before = dict(old.get("comparison", {}))
    asked = dict(new["comparison"])
    asked["recipes"] = [recipe for recipe in before.get("recipes", ()) if label_of(recipe) in asked["recipes"]]
    for part in ("tasks", "variants"):
        asked[part] = {name: asked[part][name] for name in before.get(part, ()) if name in asked[part]}
    asked["seeds"] = min(before.get("seeds", 0), asked["seeds"])
    asked["base"] = before.get("base")
    asked["grid"] = _without_added(before.get("grid", {}), asked["grid"])
    parts = {
        part: {name: new[part][name] for name in old.get(part, ()) if name in new[part]}
        for part in ("forwards", "variants")
    }
    return {**new, "comparison": asked, "claims": old.get("claims"), **parts}


def _without_added(before: Mapping[str, list[str]], asked: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Returns a grid without the values that it has behind the former ones of its first setting."""
    first = next(iter(asked), None)
    return {key: values[: len(before.get(key, ()))] if key == first else values for key, values in asked.items()}


class _Tasks:
    """Builds algorithms, and each task once for all algorithms and settings: it may read a large file."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, str], ...], BaseTask] = {}

    def built(self, recipe: Recipe) -> Trainer:
        """Builds the algorithm of a recipe, and returns its trainer.

        Raises:
            UserError: as ``Recipe.build_algorithm``.
        """
        described = tuple(recipe.settings_of("task").items())
        known = self._known.get(described)
        algorithm = recipe.build_algorithm(**({} if known is None else {"task": known}))
        self._known[described] = algorithm.task
        return algorithm.trainer


def _entry(spec: Spec, task: TaskSpec, algorithm: Algorithm, counted: Counts, tasks: _Tasks) -> Entry:
    source, label = algorithm.recipe, algorithm.name
    uses, wanted = (*spec.uses, *task.uses, *algorithm.uses), (*spec.sets, *task.sets, *algorithm.sets)
    plain, sets, idle = load_what_concerns(source, uses, wanted, allow_imports=spec.allow_imports)
    for text in algorithm.sets:
        if text in idle:
            raise idle[text]
    if plain.root != "Algorithm":
        raise RecipeError(f"it is a recipe for {plain.root}, not for training")
    if not any(issubclass(block.cls, MetricsCSV) for block in plain.blocks):
        raise RecipeError("a comparison reads metrics.csv, which no logger of this recipe writes: add MetricsCSV")
    trainer = tasks.built(plain)
    forwards = counted.get(f"{task.name}/{label}") or forwards_per_update(
        source, sets, uses, allow_imports=spec.allow_imports
    )
    updates = math.floor(spec.forwards / forwards)
    if updates < 1:
        raise RecipeError(f"one update takes {forwards:,.0f} forwards, more than the budget of {spec.forwards:,}")
    lengths = {
        "updates": updates,
        "eval_every": max(1, round(updates / spec.evaluations)),
        "validation_size": spec.validation,
        "traced_examples": 0,
        "checkpoint_every": min(trainer.checkpoint_every, max(1, round(updates / spec.evaluations))),
    }
    sets = (*sets, *(f"{_key(plain, name)} = {value}" for name, value in lengths.items()))
    points = _points(spec, source, uses, sets)
    name, seed_key = f"{task.name}/{label}", seed_key_of(plain)
    variants = tuple(
        _variant(spec, source, uses, (*sets, *point), seed_key, f"{name}/{number}" if len(points) > 1 else name, tasks)
        for number, point in enumerate(points)
    )
    skipped = tuple(text for text in wanted if text not in sets)
    return Entry(task.name, label, points, variants, forwards, updates, skipped)


def _key(recipe: Recipe, parameter: str) -> str:
    key = recipe.key_in("trainer", parameter)
    if not key:
        raise RecipeError(f"its trainer has no {parameter}, which a comparison sets")
    return key


def _points(spec: Spec, source: str, uses: tuple[str, ...], sets: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Lists the combinations of settings to try, without those that concern none of the recipe's components."""
    texts = [[f"{key} = {value}" for value in values] for key, values in spec.grid.items()]
    found: dict[tuple[str, ...], None] = {}
    for combination in itertools.product(*texts):
        _, kept, _ = load_what_concerns(source, uses, (*sets, *combination), allow_imports=spec.allow_imports)
        found[tuple(text for text in combination if text in kept)] = None
    return tuple(found)


def _variant(
    spec: Spec, source: str, uses: tuple[str, ...], sets: tuple[str, ...], seed_key: str, name: str, tasks: _Tasks
) -> Variant:
    seeded = (*sets, f"{seed_key} = {spec.all_seeds[0]}")
    first = load_recipe(source, uses=uses, sets=seeded, allow_imports=spec.allow_imports)
    updates = tasks.built(first).updates
    texts = texts_of_seeds(first, seed_key, spec.all_seeds)
    folder = re.sub(r"[^\w.+]+", "-", name)
    return Variant(name, folder, "", first, seed_key, texts, updates=updates)


def _check_own_files(entries: list[Entry]) -> None:
    """Refuses names that differ only in what files are not named with: one run would be taken for the other.

    Raises:
        RecipeError: there are two.
    """
    owners: dict[str, str] = {}
    for entry in entries:
        for variant in entry.variants:
            other = owners.setdefault(variant.folder, entry.name)
            if other != entry.name:
                raise RecipeError(f"the runs of {other} and {entry.name} would share files: rename a task or a recipe")


def _check_all_used(spec: Spec, entries: list[Entry]) -> None:
    """Refuses settings that concern no recipe at all, as they are misspelt.

    Raises:
        RecipeError: there is one.
    """
    for task in spec.tasks:
        own = [entry for entry in entries if entry.task == task.name]
        for text in (*spec.sets, *task.sets):
            if all(text in entry.skipped for entry in own):
                raise RecipeError(f"--set {text} concerns no component of any recipe on {task.name}")
    for key in spec.grid:
        if not any(text.startswith(f"{key} = ") for entry in entries for point in entry.points for text in point):
            raise RecipeError(f"{key} is to be tuned, but no recipe has a component with it")
