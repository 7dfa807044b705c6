"""Bindings of base classes, scopes and nested components."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.dummy_components import COMPLETE, DummyEntropy, DummyMean, DummyOneStep, DummyOrder, DummyTopK
from support.recipe_files import body, refused, refused_text, value, write

from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.recipe.source import Ref

pytestmark = pytest.mark.usefixtures("dummies")


class TestBaseClasses:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write(tmp_path / "a.gin", COMPLETE)

    def test_applies_to_the_swapped_in_component(self, path: Path):
        recipe = load_recipe(path, uses=["sampler=DummyOrder"])
        assert recipe.build().sampler == DummyOrder(16)
        assert "DummyOrder.completion_length = 16\n" in recipe.text()
        assert "DummySampler" not in recipe.text()
        assert recipe.notes == []

    def test_own_binding_wins(self, path: Path):
        write(path, COMPLETE + "DummyConfidence.completion_length = 3\n")
        assert value(load_recipe(path), "DummyConfidence.completion_length") == 3
        assert value(load_recipe(path, uses=["sampler=DummyOrder"]), "DummyOrder.completion_length") == 16

    def test_command_line_wins_over_own_binding_in_the_file(self, path: Path):
        write(path, COMPLETE + "DummyConfidence.completion_length = 3\n")
        recipe = load_recipe(path, sets=["DummySampler.completion_length = 5"])
        assert value(recipe, "DummyConfidence.completion_length") == 5
        refused(
            path,
            "has no effect: DummyConfidence.completion_length (--set",
            sets=["DummySampler.completion_length = 5", "DummyConfidence.completion_length = 6"],
        )

    def test_command_line_works_on_a_resolved_recipe(self, path: Path, tmp_path: Path):
        resolved = write(tmp_path / "resolved.gin", load_recipe(path).text())
        recipe = load_recipe(resolved, sets=["DummySampler.completion_length = 5"])
        assert value(recipe, "DummyConfidence.completion_length") == 5

    def test_parameter_that_the_component_lacks(self, path: Path):
        write(path, COMPLETE + "DummySampler.temperature = 0.5\n")
        recipe = load_recipe(path, uses=["sampler=DummyOrder"])
        assert recipe.notes == ["dropped DummySampler.temperature = 0.5: DummyOrder takes no parameter temperature"]
        refused(path, "has no effect", "takes no parameter order", sets=["DummySampler.order = 'left'"])

    def test_typo_and_unused(self, tmp_path: Path):
        refused_text(
            tmp_path,
            COMPLETE + "DummySampler.temprature = 0.5\n",
            "DummySampler.temp",
            "no component based on DummySampler has a parameter 'temprature'",
            "did you mean 'temperature'",
        )
        text = COMPLETE.replace("DummyKL.coefficient = @DummyConstant()", "DummySchedule.value = 2.0")
        refused_text(tmp_path, text, "DummySchedule.value", "nothing uses", "based on DummySchedule")

    def test_unused_base_after_swap_is_dropped(self, path: Path):
        write(path, COMPLETE + "DummySchedule.value = 2.0\n")
        recipe = load_recipe(path, sets=["DummyKL.coefficient = 0.5"])
        assert recipe.notes == [
            "dropped DummySchedule.value = 2.0: only the replaced DummyKL.coefficient DummyConstant used it"
        ]

    def test_type_is_checked_for_each_component(self, tmp_path: Path):
        refused_text(
            tmp_path,
            COMPLETE.replace("= %LENGTH", "= 'long'").replace("LENGTH = 16\n", ""),
            "DummySampler",
            "DummyConfidence.completion_length must be int, got 'long'",
        )


class TestScopesAndNesting:
    def test_scopes(self, tmp_path: Path):
        text = COMPLETE + (
            "a/DummyEntropy.coefficient = 0.5\nb/DummyEntropy.coefficient = 0.75\n"
            "DummyTrainer.extra = {'list': [@a/DummyEntropy(), (@b/DummyEntropy(), 1)], 'own': @DummyEntropy()}\n"
        )
        recipe = load_recipe(write(tmp_path / "a.gin", text))
        assert recipe.build().trainer.extra == {
            "list": [DummyEntropy(0.5), (DummyEntropy(0.75), 1)],
            "own": DummyEntropy(0.0),
        }
        assert "a/DummyEntropy.coefficient = 0.5\n" in recipe.text()
        assert value(recipe, "b/DummyEntropy.coefficient") == 0.75

    def test_scope_goes_down_and_inherits(self, tmp_path: Path):
        text = COMPLETE + (
            "DummyTrainer.extra = @a/DummyOneStep()\na/DummyMean.eps = 0.3\nDummyOneStep.weights = (0.5, 1)\n"
        )
        trainer = load_recipe(write(tmp_path / "a.gin", text)).build().trainer
        assert trainer.extra == DummyOneStep(DummyMean(0.3), (0.5, 1))

    def test_reference_in_a_macro(self, tmp_path: Path):
        text = (
            COMPLETE.replace("baseline = @DummyMean()", "baseline = %BASE") + "BASE = [@DummyMean(), @x/DummyMean()]\n"
        )
        recipe = load_recipe(write(tmp_path / "a.gin", text))
        assert recipe.build().advantage.baseline == [DummyMean(0.1), DummyMean(0.1)]

    def test_full_names(self, tmp_path: Path):
        full = f"{DummyTopK.__module__.split('.')[0]}.selector.DummyTopK"
        text = COMPLETE.replace("@DummyTopK()", f"@{full}()").replace("DummyTopK.k", "selector.DummyTopK.k")
        recipe = load_recipe(write(tmp_path / "a.gin", text))
        assert value(recipe, "DummyTopK.k") == 4
        assert value(recipe, "Algorithm.selector") == Ref("", full, True)
        refused_text(tmp_path, text + "DummyTopK.k = 5\n", "DummyTopK.k", "bound twice")

    def test_unused_scope(self, tmp_path: Path):
        refused_text(tmp_path, COMPLETE + "a/DummyTopK.k = 3\n", "a/DummyTopK", "never in scope 'a'")

    def test_keyword_arguments(self, tmp_path: Path):
        text = COMPLETE + "Algorithm.logger = @DummyLogger()\nDummyLogger.project = 'p'\n"
        recipe = load_recipe(write(tmp_path / "a.gin", text))
        assert recipe.build().loggers[0].options == {"project": "p"}
        assert body(load_recipe(write(tmp_path / "b.gin", recipe.text()))) == body(recipe)
