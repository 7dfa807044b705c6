"""``--use`` and ``--set``: what they change, and what they drop."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.dummy_components import COMPLETE, DummyConstant, DummyEntropy, DummyKL, DummyTopK, DummyUniform
from support.recipe_files import refused, value, write

from dlmrl_kit.recipe.load import load_recipe

pytestmark = pytest.mark.usefixtures("dummies")


class TestOverrides:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write(tmp_path / "a.gin", COMPLETE)

    def test_set(self, path: Path):
        recipe = load_recipe(path, sets=["DummyTopK.k=9", "LENGTH = 20", "DummyTrainer.learning_rate = 1e-3"])
        assert value(recipe, "DummyTopK.k") == 9
        assert value(recipe, "DummyConfidence.completion_length") == 20
        assert recipe.build().trainer.learning_rate == 1e-3

    def test_last_set_wins(self, path: Path):
        assert value(load_recipe(path, sets=["DummyTopK.k=9", "DummyTopK.k=3"]), "DummyTopK.k") == 3

    def test_use_comes_before_set(self, path: Path):
        recipe = load_recipe(path, sets=["DummyUniform.k=7"], uses=["selector=DummyUniform"])
        assert recipe.build().selector == DummyUniform(k=7)
        recipe = load_recipe(path, sets=["Algorithm.selector=@DummyUniform()"], uses=["selector = DummyTopK"])
        assert recipe.build().selector == DummyUniform()

    def test_use_drops_with_a_note_and_carries_nothing_over(self, path: Path):
        recipe = load_recipe(path, uses=["selector=DummyUniform"])
        assert recipe.build().selector == DummyUniform(k=1)
        assert recipe.notes == [
            "dropped DummyTopK.k = 4: only the replaced selector DummyTopK used it; "
            "DummyUniform.k does not take the value over"
        ]

    def test_dropping_follows_references_and_macros(self, path: Path):
        write(path, COMPLETE.replace("eps = 0.1", "eps = %EPS") + "EPS = %TINY\nTINY = 0.5\n")
        recipe = load_recipe(path, uses=["advantage=DummyMean"], sets=["DummyMean.eps=3.0"])
        assert recipe.notes[0] == (
            "dropped DummyOneStep.baseline = @DummyMean(): only the replaced advantage DummyOneStep used it"
        )
        assert [n for n in recipe.notes if "EPS" in n] == [
            "dropped EPS = %TINY: only bindings that were dropped or overridden used it"
        ]
        assert any(n.startswith("dropped TINY = 0.5: ") for n in recipe.notes)
        assert "TINY" not in recipe.text(header=False)

    def test_nested_replacement(self, path: Path):
        recipe = load_recipe(path, sets=["DummyOneStep.baseline = None"])
        assert recipe.notes == [
            "dropped DummyMean.eps = 0.1: only the replaced DummyOneStep.baseline DummyMean used it"
        ]

    def test_replacement_by_macro(self, path: Path):
        write(path, COMPLETE.replace("selector = @DummyTopK()", "selector = %SEL") + "SEL = @DummyTopK()\n")
        recipe = load_recipe(path, sets=["SEL = @DummyUniform()"])
        assert recipe.notes[0].startswith("dropped DummyTopK.k = 4: only the replaced SEL DummyTopK used it")

    def test_none_and_several(self, path: Path):
        assert load_recipe(path, uses=["regulariser=none"]).build().regularisers == []
        recipe = load_recipe(path, uses=["regulariser=DummyEntropy+DummyKL", "logger=@DummyLogger()"])
        assert recipe.build().regularisers == [DummyEntropy(), DummyKL(DummyConstant())]
        assert recipe.build().loggers[0].folder == "runs"
        assert recipe.notes == []

    def test_use_with_scope(self, path: Path):
        recipe = load_recipe(path, uses=["selector=mine/DummyTopK"], sets=["mine/DummyTopK.share = 0.75"])
        assert recipe.build().selector == DummyTopK(4, 0.75)

    @pytest.mark.parametrize(
        ("use", "parts"),
        [
            ("schedule=DummyConstant", ["schedule is no slot", "--set Component.parameter=@Name()", "DummyConstant"]),
            ("selectr=DummyTopK", ["no slot named 'selectr'", "did you mean 'selector'"]),
            ("selector=DummyTopKK", ["no selector named 'DummyTopKK'", "did you mean 'DummyTopK'"]),
            ("selector=DummyMean", ["needs a selector, DummyMean is an advantage", "available selectors: "]),
            ("selector=none", ["a selector is needed", "logger and regulariser"]),
            ("selector=DummyTopK+DummyUniform", ["there is one selector"]),
            ("regulariser=DummyKL+", ["no regulariser named ''"]),
            ("selector", ["write --use KIND=NAME"]),
            ("selector=", ["write --use KIND=NAME"]),
            ("selector=a b/DummyTopK", ["is no scope"]),
        ],
    )
    def test_bad_use(self, path: Path, use: str, parts: list[str]):
        refused(path, f"--use {use}", *parts, uses=[use])

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("DummyTopK.kk = 1", ["no parameter 'kk'", "did you mean 'k'", "share"]),
            ("DummyTopKK.k = 1", ["no component named 'DummyTopKK'", "'DummyTopK'"]),
            ("DummyUniform.k = 1", ["has no effect", "its selector is DummyTopK", "--use selector=DummyUniform"]),
            ("LENGHT = 1", ["nothing uses the macro LENGHT", "did you mean 'LENGTH'", "Component.parameter"]),
            ("DummyTopK.k = ", ["syntax error"]),
            ("DummyTopK.k = [1", ["'[' is never closed"]),
            ("", ["write one binding"]),
            ("DummyTopK.k = 1\nDummyMean.eps = 2.0", ["write one binding"]),
            ("import os", ["write one binding"]),
            ("include 'a.gin'", ["write one binding"]),
            ("DummyTopK.k = 'x'", ["DummyTopK.k must be int, got 'x'"]),
            ("DummyTopK.k = %NOPE", ["macro %NOPE is not defined", "LENGTH"]),
            ("DummyConstant.inner = @DummyConstant()", ["in a circle", "DummyConstant -> DummyConstant"]),
            ("x/DummyTopK.k = 3", ["has no effect", "never in scope 'x'"]),
        ],
    )
    def test_bad_set(self, path: Path, text: str, parts: list[str]):
        message = refused(path, *parts, sets=[text])
        assert message.startswith("--set")

    def test_override_of_a_dropped_component(self, path: Path):
        refused(
            path,
            "has no effect",
            "its selector is DummyUniform",
            uses=["selector=DummyUniform"],
            sets=["DummyTopK.k=3"],
        )
