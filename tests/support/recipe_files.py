"""Writing recipe files, and what loading them gives or refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.recipe.load import Recipe, load_recipe


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def line_of(text: str, start: str) -> int:
    return next(i for i, line in enumerate(text.split("\n"), 1) if line.startswith(start))


def body(recipe: Recipe) -> str:
    return recipe.text(header=False)


def refused(path: Path | str, *parts: str, **options: Any) -> str:
    with pytest.raises(RecipeError) as info:
        load_recipe(path, **options).build()
    for part in parts:
        assert part in str(info.value)
    return str(info.value)


def refused_text(tmp_path: Path, text: str, line: int | str, *parts: str, **options: Any) -> str:
    """Asserts that a recipe is refused with an error at a line (a number, or the line that starts so)."""
    path = write(tmp_path / "bad.gin", text)
    number = line if isinstance(line, int) else line_of(text, line)
    message = refused(path, *parts, **options)
    assert message.startswith(f"{path}:{number}: ")
    return message


def user_error(run: Callable[[], Any]) -> UserError | None:
    try:
        run()
    except UserError as error:
        return error
    return None


def value(recipe: Recipe, key: str) -> Any:
    return recipe.bindings[key].value
