"""Settings of a sampler that an evaluation has in its own place: it has a temperature of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.recipe.load import Recipe
from dlmrl_kit.recipe.overrides import place_of_set

TEMPERATURE, FILTERS = "temperature", ("top_k", "top_p")


def is_replaced(key: str, temperature: float) -> bool:
    """Returns whether an evaluation at a temperature does not read a setting of its sampler.

    See ``Sampler.at_temperature``: it replaces the temperature, and at 0 decodes without filters.
    """
    name = key.rpartition(".")[2]
    return name == TEMPERATURE or (temperature == 0 and name in FILTERS)


def check_read(recipe: Recipe, sets: Sequence[str], temperature: float) -> None:
    """Refuses settings from the command line that an evaluation would not read.

    Args:
        recipe: that was loaded with them.
        sets: as ``load_recipe`` takes them.
        temperature: of the evaluation; 0 is greedy.

    Raises:
        RecipeError: one of them is of the sampler, and replaced.
    """
    for text in sets:
        for key in sampler_settings(recipe, text):
            if is_replaced(key, temperature):
                how = "has a temperature of its own" if key.endswith(TEMPERATURE) else "is greedy, without filters"
                said = f"{place_of_set(text)}: an evaluation {how}; give --temperature T"
                raise RecipeError(f"{said} (it does not read {key})")


def sampler_settings(recipe: Recipe, text: str) -> Iterator[str]:
    """Yields the settings of the sampler that a binding of the command line sets."""
    for key in recipe.settings_of("sampler"):
        bound = recipe.bindings.get(key)
        if bound is not None and bound.where == place_of_set(text):
            yield key
