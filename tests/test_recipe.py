"""Loading, overriding, checking, resolving and building recipes, with small components of the test's own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gin
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlmrl_kit.core import registry
from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.recipe import load as recipe_module
from dlmrl_kit.recipe import names as gin_names
from dlmrl_kit.recipe.load import Recipe, load_recipe, recipe_names
from dlmrl_kit.recipe.source import Ref, format_value

if TYPE_CHECKING:
    from nowhere import Unknown  # an annotation that cannot be evaluated


def noop() -> None: ...


class DummySampler:
    """Base class, no component."""


class DummySchedule:
    """Base class, no component."""


@dataclass
class DummyConfidence(DummySampler):
    completion_length: int
    temperature: float = 1.0


@dataclass
class DummyOrder(DummySampler):
    completion_length: int
    order: Literal["left", "right"] = "left"


@dataclass
class DummyTask:
    size: int = 4
    names: Sequence[str] = ()


@dataclass
class DummyPolicy:
    path: str | None = None


@dataclass
class DummyTopK:
    k: int = 2
    share: float = 0.5


@dataclass
class DummyUniform:
    k: int = 1
    replace: bool = False


@dataclass
class DummyMean:
    eps: float = 1e-6


@dataclass
class DummyOneStep:
    baseline: Any = None
    weights: tuple[float, ...] = ()


@dataclass
class DummyLikelihood:
    pair: tuple[int, str] = (1, "a")


class DummyLoss:
    def __init__(self, clip: float = 0.2, *, unknown: Unknown = 3, kind: str = "token") -> None:
        if clip <= 0:
            raise ValueError(f"DummyLoss.clip must be above 0, got {clip!r}")
        if kind == "broken":
            raise KeyError("no such kind")
        if kind == "vague":
            raise ValueError("cannot do this")
        self.clip, self.unknown, self.kind = clip, unknown, kind


@dataclass
class DummyKL:
    coefficient: float | DummySchedule = 0.1
    lengths: list[int] | None = None


@dataclass
class DummyEntropy:
    coefficient: float = 0.0


@dataclass
class DummyConstant(DummySchedule):
    value: float = 1.0
    inner: DummySchedule | None = None


@dataclass
class DummyTrainer:
    learning_rate: float = 1e-4
    steps: int = 10
    extra: Any = None
    hook: Callable[[], None] = noop
    table: dict[str, float] = field(default_factory=dict)
    wrong: int = None  # type: ignore[assignment]


class DummyLogger:
    def __init__(self, folder: str = "runs", **options: Any) -> None:
        self.folder, self.options = folder, options


@gin.configurable(module="dlmrl_kit")
class DummyRoot:
    def __init__(self, task: Any = gin.REQUIRED, trainer: Any = gin.REQUIRED) -> None:
        self.task, self.trainer = task, trainer


DUMMIES = {
    DummyConfidence: "sampler",
    DummyOrder: "sampler",
    DummyTask: "task",
    DummyPolicy: "policy",
    DummyTopK: "selector",
    DummyUniform: "selector",
    DummyMean: "advantage",
    DummyOneStep: "advantage",
    DummyLikelihood: "likelihood",
    DummyLoss: "loss",
    DummyKL: "regulariser",
    DummyEntropy: "regulariser",
    DummyConstant: "schedule",
    DummyTrainer: "trainer",
    DummyLogger: "logger",
}

COMPLETE = """\
# A complete recipe.
LENGTH = 16

Algorithm.task = @DummyTask()
Algorithm.policy = @DummyPolicy()
Algorithm.sampler = @DummyConfidence()
Algorithm.selector = @DummyTopK()
Algorithm.advantage = @DummyOneStep()
Algorithm.likelihood = @DummyLikelihood()
Algorithm.loss = @DummyLoss()
Algorithm.regulariser = [@DummyKL(), @DummyEntropy()]
Algorithm.trainer = @DummyTrainer()

