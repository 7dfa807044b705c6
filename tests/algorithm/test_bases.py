"""Slots take components of their kind, also where Python code fills them."""

from __future__ import annotations

from typing import Any

import pytest

from dlmrl_kit import load_policy
from dlmrl_kit.algorithm.bases import BASE_CLASSES, check_kinds
from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.audit import exact_estimator
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.regularisers.kl import KLK3
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.training.start import start_training


@pytest.mark.parametrize(
    "slot", ["sampler", "selector", "advantage", "likelihood", "loss", "cache", "correction", "filter"]
)
def test_a_component_of_another_kind_is_refused_by_its_slot(slot: str) -> None:
    estimator: Any = exact_estimator(RandomOrder(4))
    filling: Any = [KLK3()] if slot == "filter" else KLK3()
    setattr(estimator, "filters" if slot == "filter" else slot, filling)
    with pytest.raises(RecipeError, match=f"{slot} takes a {BASE_CLASSES[slot].__name__}, not KLK3"):
        make_plan(estimator)


def test_a_loaded_model_is_no_policy_slot() -> None:
    algorithm: Any = load_recipe("egspo_sa").build_algorithm()
    algorithm.policy = load_policy("shipped:sudoku4x4")
    with pytest.raises(
        RecipeError, match=r"policy takes a PolicySource, not TransformersPolicy; .* Pretrained\(path\)"
    ):
        start_training(algorithm)


def test_only_optional_slots_may_be_empty() -> None:
    check_kinds({"cache": None, "correction": None, "filter": []})
    with pytest.raises(RecipeError, match="selector takes a Selector, not NoneType"):
        check_kinds({"selector": None})
