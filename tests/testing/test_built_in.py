"""Every built-in component conforms."""

from __future__ import annotations

from typing import Any

import pytest
from support.collectors import Here

from dlmrl_kit.advantages.group_z_score import GroupZScore
from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.advantages.monte_carlo import MonteCarlo
from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise
from dlmrl_kit.filters.success_range import SuccessRange
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.losses.linearised_bound import LinearisedBound
from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.normalisers.means import FixedLength, PerSequence
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.regularisers.kl import KLK3, TokenKLK3
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.samplers.tempered import TemperedLowConfidence
from dlmrl_kit.schedules.curves import Linear
from dlmrl_kit.selectors.entropy_bound import EntropyBound
from dlmrl_kit.selectors.entropy_coverage import EntropyCoverage
from dlmrl_kit.selectors.entropy_importance import EntropyImportance
from dlmrl_kit.selectors.k_steps import FirstK, LastK, UniformSteps
from dlmrl_kit.selectors.random_steps import RandomSteps
from dlmrl_kit.selectors.top_k import EntropyTopK
from dlmrl_kit.step_schedules.linear_time_steps import LinearTimeSteps
from dlmrl_kit.tasks.countdown import Countdown
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.testing import parametrize_with_checks

CONFIGURED = [
    LowConfidence(12, 2),
    LowConfidence(8, 1, block_length=4, temperature=0.7, top_k=4),
    LowConfidence(9, 2, temperature=0.0),
    TemperedLowConfidence(10, LinearTimeSteps(7), block_length=7, temperature=0.7, top_k=4),
    PlackettLuceOrder(10, 3, top_p=0.8, order_temperature=0.5),
    ConfidenceThreshold(10, threshold=0.3, block_length=5),
    RandomOrder(9, 2, stop_at_eos=False),
    LeftToRight(7, 3, block_length=5),
    *(cls(k) for cls in (EntropyTopK, FirstK, LastK, RandomSteps, UniformSteps, EntropyImportance) for k in (1, 3)),
    EntropyCoverage(0.4, max_steps=2),
    EntropyBound(0.3),
    OneStepDenoise(Linear(1.0, 0.0), normalise=False, baseline=LeaveOneOut()),
    MonteCarlo(2, 0),
    StepTokenLogProb(sampling_temperature=False),
    KLK3(0.1, to="old"),
    GroupZScore(0.0, correction=1),
    SuccessRange(0.5, 1.0, success=0.5),
    FixedLength(12),
    TokenPPO(normaliser=PerSequence()),
    LinearisedBound(0.01, 0.02, dual_clip=1.05),
    TokenKLK3(0.01, "old", FixedLength()),
]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "Continuous": {"sampler": LowConfidence(12, 2), "states": 5},
    "Speculative": {"sampler": LowConfidence(12, 2)},
    "OneUpdateBehind": {"collector": Here()},
    "ReasoningGym": {"dataset": "chain_sum"},
    "Mixture": {"tasks": [Sudoku4x4(num_train=40), Countdown(num_train=40)]},
}
"""Arguments of components whose defaults do not work offline, or that have none."""
NEEDS_FILES = {"JsonLines", "GSM8K", "MATH", "CountdownNumbers", "Sudoku4x4Puzzles", "Questions"}
NEEDS_FILES |= {"HumanEval", "MBPP", "KodCode", "Conversations", "SubwordLlama"}
"""Components that need files of the user's; tests/tasks holds their tests."""
NEEDS_A_CLUSTER = {"Ray"}
"""Components that need a cluster: tests/collectors holds their tests."""
NEEDS_A_SERVICE = {"WandB", "MLflow", "Trackio"}
"""Components that would look for a service on the network: tests/loggers holds their tests."""
LEFT_OUT = NEEDS_FILES | NEEDS_A_CLUSTER | NEEDS_A_SERVICE
KIT = [entry for entry in components() if entry.package == "dlmrl_kit" and entry.name not in LEFT_OUT]
BUILT_IN = [entry.cls(**ARGUMENTS[entry.name]) if entry.name in ARGUMENTS else entry.cls for entry in KIT]


@pytest.mark.thorough
@parametrize_with_checks([*BUILT_IN, *CONFIGURED])
def test_built_in_components_conform(component: Any, check: Any) -> None:
    check(component)
