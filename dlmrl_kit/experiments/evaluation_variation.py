"""Settings of a sampler that an evaluation grid varies: what ``--vary KEY=A,B`` stands for.

A setting that concerns no component of a recipe is left out there, so that several samplers can each vary their own.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.experiments.partial_settings import with_what_concerns
from dlmrl_kit.recipe.load import Recipe
from dlmrl_kit.recipe.overrides import place_of_set
from dlmrl_kit.training.opening import OpenedModel
from dlmrl_kit.training.replaced_settings import TEMPERATURE, is_replaced, sampler_settings


class Variation:
    """The combinations of the values of some settings.

    Args:
        vary: by setting, its values as texts.
        temperature: of the evaluation.
    """

    def __init__(self, vary: Mapping[str, Sequence[str]], temperature: float) -> None:
        texts = [[f"{key}={value}" for value in values] for key, values in vary.items()]
        self.combinations = list(itertools.product(*texts))
        self.temperature = temperature
        self._idle: dict[str, RecipeError] = {}
        self._used: set[str] = set()
        self._available: dict[str, None] = {}

    def opened(
        self, load: Callable[[Sequence[str]], OpenedModel], fixed: Sequence[str]
    ) -> dict[tuple[str, ...], OpenedModel]:
        """Opens a model with every combination, each without the settings that concern nothing there.

        Args:
            load: is given bindings of a recipe.
            fixed: those that are not varied.

        Returns:
            By the settings of a combination that are not left out, the model with its recipe.

        Raises:
            UserError: a setting is fixed, too, or changes nothing in how the sampler decodes; or a value does not fit.
        """
        found: dict[tuple[str, ...], OpenedModel] = {}
        for combination in self.combinations:
            self._check_free(combination, fixed)
            with said_of_varied(combination):
                opened, kept, idle = with_what_concerns(lambda some: load([*fixed, *some]), combination)
            for text in kept:
                self._check_decodes(opened.recipe, text)
            self._idle |= idle
            self._used |= {key_of(text) for text in kept}
            self._available |= dict.fromkeys(self._settings(opened.recipe))
            found.setdefault(kept, opened)
        return found

    def check_used(self) -> None:
        """Refuses settings that concerned no recipe that was opened, as they are misspelt.

        Raises:
            RecipeError: there is one.
        """
        for text, error in self._idle.items():
            if key_of(text) not in self._used:
                said = str(error).replace(str(place_of_set(text)), f"--vary {text}")
                raise RecipeError(f"{said}; settings to vary: {', '.join(self._available)}")

    def _settings(self, recipe: Recipe) -> list[str]:
        """Lists the settings of a recipe's sampler that change how an evaluation decodes."""
        keys = list(recipe.settings_of("sampler"))[1:]  # the slot itself is first
        return [key for key in keys if not is_replaced(key, self.temperature)]

    def _check_free(self, combination: Sequence[str], fixed: Sequence[str]) -> None:
        for text in fixed:
            if key_of(text) in map(key_of, combination):
                option = f"--set {text}, or an option that stands for it,"
                raise UserError(f"--vary {key_of(text)} and {option} say two things about one setting; leave one out")

    def _check_decodes(self, recipe: Recipe, text: str) -> None:
        own = self._settings(recipe)
        if any(key in own for key in sampler_settings(recipe, text)):
            return
        hint = " (--temperature says how all cells are)" if key_of(text).endswith(TEMPERATURE) else ""
        raise RecipeError(
            f"--vary {text} changes nothing in how the sampler of {recipe.name} decodes an evaluation{hint}; settings "
            f"to vary: {', '.join(own)}"
        )


def key_of(text: str) -> str:
    """Returns what a binding sets: ``"Sampler.tokens_per_step"``."""
    return text.partition("=")[0].strip()


@contextlib.contextmanager
def said_of_varied(texts: Sequence[str]) -> Iterator[None]:
    """Within the context, errors about some bindings name the option ``--vary`` that they come from.

    Raises:
        RecipeError: in place of another one about them.
    """
    try:
        yield
    except RecipeError as error:
        said = str(error)
        for text in texts:
            said = said.replace(str(place_of_set(text)), f"--vary {text}")
        if said == str(error):
            raise
        raise RecipeError(said) from error
