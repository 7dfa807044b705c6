"""The recipe of an algorithm that was built in Python says what the algorithm is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dlmrl_kit as dk
from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.registry import register, registered, unregister
from dlmrl_kit.losses import StepPPO
from dlmrl_kit.recipe.load import load_recipe, recipe_names
from dlmrl_kit.recipe.of_algorithm import recipe_of
from dlmrl_kit.recipe.resolve import Block


def algorithm(**slots: Any) -> Algorithm:
    built = load_recipe("egspo_sa").build_algorithm()
    for slot, filling in slots.items():
        setattr(built, slot, filling)
    return built


def parameters(blocks: tuple[Block, ...]) -> dict[str, object]:
    """What the components of a recipe are given, without what a constructor fills in for None."""
    return {
        bound.key: bound.value for block in blocks[1:] for bound in block.parameters.values() if bound.text != "None"
    }


FEW = ("egspo_sa", "tracerl_value")
"""Recipes whose components are held by others, shared, or several of a class."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FEW else pytest.mark.thorough) for name in recipe_names()]
)
def test_the_recipe_of_what_a_recipe_builds_says_the_same(name: str, tmp_path: Path) -> None:
    given = load_recipe(name)
    built = given.build()
    if not isinstance(built, Algorithm):
        pytest.skip("for pre-training")
    found = recipe_of(built)
    (tmp_path / "again.gin").write_text(found.text())
    assert load_recipe(tmp_path / "again.gin").text(header=False) == found.text(header=False)
    assert recipe_of(found.build_algorithm()).text() == found.text()
    before, after = parameters(given.blocks), parameters(found.blocks)
    numbers = {key: value for key, value in before.items() if isinstance(value, (int, float, str, bool))}
    assert {key: after[key] for key in numbers} == numbers


def test_two_of_a_class_keep_their_own_settings() -> None:
    terms = [dk.regularisers.KLK3(0.25), dk.regularisers.KLK3(0.5), dk.regularisers.EntropyBonus(0.125)]
    built = recipe_of(algorithm(regularisers=terms)).build_algorithm()
    assert [type(term).__name__ for term in built.regularisers] == ["KLK3", "KLK3", "EntropyBonus"]
    assert [term.coefficient for term in built.regularisers] == [0.25, 0.5, 0.125]  # type: ignore[attr-defined]


def test_a_setting_that_was_changed_is_what_counts() -> None:
    changed = algorithm()
    changed.trainer.updates = 7
    assert recipe_of(changed).build_algorithm().trainer.updates == 7


def test_a_component_that_is_not_registered_is_refused() -> None:
    class Unknown(StepPPO):
        """Not registered."""

    with pytest.raises(RecipeError, match=r'Algorithm.loss: Unknown is not registered.*@register\("loss"\)'):
        recipe_of(algorithm(loss=Unknown()))


def test_a_setting_that_no_recipe_holds_is_refused() -> None:
    changed = algorithm(loss=StepPPO())
    changed.loss.clip_low = object()  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"StepPPO.clip_low is <object .*>, which no recipe can hold"):
        recipe_of(changed)


def test_a_component_of_another_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match="loss takes a Objective, not EntropyTopK"):
        recipe_of(algorithm(loss=dk.selectors.EntropyTopK(k=2)))


@pytest.mark.parametrize(("module", "imports"), [("support.runs", ("import support.runs",)), ("__main__", ())])
def test_it_says_where_a_class_is_found(module: str, imports: tuple[str, ...]) -> None:
    cls = type("OwnLoss", (StepPPO,), {"__module__": module, "__doc__": "Of nobody.\n\nArguments as ``StepPPO``."})
    register("loss")(cls)
    try:
        recipe = recipe_of(algorithm(loss=cls()))
    finally:
        unregister(next(entry for entry in registered("loss") if entry.cls is cls))
    assert recipe.imports == imports
    assert [note.split()[0] for note in recipe.notes] == ([] if imports else ["OwnLoss"])


def test_a_cell_that_is_run_again_replaces_its_class() -> None:
    first, second = (type("CellLoss", (StepPPO,), {"__module__": "__main__", "__doc__": "A cell."}) for _ in "ab")
    try:
        register("loss")(first)
        register("loss")(second)
        assert [entry.cls for entry in registered("loss") if entry.name == "CellLoss"] == [second]
    finally:
        for entry in [entry for entry in registered("loss") if entry.name == "CellLoss"]:
            unregister(entry)


def test_a_component_tells_what_it_was_given() -> None:
    sampler = dk.samplers.LowConfidence(8, tokens_per_step=2)
    assert sampler.constructed_with == {"completion_length": 8, "tokens_per_step": 2}