DummySampler.completion_length = %LENGTH
DummyTopK.k = 4
DummyOneStep.baseline = @DummyMean()
DummyMean.eps = 0.1
DummyLoss.clip = 0.3
DummyKL.coefficient = @DummyConstant()
"""


@pytest.fixture(scope="module", autouse=True)
def _dummies() -> Iterator[None]:
    """Registers the dummies for this module only: other tests go through everything that is registered."""
    from dlmrl_kit.algorithm import algorithm

    patch = pytest.MonkeyPatch()
    patch.setattr(registry, "load_builtin", lambda: None)
    patch.setattr(algorithm.dataflow, "plan", lambda _: None)
    for cls, kind in DUMMIES.items():
        registry.register(kind)(cls)
    yield
    patch.undo()
    for entries in registry._COMPONENTS.values():
        entries[:] = [c for c in entries if c.cls not in DUMMIES]
    for key in [key for key, entries in registry._COMPONENTS.items() if not entries]:
        del registry._COMPONENTS[key]


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of recipes in place of the kit's."""
    folder = tmp_path / "recipes"
    (folder / "base").mkdir(parents=True)
    monkeypatch.setattr(recipe_module, "recipes_dir", lambda: folder)
    return folder


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
        gin.bind_parameter("DummyTopK.k", 77)
        try:
            assert value(load_recipe(write(tmp_path / "a.gin", COMPLETE)), "DummyTopK.k") == 4
            assert gin.query_parameter("DummyTopK.k") == 77
        finally:
            gin.clear_config()

    def test_build_ignores_an_open_scope(self, tmp_path: Path):
        with gin.config_scope("outer"):
            assert load_recipe(write(tmp_path / "a.gin", COMPLETE)).build().selector.k == 4

    def test_another_root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(gin_names.ROOTS, "DummyRoot", __name__)
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

    def test_missing(self, tmp_path: Path):
        write(tmp_path / "common.gin", COMPLETE)
        refused_text(tmp_path, "\ninclude 'comon.gin'\n", 2, "'comon.gin'", "did you mean 'common.gin'", str(tmp_path))

    def test_cycle(self, tmp_path: Path):
        write(tmp_path / "other.gin", "# first\ninclude 'bad.gin'\n")
        path = write(tmp_path / "bad.gin", "include 'other.gin'\n")
        message = refused(path, "includes itself", "bad.gin -> ", "other.gin -> ")
        assert message.startswith(f"{tmp_path / 'other.gin'}:2: ")

    def test_directory_and_binary(self, tmp_path: Path):
        (tmp_path / "folder").mkdir()
        refused_text(tmp_path, "include 'folder'\n", 1, "is a directory")
        (tmp_path / "binary.gin").write_bytes(b"\xff\xfe\x00")
        refused_text(tmp_path, "include 'binary.gin'\n", 1, "not UTF-8")
        refused_text(tmp_path, "include 'nul\\0.gin'\n", 1, "no file")


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
        full = f"{__name__.split('.')[0]}.selector.DummyTopK"
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
            "DummyLoss.kind",
            "DummyLoss.kind: KeyError: 'no such kind'",
        )
        refused_text(tmp_path, COMPLETE + "DummyLoss.kind = 'vague'\n", "Algorithm.loss", "DummyLoss: cannot do this")

    def test_error_in_a_scope_names_the_scope(self, tmp_path: Path):
        text = COMPLETE + "DummyTrainer.extra = @s/DummyLoss()\ns/DummyLoss.clip = -1\n"
        refused_text(tmp_path, text, "s/DummyLoss", "s/DummyLoss.clip: DummyLoss.clip must be above 0")

    def test_error_of_the_algorithm_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        from dlmrl_kit.algorithm import algorithm

        def plan(_: Any) -> None:
            raise RecipeError("nobody writes 'x'")

        monkeypatch.setattr(algorithm.dataflow, "plan", plan)
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

        def read_text(*_: Any, **__: Any) -> str:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_text", read_text)
        refused(path, f"cannot read {path}: Permission denied")

    def test_ambiguous_name(self, tmp_path: Path):
        twin = registry.Component("schedule", "DummyTopK", DummyConstant, "twin", "", registry.Claims())
        registry._COMPONENTS["schedule", "DummyTopK"] = [twin]
        try:
            path = write(tmp_path / "a.gin", COMPLETE)
            message = refused(path, "'DummyTopK' is ambiguous", "twin.schedule.DummyTopK")
            assert message.startswith(f"{path}:15: ")  # the slot takes selectors only, so line 7 is clear
        finally:
            del registry._COMPONENTS["schedule", "DummyTopK"]


