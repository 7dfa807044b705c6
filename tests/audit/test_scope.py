"""What a verdict covers is said with it, what of a recipe it leaves out is named, and later steps can be audited."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from support.kit_recipes import kit_recipes

from dlmrl_kit.audit import AuditReport, Problem, audit_algorithm, audit_recipe, exact_estimator
from dlmrl_kit.audit.attribution import Spread
from dlmrl_kit.audit.scope import scope_of
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.report.audit_tables import audit_result
from dlmrl_kit.samplers.left_to_right import LeftToRight

SMALL = Problem(vocab=2, length=2, policy="network", seed=5)


def audited(name: str, sets: tuple[str, ...] = (), **options: Any) -> AuditReport:
    small = ("Trainer.prompts_per_update = 2", *sets)
    return audit_recipe(name, problems=[SMALL], attribution=False, sets=small, **options)


def printed(report: AuditReport) -> str:
    console = Console(width=400, file=io.StringIO())
    console.print(audit_result(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", [name for name in kit_recipes() if name != "vrpo"])
def test_what_a_recipe_does_besides_is_named(name: str) -> None:
    algorithm = load_recipe(name).build_algorithm()
    trainer, scope = algorithm.trainer, scope_of(algorithm, 2, algorithm.trainer.prompts_per_update)
    assert scope.covers.startswith(f"the first gradient of a rollout of {trainer.prompts_per_update} prompts")
    assert "without regularisers, before gradient clipping and the optimiser" in scope.covers
    assert scope.optimiser_steps == trainer.minibatches * trainer.inner_iterations
    text = "; ".join(scope.left_out)
    assert f"Trainer.max_grad_norm = {trainer.max_grad_norm:g} and AdamW" in text
    assert (f"Trainer.minibatches = {trainer.minibatches}: " in text) == (trainer.minibatches > 1)
    assert (f"Trainer.inner_iterations = {trainer.inner_iterations}: " in text) == (trainer.inner_iterations > 1)
    assert all(f"{type(term).__name__}: a regulariser" in text for term in algorithm.regularisers)


def test_the_verdict_of_several_steps_says_that_it_is_of_the_first() -> None:
    report = audited("agrpo")
    assert report.verdict.startswith("unbiased up to")
    assert report.sentence == f"{report.verdict}. This is the first of 2 optimiser steps on a rollout"
    text = printed(report)
    assert report.sentence in text
    assert "This covers the first gradient of a rollout of 2 prompts with 2 completions each" in text
    assert "Left out: Trainer.minibatches = 2: minibatches after the first are off-policy" in text
    found = report.to_json()
    assert found["covers"] == report.scope.covers  # type: ignore[union-attr]
    assert "Trainer.minibatches = 2" in " ".join(found["left_out"])  # type: ignore[arg-type]
    assert audited("reinforce_exact").sentence == "unbiased"
    bare = audit_algorithm(exact_estimator(LeftToRight(2)), problems=[SMALL], attribution=False)
    assert bare.sentence == bare.verdict == "unbiased"
    assert bare.scope is not None
    assert bare.scope.left_out == ()


def later(name: str, *sets: str) -> AuditReport:
    return audited(name, ("Trainer.max_grad_norm = 1e6", *sets), later_steps=True, batches=40)


@pytest.mark.thorough
def test_later_steps_add_a_bias_that_grows_with_the_learning_rate() -> None:
    added = []
    for rate in ("1e-6", "1e-1"):
        report = later("agrpo", "Trainer.inner_iterations = 2", f"Trainer.learning_rate = {rate}")
        assert [step.step for step in report.later_steps] == [2, 3, 4]
        assert all(step.interval[0] <= step.added <= step.interval[1] for step in report.later_steps)
        added.append(max(step.added for step in report.later_steps))
    assert added[0] < 1e-3
    assert added[1] > 0.01
    assert "; later ones add a relative bias of" in report.sentence


@pytest.mark.thorough
def test_a_ratio_makes_later_steps_less_biased() -> None:
    """Without a ratio a second pass takes the old policy's samples for the new one's."""
    sets = ("Trainer.inner_iterations = 3", "Trainer.learning_rate = 0.1", "Trainer.prompts_per_update = 32")
    plain = later("reinforce_exact", *sets).later_steps[-1]
    corrected = audit_recipe(
        "reinforce_exact",
        problems=[SMALL],
        attribution=False,
        uses=["loss=SequencePPO"],
        sets=[*sets, "SequencePPO.clip_low = 1.0", "SequencePPO.clip_high = 100.0", "Trainer.max_grad_norm = 1e6"],
        later_steps=True,
        batches=40,
    ).later_steps[-1]
    assert corrected.interval[1] < plain.interval[0]


@pytest.mark.thorough
def test_parameters_are_put_back_and_one_step_has_no_later_ones() -> None:
    before = [p.detach().clone() for p in SMALL.denoiser.parameters()]
    assert later("reinforce_exact").later_steps == []
    report = later("d1", "Trainer.learning_rate = 0.1")
    assert len(report.later_steps) == 3
    assert Spread.of(step.added for step in report.later_steps).max is not None
    after = list(SMALL.denoiser.parameters())
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)


def test_a_later_step_is_reported() -> None:
    report = audited("agrpo", later_steps=True, batches=3)
    (step,) = report.later_steps
    assert step.step == 2
    assert report.to_json()["later_steps"] == [{"step": 2, "added": step.added, "interval": step.interval}]
