"""Every pair of components either trains a tiny update or is refused by the dataflow check with the reason."""

from __future__ import annotations

import ast
import itertools
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from support.runs import collect, old_difference, prepared

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import plain_key
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.recipe.catalogue import components, find
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training.loop import Run

TINY = (
    "CharacterLlama.hidden_size = 16",
    "CharacterLlama.num_layers = 1",
    "CharacterLlama.num_heads = 2",
    "Sampler.tokens_per_step = 4",
    "Trainer.prompts_per_update = 2",
    "Trainer.group_size = 2",
    "Sudoku4x4.num_train = 8",
    "Sudoku4x4.num_heldout = 4",
)
EGSPO = {
    "sampler": "LowConfidence",
    "selector": "EntropyTopK",
    "advantage": "GroupMean",
    "likelihood": "StepTokenLogProb",
    "loss": "StepPPO",
    "regulariser": "KLK3",
}
"""What the recipe is made of."""
TOGETHER = [
    (("sampler", "selector"), ("loss", "regulariser")),
    (("sampler", "advantage"), ("likelihood", "loss")),
    (("selector", "advantage"), ("likelihood", "regulariser")),
]
"""Kinds whose pairs are tried; a recipe takes a pair of two kinds and one of two others, where they fit together."""


@cache
def names(kind: str) -> list[str]:
    """The kit's components of a kind, but for samplers of models without a mask token."""
    return [c.name for c in components(kind) if c.package == "dlmrl_kit" and getattr(c.cls, "noise", "mask") == "mask"]


def lacking(uses: list[str], refusal: str) -> bool:
    """Whether a refused recipe was rightly refused: what a component misses is written by none of the recipe's."""
    found = re.search(r"reads (\(.*?\)|'\w+'), which no component before it writes", refusal)
    assert found, refusal
    parts = {**EGSPO, **dict(use.split("=") for use in uses)}
    keys = [find(name, kind).keys() for kind, name in parts.items()]
    return plain_key(ast.literal_eval(found[1])) not in {key for k in keys if k for key in (*k.writes, *k.on_demand)}


def build(uses: list[str]) -> Algorithm:
    of_another = {"sampler=Continuous", "sampler=Speculative"} & {*uses}
    free = {"sampler=BernoulliOrder", "sampler=ConfidenceThreshold", "sampler=TokenEditing", *of_another} & {*uses}
    sets = [b for b in TINY if not (b.startswith("Sampler.tokens") and free)]  # they decide themselves
    for use in of_another:
        sets += [f"{use.partition('=')[2]}.sampler = @LowConfidence()", "LowConfidence.tokens_per_step = 4"]
    recipe = load_recipe("egspo", uses=["policy=CharacterLlama", "logger=none", *uses], sets=sets)
    algorithm = recipe.build()
    assert isinstance(algorithm, Algorithm)
    return algorithm


def train_an_update(algorithm: Algorithm, folder: Path) -> None:
    run = Run(algorithm, folder, "pair", RunObserver())
    trajectory = prepared(run.update, collect(run).kept)
    old_difference(run.update, trajectory)
    metrics = run.update.learn(trajectory, 0)
    assert math.isfinite(metrics["loss"])
    assert metrics["skipped"] == 0
    assert all(bool(torch.isfinite(p).all()) for _, p in run.policy.trainable())


def legal(first: str, second: str) -> list[list[str]]:
    """The pairs of components of two kinds that the dataflow check lets pass; of the others it says the right thing."""
    found = []
    for a, b in itertools.product(names(first), names(second)):
        uses = [f"{first}={a}", f"{second}={b}"]
        refusal = None
        try:
            build(uses)
        except RecipeError as error:
            refusal = str(error)
        if refusal is None:
            found.append(uses)
        else:
            assert lacking(uses, refusal), f"{uses}: {refusal}"
    return found


def built(*several: list[str]) -> list[Algorithm]:
    """One algorithm with all pairs, or if they do not fit together one for each."""
    try:
        return [build([use for uses in several for use in uses])]
    except RecipeError:
        return [build(uses) for uses in several]


@pytest.mark.thorough
@pytest.mark.parametrize(("pair", "other"), TOGETHER)
def test_every_legal_pair_trains_and_every_other_is_refused(
    pair: tuple[str, str], other: tuple[str, str], tmp_path: Path
) -> None:
    for several in itertools.zip_longest(legal(*pair), legal(*other)):
        uses = [found for found in several if found]
        for algorithm in built(*uses):
            try:
                train_an_update(algorithm, tmp_path)
            except Exception as error:
                raise AssertionError(f"{uses}: {error}") from error
