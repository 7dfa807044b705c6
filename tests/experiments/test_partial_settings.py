"""Recipes of experiments: the texts of all seeds from one of them, and a task that is built once."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.experiments.partial_settings import seed_key_of, texts_of_seeds
from dlmrl_kit.experiments.referee.entries import make_entries
from dlmrl_kit.experiments.referee.spec import Spec
from dlmrl_kit.recipe.load import load_recipe, recipe_names
from dlmrl_kit.tasks.json_lines import JsonLines

SEEDS = (0, 1, 7, 1000)
"""0 is the default of a trainer's seed, which a resolved recipe says."""


def check_texts(name: str, first: int) -> None:
    key = seed_key_of(load_recipe(name))
    texts = texts_of_seeds(load_recipe(name, sets=[f"{key} = {first}"]), key, SEEDS)
    for seed in SEEDS:
        assert texts[seed] == load_recipe(name, sets=[f"{key} = {seed}"]).text(header=False)
    assert len({*texts.values()}) == len(SEEDS)


@pytest.mark.parametrize("first", SEEDS[:2])
def test_texts_of_seeds_are_those_of_recipes_that_are_loaded_with_them(first: int) -> None:
    check_texts("egspo_sa", first)


@pytest.mark.thorough
def test_texts_of_seeds_of_all_recipes() -> None:
    for name in recipe_names():
        if load_recipe(name).root == "Algorithm":
            check_texts(name, 1)


def test_the_settings_of_a_slot_are_all_below_it_and_nothing_else() -> None:
    given = {"uses": ["sampler=Speculative"]}
    sets = ["Speculative.sampler = @LowConfidence()"]
    plain = load_recipe("egspo_sa", sets=sets, **given)
    changes = {
        "task": "Sudoku4x4.min_empty = 3",
        "sampler": "LowConfidence.temperature = 0.7",  # which Speculative refers to
        "trainer": "Trainer.learning_rate = 0.5",
    }
    others = {slot: load_recipe("egspo_sa", sets=[*sets, change], **given) for slot, change in changes.items()}
    for changed, other in others.items():
        for slot in others:
            assert (plain.settings_of(slot) == other.settings_of(slot)) == (slot != changed)


def test_what_is_given_is_not_built_again() -> None:
    first = load_recipe("egspo_sa").build_algorithm()
    again = load_recipe("egspo_sa", sets=["Trainer.updates = 3"]).build_algorithm(task=first.task)
    assert again.task is first.task
    assert again.trainer.updates == 3


def test_a_comparison_builds_a_task_once_and_still_finds_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two recipes, two learning rates, three seeds and a file of examples that is read once."""
    read: list[str] = []
    constructor = JsonLines.__init__

    @functools.wraps(constructor)
    def counted(self: JsonLines, *args: object, **kwargs: object) -> None:
        read.append("once")
        constructor(self, *args, **kwargs)  # type: ignore[arg-type]

    examples = "".join(f'{{"prompt": "{number}", "answer": "{number}"}}\n' for number in range(40))
    path = tmp_path / "examples.jsonl"
    path.write_text(examples)
    sets = (f"JsonLines.path = {str(path)!r}", "JsonLines.reward = 'operator:eq'")
    spec = Spec(
        recipes=("egspo", "grpo_steps"),
        base="egspo",
        forwards=4000,
        validation=5,
        grid={"Trainer.learning_rate": ("1e-4", "1e-3")},
        sets=sets,
        uses=("task=JsonLines",),
    )
    counts = {f"default/{name}": 400.0 for name in spec.recipes}
    monkeypatch.setattr(JsonLines, "__init__", counted)
    entries = make_entries(spec, counts)
    assert read == ["once"]
    assert [len(variant.texts) for entry in entries for variant in entry.variants] == [4] * 4
    refused = Spec(**{**vars(spec), "grid": {"Trainer.learning_rate": ("1e-4", "-1.0")}})
    with pytest.raises(RecipeError, match="learning_rate"):
        make_entries(refused, counts)
