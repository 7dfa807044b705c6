"""A plugin declares a kind: its components work in recipes as those of the kit's own kinds do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from support.command_line import BINDINGS, dlmrl, train
from support.installed_plugins import Install
from support.shaping import SHAPING

from dlmrl_kit import load_run, recipe_of
from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.algorithm.bases import BASE_CLASSES
from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.algorithm.kinds import declare_kind
from dlmrl_kit.audit import audit_algorithm, exact_estimator
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import RecipeError, RegistryError, UserError
from dlmrl_kit.core.keys import KEYS, declare_key
from dlmrl_kit.core.registry import KINDS, Slot
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.testing import ConformanceError, check_component

USES = ["shaper=Multiplied", "advantage=ShapedLeaveOneOut"]


@pytest.fixture
def shaping(install: Install) -> Any:
    """The plugin's module."""
    assert install("shaping", {"__init__.py": SHAPING}) == []
    return sys.modules["shaping"]


@pytest.mark.thorough
@pytest.mark.usefixtures("shaping")
def test_list_and_show_know_the_kind() -> None:
    listed = dlmrl("list", "shaper")
    assert listed.exit_code == 0
    assert "Multiplied" in listed.stdout
    assert "EntropyTopK" not in listed.stdout
    data = json.loads(dlmrl("show", "shaper", "--json").stdout)
    assert data["origin"] == "shaping"
    assert data["base"] == "shaping.Shaper"
    assert data["place"] == "slot Algorithm.shaper, one component, run before the advantage"
    assert [key["key"] for key in data["keys"]["writes"]] == ["shaping.reward"]
    assert data["components"] == ["shaping.shaper.Multiplied"]
    page = dlmrl("show", "Multiplied").stdout
    assert "reward after shaping" in page
    assert "--use shaper=Multiplied" in page
    again = dlmrl("show", "shaper").stdout  # now from the file that is kept
    assert "kind of component, from shaping" in again
    assert "did you mean 'shaper'" in dlmrl("list", "shaperr").output


@pytest.mark.usefixtures("shaping")
def test_a_recipe_fills_the_slot_and_the_plan_places_it() -> None:
    recipe = load_recipe("egspo", uses=USES, sets=["Multiplied.factor = 3.0"])
    assert "Algorithm.shaper = @Multiplied()" in recipe.text()
    assert "Multiplied.factor = 3.0" in recipe.text()
    algorithm = recipe.build_algorithm()
    order = [stage.name for stage in make_plan(algorithm).rollout]
    assert order.index("FinalReward") < order.index("Multiplied") < order.index("ShapedLeaveOneOut")
    assert recipe_of(algorithm).build_algorithm().declared["shaper"][0].factor == 3.0
    empty = load_recipe("egspo", uses=["shaper=none"])
    assert "shaper" not in empty.text(header=False), "a recipe that leaves the slot empty does not need the plugin"


def test_another_plugin_of_two_leaves_recipes_alone(install: Install) -> None:
    before = load_recipe("egspo_sa").text()
    install("shaping", {"__init__.py": SHAPING})
    assert load_recipe("egspo_sa").text() == before


@pytest.mark.usefixtures("shaping")
def test_what_does_not_fit_is_refused_when_the_recipe_is_loaded() -> None:
    for options, message in [
        ({"uses": ["shaper=GroupMean"]}, "needs a shaper, GroupMean is an advantage; available shapers: Multiplied"),
        ({"uses": ["shaper=Multiplied+Multiplied"]}, "there is one shaper"),
        ({"sets": ["Algorithm.shaper = @GroupMean()"]}, "needs a shaper, GroupMean is an advantage"),
        ({"sets": ["Algorithm.shaper = 3"]}, "needs a shaper, got 3"),
        ({"sets": ["Algorithm.shapper = @Multiplied()"]}, "did you mean 'shaper'"),
        ({"uses": ["advantage=ShapedLeaveOneOut"]}, r"\('shaping', 'reward'\).*components that write it: shaper Multi"),
    ]:
        with pytest.raises(UserError, match=message):
            load_recipe("egspo", **cast(Any, options)).build()


@pytest.mark.thorough
@pytest.mark.usefixtures("shaping")
def test_a_run_uses_it(tmp_path: Path) -> None:
    plain, doubled = tmp_path / "plain", tmp_path / "doubled"
    train(doubled, "egspo", *BINDINGS, uses=("regulariser=none", *USES))
    train(plain, "egspo", *BINDINGS, uses=("regulariser=none", "advantage=LeaveOneOut"))
    norms = [load_run(folder).metrics["grad_norm"].iloc[0] for folder in (plain, doubled)]
    assert norms[0] > 0
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-5)
    assert dlmrl("eval", str(doubled), "--size", "2").exit_code == 0


@pytest.mark.thorough
def test_the_audit_measures_it(shaping: Any) -> None:
    parts = {"shaper": [shaping.Multiplied(3.0)], "advantage": shaping.ShapedLeaveOneOut()}
    estimator = exact_estimator(LowConfidence(3), cast(Swaps, parts))
    report = audit_algorithm(estimator, problems=1)
    assert report.measured[0].scale == pytest.approx(3.0)
    assert report.measured[0].relative_bias_after_scale == pytest.approx(0, abs=1e-9)
    assert [cause.slot for cause in report.attribution if cause.slot == "shaper"] == ["shaper"]


