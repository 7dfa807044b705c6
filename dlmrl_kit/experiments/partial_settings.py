"""Loads recipes with settings that need not concern all of them; finds the parameter of their seed, and changes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.signatures import constructor_of
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.recipe.overrides import place_of_set
from dlmrl_kit.recipe.resolve import Block
from dlmrl_kit.recipe.source import Ref
from dlmrl_kit.recipe.where import UnusedBindingError

T = TypeVar("T")


def load_what_concerns(
    source: str | os.PathLike[str], uses: Sequence[str], sets: Sequence[str], *, allow_imports: bool = False
) -> tuple[Recipe, tuple[str, ...], dict[str, RecipeError]]:
    """Loads a recipe with those settings that concern one of its components.

    Args:
        source, uses, sets, allow_imports: as ``load_recipe``.

    Returns:
        The recipe, the settings that concern it, and for each other one what is said of it.

    Raises:
        UserError: the recipe cannot be loaded for another reason.
    """
    return with_what_concerns(
        lambda kept: load_recipe(source, uses=uses, sets=kept, allow_imports=allow_imports), tuple(sets)
    )


def with_what_concerns(
    load: Callable[[tuple[str, ...]], T], sets: tuple[str, ...]
) -> tuple[T, tuple[str, ...], dict[str, RecipeError]]:
    """Loads something of a recipe with those settings that concern one of its components.

    Args:
        load: is called with settings, as ``load_recipe`` takes them.
        sets: all of them.

    Returns:
        What was loaded, the settings that concern it, and for each other one what is said of it.

    Raises:
        UserError: it cannot be loaded for another reason.
    """
    idle: dict[str, RecipeError] = {}
    kept = sets
    while True:
        try:
            return load(kept), kept, idle
        except UnusedBindingError as error:
            found = [text for text in kept if place_of_set(text) == error.where]
            if not found:
                raise
            idle |= dict.fromkeys(found, error)
            kept = tuple(text for text in kept if text not in found)


def seed_key_of(recipe: Recipe) -> str:
    """Returns the key of a training recipe's seed: ``"Trainer.seed"``.

    Raises:
        RecipeError: its trainer takes none, or the command line sets it.
    """
    trainer = recipe.bindings["Algorithm.trainer"].value
    assert isinstance(trainer, Ref)
    block = next(b for b in recipe.blocks if (b.scope, b.gin_name) == (trainer.scope, trainer.name))
    bound = block.parameters.get("seed")
    if bound is None:
        raise RecipeError(f"{block.name} has no parameter seed, so runs of it cannot be repeated with other seeds")
    if bound.where is not None and bound.where.command_line:
        raise RecipeError(f"{bound.where}: an experiment sets the seeds itself; say how many with --seeds")
    return bound.key


def texts_of_seeds(recipe: Recipe, key: str, seeds: Iterable[int]) -> dict[int, str]:
    """Writes the resolved recipe for each seed, as if it had been loaded with it.

    Args:
        recipe: was loaded with some seed as its only setting of ``key``, by ``sets``.
        key: from ``seed_key_of``.
        seeds: of the texts.

    Returns:
        By seed, ``Recipe.text`` without its header.
    """
    where = recipe.bindings[key].where

    def seeded(block: Block, seed: int) -> Block:
        of = constructor_of(block.cls).parameters
        changed = {
            name: replace(bound, value=seed, text=repr(seed), is_default=repr(of[name].default) == repr(seed))
            for name, bound in block.parameters.items()
            if bound.where == where
        }
        return replace(block, parameters={**block.parameters, **changed}) if changed else block

    return {
        seed: replace(recipe, blocks=tuple(seeded(block, seed) for block in recipe.blocks)).text(header=False)
        for seed in seeds
    }
