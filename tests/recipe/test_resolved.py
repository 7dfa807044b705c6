"""A resolved recipe is a recipe with the same bindings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.dummy_components import COMPLETE
from support.recipe_files import body, value, write

from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.recipe.source import format_value

pytestmark = pytest.mark.usefixtures("dummies")


class TestResolvedText:
    def test_layout(self, tmp_path: Path):
        path = write(tmp_path / "a.gin", COMPLETE)
        recipe = load_recipe(path, uses=["selector=DummyUniform"], sets=["DummyUniform.k = 3"])
        header, algorithm, task, *_ = recipe.text().split("\n\n")
        assert header.split("\n")[1:] == [
            f"# Source: {path}",
            "# Overrides: --use selector=DummyUniform --set 'DummyUniform.k = 3'",
        ]
        assert algorithm.split("\n")[0] == "Algorithm.task = @DummyTask()"
        assert algorithm.endswith("Algorithm.logger = None  # default")
        assert task == "DummyTask.size = 4  # default\nDummyTask.names = ()  # default"
        order = re.findall(r"^(\w+)\.\w+ =", recipe.text(), re.M)
        assert list(dict.fromkeys(order)) == [
            *("Algorithm", "DummyTask", "DummyPolicy", "DummyConfidence", "DummyUniform", "DummyOneStep", "DummyMean"),
            *("DummyLikelihood", "DummyLoss", "DummyKL", "DummyConstant", "DummyEntropy", "DummyTrainer"),
        ]
        assert "# DummyTrainer.hook: default, of type function, which gin text cannot hold\n" in recipe.text()
        assert "DummyTrainer.wrong = None  # default" in recipe.text()
        assert recipe.bindings["DummyUniform.k"].where.command_line

    def test_header_stays_a_comment(self, tmp_path: Path):
        path = write(tmp_path / "a.gin", COMPLETE)
        recipe = load_recipe(path, sets=["DummyPolicy.path = '''x\nDummyTopK.k = 8\n'''"])
        again = load_recipe(write(tmp_path / "b.gin", recipe.text()))
        assert body(again) == body(recipe)
        assert value(again, "DummyTopK.k") == 4

    @pytest.mark.parametrize(
        "text",
        [
            *("1e-05", "-3", "-0.0", "0.1", "123456789012345678901234567890", "True", "None", "()"),
            *("'a\"b'", '"it\'s"', "'line\\nbreak # no comment'", "'\\ud800\\x00é☃'", "b'\\x00\\xff'", "''"),
            *("[]", "{}", "(1,)", "[[1, (2, [None])], {'a': {2: [1e-05]}}]", "{(1, 'k'): -1.5}", "'a' 'b'", "0xff"),
            "0x1" + "0" * 250,
        ],
    )
    def test_values_survive(self, tmp_path: Path, text: str):
        recipe = load_recipe(write(tmp_path / "a.gin", COMPLETE + f"DummyTrainer.extra = {text}\n"))
        again = load_recipe(write(tmp_path / "b.gin", recipe.text()))
        first, second = recipe.build().trainer.extra, again.build().trainer.extra
        assert format_value(first) == format_value(second) == format_value(value(recipe, "DummyTrainer.extra"))
        assert (type(first), first) == (type(second), second)
        assert body(again) == body(recipe)


LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=8)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
FILES = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(FILES, max_examples=40)
@given(
    extra=LITERALS,
    options=st.dictionaries(st.from_regex(r"[a-z]{1,5}_x", fullmatch=True), LITERALS, max_size=2),
    share=st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
    scope=st.sampled_from(["", "a", "a/b"]),
    uses=st.lists(st.sampled_from(["selector=DummyUniform", "sampler=DummyOrder", "regulariser=none"]), max_size=2),
)
def test_resolved_recipe_is_a_recipe(
    tmp_path: Path, extra: Any, options: dict[str, Any], share: float, scope: str, uses: list[str]
):
    prefix = f"{scope}/" if scope else ""
    lines = [f"EXTRA = {format_value(extra)}", "DummyTrainer.extra = [%EXTRA, {'k': (%EXTRA,)}]"]
    lines += [f"{prefix}DummyLogger.{name} = {format_value(option)}" for name, option in options.items()]
    lines += [f"Algorithm.logger = @{prefix}DummyLogger()", f"DummyTopK.share = {format_value(share)}"]
    recipe = load_recipe(write(tmp_path / "a.gin", COMPLETE + "\n".join(lines)), uses=uses)
    again = load_recipe(write(tmp_path / "b.gin", recipe.text()))
    assert body(again) == body(recipe)
    assert again.notes == []
    assert {k: b.text for k, b in again.bindings.items()} == {k: b.text for k, b in recipe.bindings.items()}
    built = again.build()
    assert format_value(built.trainer.extra) == format_value([extra, {"k": (extra,)}])
    assert {k: format_value(v) for k, v in built.loggers[0].options.items()} == {
        k: format_value(v) for k, v in options.items()
    }
