"""The recipes that the kit's own tests are about: plugins of the repository, which may be installed, test theirs."""

from __future__ import annotations

import functools

from dlmrl_kit.recipe.moved import MOVED
from dlmrl_kit.report.algorithms_page import training_recipes


@functools.cache
def kit_recipes() -> tuple[str, ...]:
    """Those of the kit that train the shipped denoiser: all recipes are loaded for it, so once for all test files."""
    return tuple(name for name in training_recipes() if name not in MOVED)
