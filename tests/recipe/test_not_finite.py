"""Real settings that are not finite are refused, with file, line and name, whichever component they are of."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.recipe.load import load_recipe, recipe_names


@functools.cache
def real_settings() -> dict[str, tuple[str, object]]:
    """Every real setting of the shipped recipes: a recipe that has it, and its default there."""
    found: dict[str, tuple[str, object]] = {}
    for name in recipe_names():
        for key, bound in load_recipe(name).bindings.items():
            if type(bound.value) is float:
                found.setdefault(key, (name, bound.value))
    return found


@pytest.mark.thorough
def test_every_real_setting_is_finite() -> None:
    settings = real_settings()
    assert len(settings) > 40
    assert "Trainer.learning_rate" in settings
    for key, (name, default) in settings.items():
        for literal in ("1e999", "-1e999", "1" + "0" * 400):
            if default == float(literal if len(literal) < 99 else "1"):
                continue  # no limit, as TrajectoryImportance.cap
            with pytest.raises(UserError) as caught:
                load_recipe(name, sets=[f"{key}={literal}"]).build()
            message = str(caught.value)
            assert key.rpartition(".")[2] in message
            assert "finite" in message


@pytest.mark.parametrize("value", ["(0.9, 1e999)", "[1e999, 0.9]", "[-1e999]"])
def test_numbers_in_containers(value: str) -> None:
    sets = ["Mixture.tasks=(@a/Sudoku4x4(), @b/Sudoku4x4())", f"Mixture.weights={value}"]
    with pytest.raises(UserError, match=r"Mixture\.weights must be finite, got [(\[]"):
        load_recipe("egspo", uses=["task=Mixture"], sets=sets)


def test_file_and_line_are_named(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.gin"
    recipe.write_text("include 'egspo.gin'\nRATE = 1e999\nTrainer.updates = 3\nTrainer.learning_rate = %RATE\n")
    with pytest.raises(UserError, match=r"mine\.gin:\d: Trainer\.learning_rate must be finite, got 1e999"):
        load_recipe(str(recipe))


@pytest.mark.parametrize("name", ["TrajectoryImportance", "TruncatedImportance"])
def test_a_cap_may_be_none(name: str) -> None:
    """The recipe of a run, which is read again when the run goes on, says 1e999 for infinity."""
    recipe = load_recipe("egspo", uses=[f"correction={name}"], sets=[f"{name}.cap=1e999"])
    assert recipe.bindings[f"{name}.cap"].value == math.inf
    recipe.build()


@pytest.mark.parametrize("value", ["1e38", "3.4e38", "1e300"])
def test_steps_that_torch_cannot_take(value: str) -> None:
    """AdamW divides the rate by 1 - beta1, which must fit in a float32."""
    with pytest.raises(UserError, match=r"Trainer\.learning_rate must be so small that AdamW's steps are below 3e\+38"):
        load_recipe("egspo", sets=[f"Trainer.learning_rate={value}"]).build()
