"""N processes take the updates that one takes: metrics and weights, to 1e-9 in float64, so that no fault hides."""

from __future__ import annotations

import functools

import pytest
from support.kit_recipes import kit_recipes
from support.several import Given, Pool, compare, updates

EXACT = 1e-9
OPEN = ["SuccessRange.low = 0.0", "SuccessRange.success = 0.3"]
DEEP = ["Sampler.block_length = 8", "CharacterLlama.num_layers = 2", "CharacterLlama.hidden_size = 16"]
CACHED = ["cache=DualCache", "policy=CharacterLlama", "regulariser=EntropyBonus"]
"""For cached rollouts: of one layer a cache is exact. A random model gets no reward; its entropy has a gradient."""

RECIPES: dict[str, Given] = {name: (name, [], []) for name in kit_recipes()}
RECIPES |= {name: (name, OPEN, []) for name in ("tracerl", "tracerl_value", "unigrpo")}
RECIPES["lightning_rl"] = ("lightning_rl", [*OPEN, "DropEqualSpeeds.least = 0.0", "SuccessNLL.success = 0.3"], [])
"""Every recipe; where a filter would keep nothing of the tiny model's, it is opened."""

P1, P2, P5 = ([f"Trainer.prompts_per_update = {number}"] for number in (1, 2, 5))
MIDDLE = ["SuccessRange.low = 0.3", "SuccessRange.high = 0.7"]
FILTERED = ["filter=SuccessRange"]

CASES: dict[str, Given] = {
    "fewer prompts than processes": ("egspo_sa", P1, []),
    "uneven shares": ("egspo_sa", [*P5, "Trainer.minibatches = 3"], []),
    "minibatches of one sample": ("egspo", [*P2, "Trainer.minibatches = 6"], []),
    "passes": ("egspo_sa", ["Trainer.inner_iterations = 3"], []),
    "micro-batches": ("egspo_sa", ["Trainer.micro_batch_size = 2", "Trainer.rollout_batch_size = 5"], []),
    "pieces": ("espo", ["Trainer.micro_batch_tokens = 40"], []),
    "filter of equal rewards": ("egspo_sa", P5, ["filter=DropEqualRewards"]),
    "filter that keeps few": ("egspo", [*P5, *MIDDLE, "SuccessRange.success = 0.25"], FILTERED),
    "filter that keeps one group, then none": ("egspo", [*P5, *MIDDLE, "SuccessRange.success = 0.35"], FILTERED),
    "pairs, filtered": ("vrpo", [*P5, "Trainer.minibatches = 2"], ["filter=DropEqualRewards"]),
    "masks of each pass": ("wd1", ["Trainer.inner_iterations = 2"], []),
    "scheduled masks": (
        "unigrpo",
        [*OPEN, "WholeSequence.draws = 1", "Trainer.inner_iterations = 2", "ScheduledMask.inner_iterations = 2"],
        ["likelihood=ScheduledMask"],
    ),
    "cache, truncated": ("egspo", DEEP, [*CACHED, "correction=TruncatedImportance"]),
    "cache, trajectories": ("egspo", [*DEEP, *P2], [*CACHED, "correction=TrajectoryImportance"]),
    "cache, filtered": ("egspo", [*DEEP, *OPEN], [*CACHED, "correction=Uncorrected", *FILTERED]),
    "adaptive refresh": ("egspo", DEEP, ["cache=AdaptiveRefresh", *CACHED[1:]]),
    "low-rank adapter": ("egspo_sa", ["Pretrained.lora_rank = 2"], []),
    "value model, one sample each": ("tracerl_value", [*OPEN, "Trainer.minibatches = 6"], []),
    "learned order": ("egspo_sa", P5, ["sampler=LearnedOrder", "likelihood=StepLogProb"]),
    "ordered draws": ("egspo", [], ["sampler=PlackettLuceOrder", "likelihood=StepLogProb"]),
    "random steps": ("egspo", ["RandomSteps.k = 2"], ["selector=RandomSteps"]),
    "sampled steps": ("egspo", [], ["selector=EntropyImportance"]),
    "restarts": ("egspo", ["MonteCarlo.n = 2"], ["advantage=MonteCarlo"]),
    "exact KL and entropy": ("egspo_sa", [], ["regulariser=KLExact+EntropyBonus"]),
    "tokens of uneven rows": (
        "dipo",
        ["ConfidenceThreshold.threshold = 0.35"],
        ["loss=TokenPPO", "regulariser=TokenKLK2"],
    ),
}
"""What couples the samples of a batch, and splits that leave a process with little or nothing."""

MUST = {label: ["correction/drift"] for label in CASES if label.startswith("cache")} | {
    "filter that keeps few": ["kept"]
}
"""Metrics without which, or at 0, a case would show nothing."""


def check(pool: Pool, label: str, given: Given, worlds: tuple[int, ...] = (1, 2, 3)) -> None:
    metrics = compare(pool.run(updates, given, worlds=worlds), EXACT)
    assert all(update[name] > 0 for name in MUST.get(label, ()) for update in metrics)
    assert max(update["grad_norm"] for update in metrics if "grad_norm" in update) > 1e-4


@pytest.mark.thorough
def test_the_default_recipe(pool: Pool) -> None:
    check(pool, "", ("egspo_sa", [], []))


@pytest.mark.thorough
def test_float32(pool: Pool) -> None:
    """Rounding is what is left: of the order of what other micro-batches change in one process."""
    given = ("egspo", ["Trainer.learning_rate = 1e-4"], [])
    compare(pool.run(functools.partial(updates, double=False), given), 1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(pool: Pool, name: str) -> None:
    """In three processes, which share four prompts unevenly; the cases below run in two as well."""
    check(pool, name, RECIPES[name], (1, 3))


@pytest.mark.thorough
@pytest.mark.parametrize("label", CASES)
def test_a_case(pool: Pool, label: str) -> None:
    check(pool, label, CASES[label])
