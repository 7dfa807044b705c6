"""The preferred completion of a preference data set."""

from __future__ import annotations

from dlmrl_kit.core.registry import register
from dlmrl_kit.demonstrators.base import Demonstrator, field_of
from dlmrl_kit.tasks.base import Example


@register("demonstrator")
class Chosen(Demonstrator):
    """Demonstrates the field "chosen" of an example, as ``JsonLines`` keeps it: the preferred completion."""

    def demonstrations(self, example: Example) -> list[tuple[str, float]]:
        """Returns the text, with probability 1.

        Raises:
            RecipeError: the example has no such text.
        """
        return [(field_of(example, "chosen"), 1.0)]
