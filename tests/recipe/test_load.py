"""Loading recipes by path and by name, and their includes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gin
import pytest
from support.dummy_components import (
    COMPLETE,
    DummyConfidence,
    DummyConstant,
    DummyEntropy,
    DummyKL,
    DummyMean,
    DummyOneStep,
    DummyRoot,
    DummyTask,
    DummyTopK,
    DummyTrainer,
    DummyUniform,
)
from support.recipe_files import body, refused, refused_text, value, write

from dlmrl_kit.algorithm.algorithm import ROOTS
from dlmrl_kit.recipe import load as recipe_module
from dlmrl_kit.recipe.load import load_recipe, recipe_names

pytestmark = pytest.mark.usefixtures("dummies")


class TestLoading:
    def test_by_path_and_by_name(self, recipes: Path):
        path = write(recipes / "mine.gin", COMPLETE)
        by_name = load_recipe("mine")
        assert by_name.name == "mine"
        assert by_name.source == path
        assert body(by_name) == body(load_recipe(path)) == body(load_recipe(str(path)))
        assert by_name.notes == []

    def test_recipe_names(self, recipes: Path):
        write(recipes / "b.gin", "#  Second line is not shown.\n# no\n")
        write(recipes / "a.gin", "LENGTH = 3\n")
        write(recipes / "base" / "c.gin", "# A base.\n")
        assert recipe_names() == {"a": "", "b": "Second line is not shown."}

    def test_kit_recipes_dir(self):
        assert recipe_module.recipes_dir().name == "recipes"

    def test_import_is_cheap(self):
        code = (
            "import sys, dlmrl_kit.recipe.load; assert not {'torch', 'tensordict', 'transformers'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_builds(self, tmp_path: Path):
        algorithm = load_recipe(write(tmp_path / "a.gin", COMPLETE)).build()
        assert algorithm.sampler == DummyConfidence(16)
        assert algorithm.selector == DummyTopK(k=4)
        assert algorithm.advantage == DummyOneStep(baseline=DummyMean(0.1))
        assert algorithm.regularisers == [DummyKL(DummyConstant()), DummyEntropy()]
        assert algorithm.loggers == []

    def test_gin_is_left_clean(self, tmp_path: Path):
        load_recipe(write(tmp_path / "a.gin", COMPLETE)).build()
        assert gin.config_str().strip() == ""
        assert gin.operative_config_str().strip() == ""
        assert DummyTopK() == DummyTopK(2, 0.5)
        refused(write(tmp_path / "a.gin", COMPLETE), sets=["DummyLoss.clip = -1"])
        assert gin.config_str().strip() == ""

    def test_loading_ignores_and_keeps_the_gin_config(self, tmp_path: Path):
        gin.bind_parameter("DummyUniform.k", 77)
        recipe = load_recipe(write(tmp_path / "a.gin", COMPLETE), uses=["selector=DummyUniform"])
        assert value(recipe, "DummyUniform.k") == recipe.build().selector.k == 1
        assert DummyUniform().k == gin.query_parameter("DummyUniform.k") == 77

    def test_build_ignores_an_open_scope(self, tmp_path: Path):
        gin.bind_parameter("outer/DummyUniform.k", 77)
        with gin.config_scope("outer"):
            recipe = load_recipe(write(tmp_path / "a.gin", COMPLETE), uses=["selector=DummyUniform"])
            assert recipe.build().selector.k == 1
            assert DummyUniform().k == 77

    def test_another_root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(ROOTS, "DummyRoot", DummyRoot)
        text = "DummyRoot.task = @DummyTask()\nDummyRoot.trainer = @DummyTrainer()\nDummyTask.size = 9\n"
        path = write(tmp_path / "a.gin", text)
        recipe = load_recipe(path, sets=["DummyTrainer.steps=3"])
        assert recipe.root == "DummyRoot"
        assert load_recipe(write(tmp_path / "b.gin", COMPLETE)).root == "Algorithm"
        built = recipe.build()
        assert (built.task, built.trainer) == (DummyTask(9), DummyTrainer(steps=3))
        refused(path, "selector is no slot of DummyRoot (its slots: task, trainer)", uses=["selector=DummyTopK"])
        refused(path, "a task is needed; no slot of this recipe may be none", uses=["task=none"])
        refused_text(tmp_path, COMPLETE + text, "DummyRoot.trainer", "one of Algorithm and DummyRoot")

    def test_block_syntax_and_bom(self, tmp_path: Path):
        text = "\ufeff" + COMPLETE.replace("DummyTopK.k = 4\n", "DummyTopK:\n    k = 5\n    share = 0.25\n")
        recipe = load_recipe(write(tmp_path / "a.gin", text))
        assert value(recipe, "DummyTopK.k") == 5
        assert value(recipe, "DummyTopK.share") == 0.25


class TestIncludes:
    def test_beside_the_file_first_then_recipes(self, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        elsewhere = tmp_path / "elsewhere"
        (elsewhere / "base").mkdir(parents=True)
        write(recipes / "base" / "all.gin", COMPLETE)
        leaf = write(elsewhere / "leaf.gin", "include 'base/all.gin'\nDummyTopK.k = 6\n")
        monkeypatch.chdir(tmp_path)
        assert value(load_recipe(leaf), "DummyMean.eps") == 0.1
        write(elsewhere / "base" / "all.gin", COMPLETE.replace("eps = 0.1", "eps = 0.2"))
        recipe = load_recipe(leaf)
        assert value(recipe, "DummyMean.eps") == 0.2
        assert value(recipe, "DummyTopK.k") == 6

    def test_later_wins_across_files(self, tmp_path: Path):
        write(tmp_path / "base.gin", COMPLETE)
        leaf = write(tmp_path / "leaf.gin", "include 'base.gin'\nLENGTH = 32\nDummyTopK.k = 6\n")
        recipe = load_recipe(leaf)
        assert value(recipe, "DummyConfidence.completion_length") == 32
        assert value(recipe, "DummyTopK.k") == 6
        assert recipe.bindings["DummyTopK.k"].where.line == 3

    def test_included_twice_counts_once(self, tmp_path: Path):
        write(tmp_path / "base.gin", COMPLETE)
        write(tmp_path / "one.gin", "include 'base.gin'\nDummyTopK.k = 6\n")
        write(tmp_path / "two.gin", "include 'base.gin'\nDummyMean.eps = 0.7\n")
        recipe = load_recipe(write(tmp_path / "leaf.gin", "include 'one.gin'\ninclude 'two.gin'\n"))
        assert value(recipe, "DummyTopK.k") == 6
        assert value(recipe, "DummyMean.eps") == 0.7

    def test_leaf_replaces_a_component_of_its_base(self, tmp_path: Path):
        write(tmp_path / "base.gin", COMPLETE)
        leaf = write(tmp_path / "leaf.gin", "include 'base.gin'\nAlgorithm.selector = @DummyUniform()\n")
        notes = load_recipe(leaf).notes
        assert len(notes) == 1
        assert notes[0].startswith("dropped DummyTopK.k = 4: only the replaced selector DummyTopK used it")

    def test_macro_that_a_leaf_overrides_away_is_silent(self, tmp_path: Path):
        write(tmp_path / "base.gin", COMPLETE)
        leaf = write(tmp_path / "leaf.gin", "include 'base.gin'\nDummySampler.completion_length = 8\n")
        assert load_recipe(leaf).notes == []

    @pytest.mark.parametrize(
        ("bound", "base"),
        [("DummyTopK.k = 9", COMPLETE), ("LENGTH = 9", COMPLETE), ("a/DummyMean.eps = 0.9", "a/DummyMean.eps = 0.8\n")],
    )
    @pytest.mark.parametrize("through", [False, True])
    def test_include_below_a_binding_that_it_overrides(self, tmp_path: Path, bound: str, base: str, through: bool):
        write(tmp_path / "base.gin", base)
        write(tmp_path / "middle.gin", "include 'base.gin'\n")
        include = f"include '{'middle' if through else 'base'}.gin'\n"
        key = bound.split(" =")[0]
        message = refused_text(tmp_path, f"{bound}\n{include}", 1, f"{key} has no effect", "the include in line 2")
        assert f"in {tmp_path / 'base.gin'}:" in message

    def test_include_below_a_binding_that_agrees_or_that_another_include_overrides(self, tmp_path: Path):
        write(tmp_path / "base.gin", COMPLETE)
        write(tmp_path / "other.gin", "DummyTopK.k = 9\n")
        assert (
            value(load_recipe(write(tmp_path / "a.gin", "DummyTopK.k = 4\ninclude 'base.gin'\n")), "DummyTopK.k") == 4
        )
        both = write(tmp_path / "b.gin", "include 'base.gin'\ninclude 'other.gin'\n")
        assert value(load_recipe(both), "DummyTopK.k") == 9

    def test_missing(self, tmp_path: Path):
        write(tmp_path / "common.gin", COMPLETE)
        refused_text(tmp_path, "\ninclude 'comon.gin'\n", 2, "'comon.gin'", "did you mean 'common.gin'", str(tmp_path))

    def test_cycle(self, tmp_path: Path):
        write(tmp_path / "other.gin", "# first\ninclude 'bad.gin'\n")
        path = write(tmp_path / "bad.gin", "include 'other.gin'\n")
        message = refused(path, "includes itself", "bad.gin -> ", "other.gin -> ")
        assert message.startswith(f"{tmp_path / 'other.gin'}:2: ")

    def test_directory_and_binary(self, tmp_path: Path):
        (tmp_path / "folder.gin").mkdir()
        refused_text(tmp_path, "include 'folder.gin'\n", 1, "is a directory")
        (tmp_path / "binary.gin").write_bytes(b"\xff\xfe\x00")
        refused_text(tmp_path, "include 'binary.gin'\n", 1, "not UTF-8")
        refused_text(tmp_path, "include 'nul\\0.gin'\n", 1, "no file")
