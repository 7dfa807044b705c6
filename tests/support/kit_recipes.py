"""The recipes that the kit's own tests are about: plugins of the repository, which may be installed, test theirs."""

from __future__ import annotations

from dlmrl_kit.recipe.moved import MOVED
from dlmrl_kit.report.algorithms_page import training_recipes


def kit_recipes() -> list[str]:
    """Those of the kit that train the shipped denoiser."""
    return [name for name in training_recipes() if name not in MOVED]
