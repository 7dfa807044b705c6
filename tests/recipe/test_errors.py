"""Recipes that are refused: where the mistake is and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.dummy_components import COMPLETE, DummyConstant
from support.recipe_files import refused, refused_text, write

from dlmrl_kit.algorithm import dataflow
from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core import registry
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.recipe.catalogue import find
from dlmrl_kit.recipe.load import load_recipe

pytestmark = pytest.mark.usefixtures("dummies")


class TestErrors:
    @pytest.mark.parametrize(
        ("line", "parts"),
        [
            ("DummyTopK.share = 0.5 0.6", ["syntax error", "DummyTopK.share = 0.5 0.6"]),
            ("DummyTopK.share = [1, 2", ["'[' is never closed", "DummyTopK.share = [1, 2"]),
            ("DummyTopK.share = @DummyMean(", ["'(' is never closed"]),
            ("DummyTopK.share = @DummyMean(eps=1)", ["takes no arguments"]),
            ("DummyTopK.share = 'open", ["syntax error"]),
            ("DummyTopK.share = '''open", ["syntax error"]),
            ("DummyTopK.share = half", ["cannot read the value 'half'", "%MACRO"]),
            ("DummyTopK.share = 1 + 1", ["syntax error"]),
            ("DummyTopK.share = -%LENGTH", ["a minus sign"]),
            ("DummyTopK.share = 1j", ["complex"]),
            ("DummyTopK.share = " + "[" * 60 + "]" * 60, ["nested 50 deep at most"]),
            ("DummyTopK.share = " + "[" * 3000 + "]" * 3000, ["nested 50 deep at most"]),
            ("DummyTopK.share = {[1]: 2}", ["syntax error"]),
            ("DummyTopK.share", ["syntax error"]),
            ("DummyTopK = @DummyMean()", ["nothing uses the macro DummyTopK"]),
            ("DummyTopK.shear = 0.5", ["DummyTopK has no parameter 'shear'", "did you mean 'share'"]),
            ("DumyTopK.share = 0.5", ["no component named 'DumyTopK'", "did you mean 'DummyTopK'"]),
            ("Qqqqq.zz = 0.5", ["no component named 'Qqqqq'", "dlmrl list"]),
            ("DummyTrainer.extra = [{'x': @DumyMean()}]", ["no component named 'DumyMean'", "'DummyMean'"]),
            ("DummyTrainer.extra = {'a': [@s/DummyMean]}", ["@s/DummyMean lacks its parentheses", "@s/DummyMean()"]),
            ("DummyTrainer.extra = @gin.singleton()", ["no component named 'gin.singleton'"]),
            ("DummyTopK.k = 5", ["DummyTopK.k is bound twice", "first in line 15"]),
            ("LENGTH = 5", ["LENGTH is bound twice", "first in line 2"]),
            ("DummyUniform.k = 5", ["nothing uses DummyUniform.k = 5", "its selector is DummyTopK"]),
            ("UNUSED = 5", ["nothing uses the macro UNUSED"]),
            ("DummyTrainer.extra = [({'x': %LENGHT},)]", ["macro %LENGHT is not defined", "did you mean 'LENGTH'"]),
            ("DummyTrainer.extra = {%LIST: 1}\nLIST = [1]", ["cannot be the key of a dict"]),
            ("DummyTrainer.extra = %A\nA = [%B]\nB = %A", ["macros in a circle: A -> B -> A"]),
            ("DummyTrainer.extra = @DummyTrainer()", ["circle", "Algorithm -> DummyTrainer -> DummyTrainer"]),
            ("Algorithm.loggr = None", ["Algorithm has no parameter 'loggr'", "did you mean 'logger'"]),
            (
                "DummyTrainer.steps = %gin.REQUIRED",
                ["DummyTrainer.steps (int) is required", "--set DummyTrainer.steps="],
            ),
        ],
    )
    def test_bad_line(self, tmp_path: Path, line: str, parts: list[str]):
        refused_text(tmp_path, COMPLETE + line + "\nDummyTask.size = 9\n", line.split("\n")[0], *parts)

    @pytest.mark.parametrize(
        ("line", "got"),
        [
            ("DummyTopK.share = True", "DummyTopK.share must be float, got True"),
            ("DummyTrainer.steps = 1.0", "DummyTrainer.steps must be int, got 1.0"),
            ("DummyTrainer.steps = True", "DummyTrainer.steps must be int, got True"),
            ("DummyTrainer.steps = None", "DummyTrainer.steps must be int, got None"),
            ("DummyTrainer.steps = @DummyMean()", "DummyTrainer.steps must be int, got @DummyMean()"),
            ("DummyPolicy.path = 3", "DummyPolicy.path must be str | None, got 3"),
            ("DummyTask.names = 'abc'", "DummyTask.names must be Sequence[str], got 'abc'"),
            ("DummyTask.names = ['a', 1]", "DummyTask.names must be Sequence[str], got ['a', 1]"),
            ("DummyOneStep.weights = [1.0]", "round ones a tuple"),
            ("DummyKL.lengths = (1,)", "square ones a list"),
            ("DummyKL.lengths = [1, 2.5]", "must be list[int] | None, got [1, 2.5]"),
            ("DummyLikelihood.pair = (1, 'a', 2)", "must be tuple[int, str]"),
            ("DummyTrainer.table = {'a': 'b'}", "must be dict[str, float]"),
            ("DummyConstant.inner = @DummyMean()", "must be DummySchedule | None, got @DummyMean()"),
            ("DummyConstant.inner = 3", "must be DummySchedule | None, got 3"),
        ],
    )
    def test_wrong_type(self, tmp_path: Path, line: str, got: str):
        refused_text(tmp_path, COMPLETE + line + "\n", line, got)

    @pytest.mark.parametrize(
        "line",
        [
            "DummyTopK.share = 1",
            "DummyTask.names = ['a', 'b']",
            "DummyTask.names = ('a',)",
            "DummyPolicy.path = None",
            "DummyLikelihood.pair = (2, 'b')",
            "DummyTrainer.table = {'a': 1}",
            "DummyTrainer.wrong = None",
            "DummyTrainer.hook = @DummyMean()",
            "DummyLoss.unknown = 'anything'",
            "DummyConstant.inner = @inner/DummyConstant()\ninner/DummyConstant.inner = None",
        ],
    )
    def test_right_type(self, tmp_path: Path, line: str):
        load_recipe(write(tmp_path / "a.gin", COMPLETE + line + "\n")).build()

    def test_literal(self, tmp_path: Path):
        path = write(tmp_path / "a.gin", COMPLETE)
        refused(path, "must be Literal['left', 'right']", uses=["sampler=DummyOrder"], sets=["DummyOrder.order='up'"])

    def test_long_values_are_cut(self, tmp_path: Path):
        message = refused(write(tmp_path / "a.gin", COMPLETE), sets=["DummyTopK.k = " + repr("x" * 1000)])
        assert re.search(r"got 'x{50,100}\.\.\.", message)

    @pytest.mark.parametrize(
        ("filling", "parts"),
        [
            (
                "@DummyMean()",
                ["Algorithm.selector needs a selector, DummyMean is an advantage", "available selectors: "],
            ),
            ("@DummyTopK", ["lacks its parentheses", "write @DummyTopK()"]),
            ("@a/DummyTopK", ["write @a/DummyTopK()"]),
            ("4", ["needs a selector, got 4", "write Algorithm.selector = @Name()"]),
            ("None", ["needs a selector, got None"]),
            ("[@DummyTopK()]", ["needs a selector, got [@DummyTopK()]"]),
            ("@DummyTopKK()", ["no selector named 'DummyTopKK'", "did you mean 'DummyTopK'"]),
            ("@DummyConstant()", ["DummyConstant is a schedule"]),
            ("%gin.REQUIRED", ["Algorithm.selector is required and not set", "--use selector=Name", "DummyUniform"]),
        ],
    )
    def test_slot(self, tmp_path: Path, filling: str, parts: list[str]):
        text = COMPLETE.replace("selector = @DummyTopK()", f"selector = {filling}").replace("DummyTopK.k = 4\n", "")
        refused_text(tmp_path, text, "Algorithm.selector", *parts)

    def test_list_slot(self, tmp_path: Path):
        text = COMPLETE.replace("@DummyEntropy()]", "@DummyMean()]")
        refused_text(tmp_path, text, "Algorithm.regulariser", "needs a regulariser, DummyMean is an advantage")

    def test_missing_required(self, tmp_path: Path):
        text = COMPLETE.replace("DummySampler.completion_length = %LENGTH\n", "").replace("LENGTH = 16\n", "")
        refused_text(
            tmp_path,
            text,
            "Algorithm.sampler",
            "DummyConfidence.completion_length (int) is required and not set",
            "--set DummyConfidence.completion_length=VALUE",
        )
        path = write(tmp_path / "a.gin", text)
        recipe = load_recipe(path, sets=["DummyConfidence.completion_length=4"])
        assert recipe.build().sampler.completion_length == 4

    def test_missing_after_a_swap_says_what_was_dropped(self, tmp_path: Path):
        text = COMPLETE.replace("DummySampler.completion_length", "DummyConfidence.completion_length")
        path = write(tmp_path / "a.gin", text)
        refused(path, "(DummyConfidence.completion_length, which was dropped, was 16)", uses=["sampler=DummyOrder"])

    def test_missing_slot(self, tmp_path: Path):
        path = write(tmp_path / "a.gin", COMPLETE.replace("Algorithm.loss = @DummyLoss()\nA", "A"))
        refused(path, "nothing uses DummyLoss.clip = 0.3", "--use loss=DummyLoss")
        write(path, COMPLETE.replace("Algorithm.loss = @DummyLoss()\n", "").replace("DummyLoss.clip = 0.3\n", ""))
        message = refused(path, "Algorithm.loss is required and not set", "--use loss=Name", "available losses: ")
        assert message.startswith(f"{path}: ")
        assert "dataclass" not in load_recipe(path, uses=["loss=DummyLoss"]).text()

    def test_value_out_of_range(self, tmp_path: Path):
        text = COMPLETE.replace("clip = 0.3", "clip = -0.3")
        message = refused_text(tmp_path, text, "DummyLoss.clip", "DummyLoss.clip must be above 0, got -0.3")
        assert "configurable" not in message
        path = write(tmp_path / "a.gin", COMPLETE)
        assert refused(path, "DummyLoss.clip must", sets=["DummyLoss.clip=0"]).startswith("--set DummyLoss.clip=0: ")

    def test_other_exceptions_of_constructors(self, tmp_path: Path):
        refused_text(
            tmp_path,
            COMPLETE + "DummyLoss.kind = 'broken'\n",
            "Algorithm.loss",
            "DummyLoss of support: KeyError: 'no such kind'",
        )
        refused_text(
            tmp_path, COMPLETE + "DummyLoss.kind = 'vague'\n", "Algorithm.loss", "DummyLoss of support: cannot do this"
        )

    def test_error_in_a_scope_names_the_scope(self, tmp_path: Path):
        text = COMPLETE + "DummyTrainer.extra = @s/DummyLoss()\ns/DummyLoss.clip = -1\n"
        refused_text(tmp_path, text, "s/DummyLoss", "s/DummyLoss.clip must be above 0")

    def test_error_of_the_algorithm_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def make_plan(_: Algorithm) -> None:
            raise RecipeError("nobody writes 'x'")

        monkeypatch.setattr(dataflow, "make_plan", make_plan)
        path = write(tmp_path / "a.gin", COMPLETE)
        assert refused(path) == f"{path}: nobody writes 'x'"

    def test_not_found(self, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        write(recipes / "egspo.gin", COMPLETE)
        refused("egpso", "no recipe named 'egpso'", "did you mean 'egspo'")
        refused("", "no recipe file ''")
        refused(tmp_path / "recipes" / "egpso.gin", "did you mean", str(recipes / "egspo.gin"))
        refused("missing/\0.gin", "no recipe file")
        refused(recipes, "is a directory", "egspo.gin")
        (tmp_path / "binary.gin").write_bytes(b"A = '\xff'")
        refused(tmp_path / "binary.gin", "not UTF-8")

    def test_unreadable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = write(tmp_path / "a.gin", COMPLETE)

        def no_access(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", no_access)
        refused(path, f"cannot read {path}: Permission denied")

    def test_ambiguous_name(self, tmp_path: Path):
        registry.register("schedule")(type("DummyTopK", (DummyConstant,), {"__module__": "twin"}))
        try:
            path = write(tmp_path / "a.gin", COMPLETE)
            message = refused(path, "'DummyTopK' is ambiguous", "twin.schedule.DummyTopK")
            assert message.startswith(f"{path}:15: ")  # the slot takes selectors only, so line 7 is clear
        finally:
            registry.unregister(find("twin.schedule.DummyTopK"))
