"""What a comparison of algorithms is asked to do, and the TOML file that says so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import tomllib

from dlmrl_kit.core.errors import FileError, UserError
from dlmrl_kit.core.files import reason_of

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
class Spec:
    """A comparison.

    Attributes:
        recipes: names or paths; of plugins, too.
        base: the recipe that the others are compared with.
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

    def __post_init__(self) -> None:
        counts = {"forwards": 1, "seeds": 1, "evaluations": 1, "validation": 0, "tuning_seeds": 1}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise UserError(f"a comparison needs {name} >= {least}, got {getattr(self, name)}")
        if self.seeds > FIRST_TUNING_SEED:
            raise UserError(f"a comparison has at most {FIRST_TUNING_SEED:,} seeds, got {self.seeds}")
        if len(self.recipes) < 2:
            raise UserError("nothing to compare: name at least two recipes")
        for what, names in (("recipe", self.recipes), ("task", tuple(task.name for task in self.tasks))):
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise UserError(f"the {what} {twice[0]} is named twice")
        if not self.tasks:
            raise UserError("a comparison needs a task: name one, or leave tasks out")
        for task in self.tasks:
            if not re.fullmatch(r"\w[\w.+ -]*", task.name):  # files are named after it
                raise UserError(f"a task cannot be named {task.name!r}: letters, digits, and . + - _ or spaces inside")
        if self.base not in self.recipes:
            raise UserError(f"the base {self.base} is none of the recipes: {', '.join(self.recipes)}")
        if self.grid and not self.validation:
            raise UserError(
                "settings are tuned on validation examples, never on those that are reported: give validation (at "
                "least 100 examples), or no settings to tune"
            )

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds of the final runs, then those of tuning, which stay when more final runs are asked for."""
        tuning = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.tuning_seeds) if self.grid else ()
        return (*range(self.seeds), *tuning)

    def to_json(self) -> dict[str, Any]:
        """Returns what identifies the comparison, for JSON: not where recipes lie, and not whether to audit."""
        return {
            "recipes": list(map(label_of, self.recipes)),
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


_KEYS = {
    **{name: int for name in ("forwards", "seeds", "evaluations", "validation", "tuning_seeds")},
    **{name: list for name in ("recipes", "set", "use")},
    **{name: dict for name in ("tasks", "tune")},
    "base": str,
    "audit": bool,
}
_TYPES = {int: "a whole number", list: "a list of texts", dict: "a table", str: "a text", bool: "true or false"}


def read_spec(path: Path, *, allow_imports: bool = False) -> Spec:
    """Reads the specification of a comparison from a TOML file; docs/compare-algorithms.md has an example.

    Recipes that are paths are relative to the folder of the file.

    Raises:
        UserError: the file cannot be read, or a key is unknown, missing or of the wrong type.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {reason_of(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    try:
        return _spec(data, path.parent, allow_imports)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _spec(data: Mapping[str, Any], folder: Path, allow_imports: bool) -> Spec:
    for key, value in data.items():
        if key not in _KEYS:
            raise UserError(f"unknown key {key!r}; known are {', '.join(sorted(_KEYS))}")
        _check(key, value, _KEYS[key])
    for key in ("recipes", "forwards"):
        if key not in data:
            raise UserError(f"the key {key} is missing")
    recipes = tuple(_located(name, folder) for name in _texts(data, "recipes"))
    tasks = tuple(
        TaskSpec(name, _texts(_of_task(name, own), "use"), _texts(own, "set"))
        for name, own in data.get("tasks", {"default": {}}).items()
    )
    grid = {key: tuple(map(str, _listed(key, values))) for key, values in data.get("tune", {}).items()}
    named = {f.name for f in fields(Spec)} & {"seeds", "forwards", "evaluations", "validation", "tuning_seeds", "audit"}
    return Spec(
        recipes=recipes,
        base=_located(str(data["base"]), folder) if "base" in data else recipes[0] if recipes else "",
        tasks=tasks,
        grid=grid,
        sets=_texts(data, "set"),
        uses=_texts(data, "use"),
        allow_imports=allow_imports,
        **{key: value for key, value in data.items() if key in named},
    )


def _check(key: str, value: object, wanted: type) -> None:
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise UserError(f"{key} must be {_TYPES[wanted]}, got {value!r}")


def _texts(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = data.get(key, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise UserError(f"{key} must be a list of texts, got {found!r}")
    return tuple(found)


def _of_task(name: str, own: object) -> Mapping[str, Any]:
    if not isinstance(own, dict) or own.keys() - {"use", "set"}:
        raise UserError(f"tasks.{name} must be a table with use and set, got {own!r}")
    return own


def _listed(key: str, values: object) -> Sequence[object]:
    if not isinstance(values, list) or not values:
        raise UserError(f"tune.{key} must be a list of values to try, got {values!r}")
    return values


def _located(recipe: str, folder: Path) -> str:
    """Returns a recipe that is a path as one from here; a name stays as it is."""
    return str(folder / recipe) if recipe.endswith(".gin") else recipe
