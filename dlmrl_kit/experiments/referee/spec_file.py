"""Reads what a comparison of algorithms is asked to do from a TOML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import tomllib

from dlmrl_kit.core.errors import FileError, UserError
from dlmrl_kit.core.files import reason_of
from dlmrl_kit.experiments.referee.spec import Algorithm, Claim, Spec, TaskSpec

_KEYS = {
    **{name: int for name in ("forwards", "seeds", "evaluations", "validation", "tuning_seeds")},
    **{name: list for name in ("recipes", "set", "use")},
    **{name: dict for name in ("tasks", "tune", "variants")},
    "claims": list,
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
        if key not in data and (key != "recipes" or "variants" not in data):
            raise UserError(f"the key {key} is missing")
    recipes = tuple(_located(name, folder) for name in _texts(data, "recipes"))
    tasks = tuple(
        TaskSpec(name, *_changes(f"tasks.{name}", own, set()))
        for name, own in data.get("tasks", {"default": {}}).items()
    )
    variants = tuple(
        Algorithm(name, _located(_text(f"variants.{name}.recipe", own, "recipe"), folder), *changes)
        for name, own in data.get("variants", {}).items()
        for changes in (_changes(f"variants.{name}", own, {"recipe"}),)
    )
    names = [*recipes, *(variant.name for variant in variants)]
    grid = {key: tuple(map(str, _listed(key, values))) for key, values in data.get("tune", {}).items()}
    named = {f.name for f in fields(Spec)} & {"seeds", "forwards", "evaluations", "validation", "tuning_seeds", "audit"}
    return Spec(
        recipes=recipes,
        base=_located(str(data["base"]), folder) if "base" in data else names[0] if names else "",
        tasks=tasks,
        grid=grid,
        sets=_texts(data, "set"),
        uses=_texts(data, "use"),
        allow_imports=allow_imports,
        variants=variants,
        claims=tuple(_claim(number, own) for number, own in enumerate(data.get("claims", ()), start=1)),
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


def _changes(name: str, own: object, others: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns what a task or a variant uses and sets."""
    if not isinstance(own, dict) or own.keys() - {"use", "set", *others}:
        known = " and ".join([*sorted(others), "use", "set"])
        raise UserError(f"{name} must be a table with {known}, got {own!r}")
    return _texts(own, "use"), _texts(own, "set")


def _text(name: str, own: object, key: str) -> str:
    found = own.get(key) if isinstance(own, dict) else None
    if not isinstance(found, str):
        raise UserError(f"{name} must be a text, got {found!r}")
    return found


def _claim(number: int, own: object) -> Claim:
    name = f"claim {number}"
    if not isinstance(own, dict) or own.keys() - {"text", "better", "worse", "by", "task"}:
        raise UserError(f"{name} must be a table with text, better, worse, by and task, got {own!r}")
    by = own.get("by", 0.0)
    if isinstance(by, bool) or not isinstance(by, int | float) or not 0 <= by < 1:
        raise UserError(f"by of {name} must be a difference of accuracies from 0 to 1, got {by!r}")
    better, worse = (_text(f"{key} of {name}", own, key) for key in ("better", "worse"))
    task = _text(f"task of {name}", own, "task") if "task" in own else None
    return Claim(str(own.get("text", f"{better} is better than {worse}")), better, worse, float(by), task)


def _listed(key: str, values: object) -> Sequence[object]:
    if not isinstance(values, list) or not values:
        raise UserError(f"tune.{key} must be a list of values to try, got {values!r}")
    return values


def _located(recipe: str, folder: Path) -> str:
    """Returns a recipe that is a path as one from here; a name stays as it is."""
    return str(folder / recipe) if recipe.endswith(".gin") else recipe