class TestImports:
    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        package = tmp_path / "lib" / "recipe_test_extras"
        package.mkdir(parents=True)
        write(package / "__init__.py", "VALUE = 1\n")
        write(package / "parts.py", "")
        write(package / "broken.py", "raise RuntimeError('boom')\n")
        write(package / "exits.py", "raise SystemExit(3)\n")
        monkeypatch.syspath_prepend(package.parent)
        return "recipe_test_extras"

    def test_refused_unless_allowed(self, tmp_path: Path, module: str):
        for statement in (f"import {module}", f"from {module} import parts"):
            refused_text(tmp_path, f"# x\n{statement}\n{COMPLETE}", 2, "--allow-imports", f"`{statement}` runs code")
        assert module not in sys.modules

    def test_allowed(self, tmp_path: Path, module: str):
        text = f"import {module}.parts\nfrom {module} import VALUE\n" + COMPLETE
        recipe = load_recipe(write(tmp_path / "a.gin", text), allow_imports=True)
        assert f"{module}.parts" in sys.modules
        resolved = write(tmp_path / "b.gin", recipe.text())
        refused(resolved, "--allow-imports")
        assert body(load_recipe(resolved, allow_imports=True)) == body(recipe)
        recipe.build()

    @pytest.mark.parametrize(
        ("statement", "part"),
        [
            ("import not_there_at_all", "ModuleNotFoundError"),
            ("from recipe_test_extras import nothing", "ModuleNotFoundError"),
            ("import recipe_test_extras.broken", "RuntimeError: boom"),
            ("import recipe_test_extras.exits", "SystemExit"),
            ("from __gin__ import dynamic_registration", "failed"),
        ],
    )
    def test_failing(self, tmp_path: Path, module: str, statement: str, part: str):
        refused_text(tmp_path, f"{statement}\n{COMPLETE}", 1, part, allow_imports=True)


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
            *("1e-05", "-3", "-0.0", "1e999", "-1e999", "0.1", "123456789012345678901234567890", "True", "None", "()"),
            *("'a\"b'", '"it\'s"', "'line\\nbreak # no comment'", "'\\ud800\\x00é☃'", "b'\\x00\\xff'", "''"),
            *("[]", "{}", "(1,)", "[[1, (2, [None])], {'a': {2: [1e-05]}}]", "{(1, 'k'): -1.5}", "'a' 'b'", "0xff"),
            "0x1" + "0" * 5000,
        ],
    )
    def test_values_survive(self, tmp_path: Path, text: str):
        recipe = load_recipe(write(tmp_path / "a.gin", COMPLETE + f"DummyTrainer.extra = {text}\n"))
        again = load_recipe(write(tmp_path / "b.gin", recipe.text()))
        first, second = recipe.build().trainer.extra, again.build().trainer.extra
        # Not by repr: it refuses very long integers.
        assert format_value(first) == format_value(second) == format_value(value(recipe, "DummyTrainer.extra"))
        assert (type(first), first) == (type(second), second)
        assert body(again) == body(recipe)


LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
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
    share=st.floats(allow_nan=False) | st.integers(),
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
