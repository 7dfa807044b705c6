"""What a comparison of algorithms is asked to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dlmrl_kit.core.errors import UserError

FIRST_TUNING_SEED = 1000
"""Final runs have the seeds below it."""


@dataclass(frozen=True)
class TaskSpec:
    """A task that the algorithms are compared on: what it changes in every recipe.

    Attributes:
        name: in tables and of files: letters, digits, and ``. + - _`` or spaces behind the first.
        uses, sets: as ``load_recipe``. A setting that concerns no component of a recipe is left out there.
    """

    name: str
    uses: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Algorithm:
    """An algorithm that takes part in a comparison.

    Attributes:
        name: in tables; that of its recipe, unless it is a variant.
        recipe: its name or path.
        uses, sets: what it changes in the recipe, as ``load_recipe``; each setting must concern one of its components.
    """

    name: str
    recipe: str
    uses: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A sentence that a comparison is to test: one algorithm is better than another.

    Attributes:
        text: the sentence.
        better, worse: names of algorithms.
        by: the difference of final accuracies that is claimed, from 0 to 1: more than this.
        task: the name of the task that it is about; None is every task.
    """

    text: str
    better: str
    worse: str
    by: float = 0.0
    task: str | None = None


@dataclass(frozen=True)
class Spec:
    """A comparison.

    Attributes:
        recipes: names or paths; of plugins, too.
        base: the recipe, or name of a variant, that the others are compared with.
        forwards: the budget of a run: states through the model in training, those of the reference included.
        seeds: runs of each recipe on each task, with seeds 0, 1, ...
        tasks: at least one.
        evaluations: of a run after its start, evenly spaced over the budget.
        validation: examples of the split ``pretrain`` that settings and the best model are chosen on; 0: none are.
        grid: settings to tune, with the values to try; the same for every recipe that has the parameter.
        tuning_seeds: runs of each combination, with seeds that the final runs do not have.
        sets, uses: for every recipe on every task.
        audit: whether to audit each recipe's gradient, too.
        allow_imports: whether recipes may run import statements.
        variants: algorithms that are recipes with something changed.
        claims: what is to be tested, beside the differences to the base.
    """

    recipes: tuple[str, ...]
    base: str
    forwards: int
    seeds: int = 3
    tasks: tuple[TaskSpec, ...] = (TaskSpec("default"),)
    evaluations: int = 10
    validation: int = 0
    grid: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tuning_seeds: int = 1
    sets: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    audit: bool = False
    allow_imports: bool = False
    variants: tuple[Algorithm, ...] = ()
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        counts = {"forwards": 1, "seeds": 1, "evaluations": 1, "validation": 0, "tuning_seeds": 1}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise UserError(f"a comparison needs {name} >= {least}, got {getattr(self, name)}")
        if self.seeds > FIRST_TUNING_SEED:
            raise UserError(f"a comparison has at most {FIRST_TUNING_SEED:,} seeds, got {self.seeds}")
        if len(self.algorithms) < 2:
            raise UserError("nothing to compare: name at least two recipes")
        if not self.tasks:
            raise UserError("a comparison needs a task: name one, or leave tasks out")
        self._check_names()
        if self.grid and not self.validation:
            raise UserError(
                "settings are tuned on validation examples, never on those that are reported: give validation (at "
                "least 100 examples), or no settings to tune"
            )

    def _check_names(self) -> None:
        names = [algorithm.name for algorithm in self.algorithms]
        tasks = [task.name for task in self.tasks]
        for own, told in (
            (self.recipes, "the recipe {} is named twice"),
            (tasks, "the task {} is named twice"),
            (names, "two algorithms are named {}: rename a variant, or the file of a recipe"),
        ):
            twice = [name for name in own if own.count(name) > 1]
            if twice:
                raise UserError(told.format(twice[0]))
        for what, own in (("task", tasks), ("variant", [variant.name for variant in self.variants])):
            for name in own:
                if not re.fullmatch(r"\w[\w.+ -]*", name):  # files are named after it
                    raise UserError(f"a {what} cannot be named {name!r}: letters, digits, and . + - _ or spaces inside")
        if label_of(self.base) not in names:
            raise UserError(f"the base {self.base} is none of the recipes: {', '.join(names)}")
        for claim in self.claims:
            for name in (claim.better, claim.worse):
                if name not in names:
                    raise UserError(f"the claim {claim.text!r} is about {name!r}, which is none of {', '.join(names)}")
            if claim.task is not None and claim.task not in tasks:
                raise UserError(
                    f"the claim {claim.text!r} is about the task {claim.task!r}: tasks are {', '.join(tasks)}"
                )

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """All that take part: the recipes, then the variants."""
        return (*(Algorithm(label_of(recipe), recipe) for recipe in self.recipes), *self.variants)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds of the final runs, then those of tuning, which stay when more final runs are asked for."""
        tuning = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.tuning_seeds) if self.grid else ()
        return (*range(self.seeds), *tuning)

    def to_json(self) -> dict[str, Any]:
        """Returns what identifies the comparison, for JSON: not where recipes lie, and not whether to audit."""
        return {
            "recipes": list(map(label_of, self.recipes)),
            "variants": {
                each.name: {"recipe": label_of(each.recipe), "use": list(each.uses), "set": list(each.sets)}
                for each in self.variants
            },
            "base": label_of(self.base),
            "forwards": self.forwards,
            "seeds": self.seeds,
            "evaluations": self.evaluations,
            "validation": self.validation,
            "grid": {key: list(values) for key, values in self.grid.items()},
            "tuning_seeds": self.tuning_seeds,
            "tasks": {task.name: {"use": list(task.uses), "set": list(task.sets)} for task in self.tasks},
        }


def label_of(recipe: str) -> str:
    """Returns what tables call a recipe: its name, or that of its file."""
    return re.sub(r"\.gin$", "", recipe.rpartition("/")[2])
