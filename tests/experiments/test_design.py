"""The design of an ablation: variants differ in the swapped slot alone."""

from __future__ import annotations

from typing import Any

import pytest
from support.fake_runs import SWAPS, design

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.experiments.difference import compare
from dlmrl_kit.recipe.load import load_recipe


def test_variants_differ_in_the_swapped_slot_alone() -> None:
    made = design(["selector=EntropyTopK,UniformSteps,AllSteps", "regulariser=none,KLK1+KLK2"], seeds=2)
    names = [variant.name for variant in made.variants]
    assert names == [
        *("base", "selector=UniformSteps", "selector=AllSteps"),
        *("regulariser=none", "regulariser=KLK1+KLK2"),
    ]
    assert len({variant.folder for variant in made.variants}) == 5
    uniform = made.variants[1].difference
    assert uniform is not None
    assert uniform.slot == ("Algorithm.selector", "EntropyTopK", "UniformSteps")
    # The recipe binds Selector.k, which carries over, and whose entropy steps are chosen by, which does not.
    assert uniform.only_base == {"EntropyTopK.k": "4", "EntropyTopK.distribution": "'behaviour'"}
    assert uniform.only_variant == {"UniformSteps.k": "4"}
    assert str(uniform).startswith(
        "differs in Algorithm.selector (EntropyTopK -> UniformSteps), EntropyTopK.k = 4 (base only), "
        "EntropyTopK.distribution = 'behaviour' (base only), UniformSteps.k = 4 (variant only); the other "
    )
    assert uniform.equal == len(made.variants[0].recipe.bindings) - 3
    assert "selector=EntropyTopK is the base recipe's own, and is not run twice" in made.notes
    assert any("AllSteps takes no parameter k" in note for note in made.notes)
    for variant in made.variants:
        assert variant.updates == 20
        for seed, text in variant.texts.items():
            assert f"\nTrainer.seed = {seed}" in text
    assert made.label("base") == "base (selector=EntropyTopK, regulariser=KLK3)"


def test_settings_of_one_variant_are_for_that_variant() -> None:
    sets = ["EntropyTopK.k=2", "UniformSteps.k=3", "Trainer.updates=5"]
    made = design(["selector=UniformSteps,FirstK"], sets=sets)
    found = [variant.recipe.bindings for variant in made.variants]
    assert found[0]["EntropyTopK.k"].value == 2
    assert found[1]["UniformSteps.k"].value == 3
    assert found[2]["FirstK.k"].value == 4
    assert all(bindings["Trainer.updates"].value == 5 for bindings in found)
    assert "--set UniformSteps.k=3 is for selector=UniformSteps only" in made.notes
    assert any(
        note.startswith("selector=UniformSteps: UniformSteps.k is 3, but EntropyTopK.k is 2") for note in made.notes
    )


def test_what_a_swapped_sampler_changes_besides_is_said() -> None:
    assert any(note.startswith("sampler: ") for note in design(["sampler=RandomOrder"], seeds=1).notes)


@pytest.mark.parametrize(
    ("swaps", "options", "message"),
    [
        (["selector"], {}, "--swap selector: write --swap KIND=A,B"),
        (["selector=FirstK,"], {}, "write --swap KIND=A,B"),
        (["selecter=FirstK"], {}, "selecter=FirstK: no slot named 'selecter'; did you mean 'selector'"),
        (["selector=First"], {}, "selector=First: no selector named 'First'; did you mean 'FirstK'"),
        (["selector=EntropyTopK"], {}, "nothing to compare: selector=EntropyTopK is the base recipe's own"),
        (["loss=none"], {}, "loss=none: a loss is needed"),
        (["logger=none"], {}, "logger=none: an ablation reads metrics.csv"),
        (SWAPS, {"seeds": 0}, "at least one seed"),
        (SWAPS, {"sets": ["Trainer.seed=1"]}, "base: --set Trainer.seed=1: an experiment sets the seeds itself"),
        (SWAPS, {"sets": ["LastK.k=1"]}, "LastK.k=1 has no effect: .*; no variant uses it either"),
        (SWAPS, {"sets": ["UniformStep.k=1"]}, "base: --set UniformStep.k=1: no component named 'UniformStep'"),
        (
            SWAPS,
            {"sets": ["UniformSteps.k=0"]},
            "selector=UniformSteps: .*UniformSteps.k must be an integer, at least 1",
        ),
        (SWAPS, {"recipe": "pretrain_sudoku4x4"}, "base: pretrain_sudoku4x4 is a recipe for Pretraining"),
        (SWAPS, {"recipe": "nothing"}, "base: no recipe named 'nothing'"),
        (
            ["likelihood=StepLogProb"],
            {"uses": ["loss=TokenPPO"]},
            r"likelihood=StepLogProb: .* TokenPPO reads \('selected', 'token_log_prob'\)",
        ),
    ],
)
def test_mistakes_name_the_variant(swaps: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        design(swaps, **options)


def test_recipes_that_differ_in_more_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def sloppy(source: Any, *, uses: Any, sets: Any, allow_imports: bool) -> Any:
        more = ["Trainer.learning_rate=0.5"] if "selector=FirstK" in uses else []
        return load_recipe(source, uses=uses, sets=[*sets, *more], allow_imports=allow_imports)

    monkeypatch.setattr("dlmrl_kit.experiments.design.load_recipe", sloppy)
    with pytest.raises(
        UserError, match=r"selector=FirstK differs .* Trainer.learning_rate: 0.0003 in the base, 0.5 here"
    ):
        design()


def test_comparing_looks_at_scopes_and_parts_of_components() -> None:
    sets = ["OneStepDenoise.baseline=@a/GroupZScore()", "a/GroupZScore.eps=0.1"]
    base, variant = load_recipe("egspo_sa"), load_recipe("egspo_sa", sets=sets)
    assert compare(base, variant, "selector").unwanted.startswith("OneStepDenoise.baseline: @GroupMean() in the base")
    assert compare(base, load_recipe("egspo_sa", uses=["advantage=GroupMean"]), "advantage").unwanted == ""
    assert compare(base, load_recipe("egspo_sa", uses=["loss=Reinforce"]), "selector").unwanted
