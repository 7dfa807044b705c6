"""Mutated recipes and overrides end in an error for the user."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.dummy_components import COMPLETE
from support.recipe_files import body, user_error, write

from dlmrl_kit.recipe.load import load_recipe

pytestmark = pytest.mark.usefixtures("dummies")

FILES = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FUZZED = COMPLETE.replace("DummyKL.coefficient = @DummyConstant()", "DummyKL:\n  coefficient = @a/DummyConstant()") + (
    "\na/DummyConstant.value = 1e-3\nBASE = [@b/DummyMean(), {'k': (%LENGTH, -2)}]\nDummyTrainer.extra = %BASE\n"
    "DummyPolicy.path = 'x' \\\n  \"y\"\nDummyTask.names = ('''a\nb''',)\n"
)
SNIPPETS = ["\n", "\t", " ", "import os\n", "from a import b\n", "include 'a'\n", "\0", "\f", "\r", "\ufeff", "f'{x}'"]
SNIPPETS += [*"@%()[]{}=./-'\"#\\:,$!*", "a/", "0", "1e9", "1_0", "0x", "b'", "'''", "None", "é", "%LENGTH"]
SNIPPETS += ["@DummyMean()", "Algorithm", "gin.REQUIRED"]
EDITS = st.lists(
    st.tuples(st.integers(0, len(FUZZED)), st.integers(0, 12), st.sampled_from(["", *SNIPPETS]) | st.text(max_size=3)),
    min_size=1,
    max_size=4,
)


@pytest.mark.thorough
@settings(FILES, max_examples=250)
@given(edits=EDITS)
def test_mutated_recipes_are_user_errors(tmp_path: Path, edits: list[tuple[int, int, str]]):
    text = FUZZED
    for start, length, new in edits:
        text = text[:start] + new + text[start + length :]
    path = tmp_path / "a.gin"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    error = user_error(lambda: load_recipe(path).build())
    if error is not None:
        assert str(error).startswith(str(path))
        return
    recipe = load_recipe(path)
    assert body(load_recipe(write(tmp_path / "b.gin", recipe.text()))) == body(recipe)


@settings(FILES, max_examples=80)
@given(text=st.sampled_from(["DummyTopK.k=3", "LENGTH = 3", "selector=DummyUniform"]), edits=EDITS)
def test_mutated_overrides_are_user_errors(tmp_path: Path, text: str, edits: list[tuple[int, int, str]]):
    for start, length, new in edits:
        start %= len(text) + 1
        text = text[:start] + new + text[start + length % 4 :]
    path = write(tmp_path / "a.gin", COMPLETE)
    for options in ({"sets": [text]}, {"uses": [text]}):
        user_error(lambda options=options: load_recipe(path, **options))