@pytest.mark.thorough
def test_conformance_runs_the_checks_of_the_kind(shaping: Any) -> None:
    check_component(shaping.Multiplied(0.5))
    check_component(shaping.ShapedLeaveOneOut())  # reads the declared key
    with pytest.raises(ConformanceError, match="turns the order of rewards round"):
        check_component(shaping.Multiplied(-1.0))


def test_a_component_must_write_what_its_kind_writes(shaping: Any) -> None:
    class Forgetful(shaping.Shaper):  # type: ignore[misc]
        out_keys = [("shaping", "other")]

        def shaped(self, tensordict: Any) -> Any:
            return tensordict

    parts = {"shaper": [Forgetful()], "advantage": shaping.ShapedLeaveOneOut()}
    with pytest.raises(RecipeError, match=r"Forgetful does not list \('shaping', 'reward'\) in out_keys"):
        make_plan(exact_estimator(LowConfidence(3), cast(Swaps, parts)))


def test_a_component_that_waits_for_the_slot_it_comes_before_is_refused(shaping: Any) -> None:
    late = shaping.Multiplied()
    late.in_keys = ["advantage", "reward"]
    with pytest.raises(RecipeError, match="runs before the advantage, but it reads 'advantage', which LeaveOneOut"):
        make_plan(exact_estimator(LowConfidence(3), cast(Swaps, {"shaper": [late]})))


def test_everything_is_gone_when_the_plugin_is(install: Install) -> None:
    before = (dict(KINDS), dict(BASE_CLASSES), dict(KEYS))
    text = "\nraise RuntimeError('no luck')\n"
    report = install("shaping", {"__init__.py": SHAPING + text})
    assert "is skipped: RuntimeError: no luck" in report[0]
    assert before == (KINDS, BASE_CLASSES, KEYS)
    with pytest.raises(UserError, match="has no parameter 'shaper'"):
        load_recipe("egspo", sets=["Algorithm.shaper = @Multiplied()"])
    with pytest.raises(UserError, match=r"no filter named 'shaping\.shaper\.Multiplied'.*RuntimeError: no luck"):
        load_recipe("egspo", sets=["Algorithm.filter = @shaping.shaper.Multiplied()"])


class Base(Component):
    """A base class."""


class Odd(Component):
    """A base class with malformed keys."""


Odd.in_keys = "reward"


@pytest.mark.parametrize(
    ("name", "given", "cls", "message"),
    [
        ("Shaper", {}, Base, "should be a word in small letters"),
        ("class", {}, Base, "should be a word in small letters"),
        ("selector", {}, Base, "another meaning"),
        ("recipes", {}, Base, "another meaning"),
        ("logger", {}, Base, "another meaning"),
        ("probe", {"summary": " "}, Base, "summary should say"),
        ("probe", {"slot": Slot(before="sampler")}, Base, "slot should be"),
        ("probe", {"slot": "advantage"}, Base, "slot should be"),
        ("probe", {"slot": Slot(before="advantage")}, object, "must inherit from dlmrl_kit.core.component.Component"),
        ("probe", {"slot": Slot(before="advantage")}, Odd, "in_keys must be a list of keys"),
        ("probe", {}, Selector, "is a selector"),
        ("probe", {}, len, "is for the base class of the kind"),
    ],
)
def test_a_kind_that_cannot_be_is_refused(name: str, given: dict[str, Any], cls: Any, message: str) -> None:
    own = cls if not isinstance(cls, type) or cls is Odd else type("Own", (cls,), {"__module__": "acme.kinds"})
    with pytest.raises(RegistryError, match=message):
        declare_kind(name, **{"summary": "what it is for", **given})(own)
    assert name not in KINDS or KINDS[name].package == "dlmrl_kit"


def test_two_packages_cannot_declare_one_kind(shaping: Any) -> None:
    with pytest.raises(RegistryError, match="package 'shaping' has declared it with the base class shaping"):
        declare_kind("shaper", summary="mine")(type("Shaper", (), {"__module__": "acme"}))
    declare_kind("shaper", summary="as a module that is loaded again does")(
        type("Shaper", (Component,), {"__module__": "shaping"})
    )


@pytest.mark.parametrize(
    ("key", "dtype", "shape", "message"),
    [
        (("acme", "x"), "float33", "[B]", "write a dtype of"),
        (("acme", "x"), "float32", "[K]", "with B first"),
        (("acme", "x"), "float32", "[B, Q]", "in the letters"),
        (("acme", "x"), "float32", "B", "in the letters"),
        ("reward", "float64", "[B]", "declared already"),
    ],
)
def test_a_key_that_cannot_be_is_refused(key: Any, dtype: str, shape: str, message: str) -> None:
    before = dict(KEYS)
    with pytest.raises(RegistryError, match=message):
        declare_key(key, dtype, shape, "anything")
    assert before == KEYS
