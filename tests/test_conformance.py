"""Conformance: every built-in component passes, and each planted fault is caught by the check that is there for it."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.base import GroupAdvantage
from dlmrl_kit.advantages.group_z_score import GroupZScore
from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.advantages.monte_carlo import MonteCarlo
from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import (
    KEYS,
    SELECTED_ADVANTAGE,
    SELECTED_LOG_PROB,
    SELECTED_VALUE,
    SELECTED_WEIGHT,
    STEP_ENTROPY,
    STEP_VALID,
)
from dlmrl_kit.core.registry import KINDS, components, register, unregister
from dlmrl_kit.filters.base import Filter
from dlmrl_kit.filters.success_range import SuccessRange
from dlmrl_kit.likelihoods.base import Replay, replay
from dlmrl_kit.likelihoods.step_log_prob import StepLogProb
from dlmrl_kit.likelihoods.step_token_log_prob import StepTokenLogProb
from dlmrl_kit.loggers.base import Logger
from dlmrl_kit.loggers.metrics_csv import MetricsCSV
from dlmrl_kit.losses.base import Objective, weighted_sum
from dlmrl_kit.losses.dpo import DPO
from dlmrl_kit.losses.linearised_bound import LinearisedBound
from dlmrl_kit.losses.ppo import SequencePPO
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.normalisers.means import FixedLength, PerSequence
from dlmrl_kit.regularisers.kl import KLK1, KLK3, TokenKLK3
from dlmrl_kit.samplers.base import Decision, Sampler, View, token_log_prob
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.schedules.base import Schedule
from dlmrl_kit.schedules.curves import Linear
from dlmrl_kit.selectors.base import Selector, valid_entropy
from dlmrl_kit.selectors.entropy_bound import EntropyBound
from dlmrl_kit.selectors.entropy_coverage import EntropyCoverage
from dlmrl_kit.selectors.entropy_importance import EntropyImportance
from dlmrl_kit.selectors.k_steps import FirstK, LastK, UniformSteps
from dlmrl_kit.selectors.random_steps import RandomSteps
from dlmrl_kit.selectors.top_k import EntropyTopK
from dlmrl_kit.tasks.base import Example, Task
from dlmrl_kit.tasks.countdown import Countdown
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.testing import ConformanceError, check_component, checks_for, parametrize_with_checks
from dlmrl_kit.testing.world import world
from dlmrl_kit.values.base import Value

CONFIGURED = [
    LowConfidence(12, 2),
    LowConfidence(8, 1, block_length=4, temperature=0.7, top_k=4),
    LowConfidence(9, 2, temperature=0.0),
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
    "TorchRLLogger": {"backend": "csv"},
    "ReasoningGym": {"dataset": "chain_sum"},
    "Mixture": {"tasks": [Sudoku4x4(num_train=40), Countdown(num_train=40)]},
}
"""Arguments of components whose defaults do not work offline, or that have none."""
NEEDS_FILES = {"JsonLines"}
"""Components that need a file and a module of the user's; test_more_tasks holds their tests."""
KIT = [entry for entry in components() if entry.package == "dlmrl_kit" and entry.name not in NEEDS_FILES]
BUILT_IN = [entry.cls(**ARGUMENTS[entry.name]) if entry.name in ARGUMENTS else entry.cls for entry in KIT]


@parametrize_with_checks([*BUILT_IN, *CONFIGURED])
def test_built_in_components_conform(component: Any, check: Any) -> None:
    check(component)


# Planted faults. They are not registered, so check_registered fails for each of them too.


class MutatesInput(Selector):
    """Clips the entropies it was given in place."""

    def __init__(self) -> None:
        super().__init__(STEP_ENTROPY)

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        return (tensordict[STEP_ENTROPY].clamp_(min=0.5) >= 0.5) & tensordict[STEP_VALID]


class WritesMore(Selector):
    """Leaves a note."""

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        tensordict.set(("step", "note"), tensordict[STEP_VALID])
        return tensordict[STEP_VALID]


class WritesLess(GroupAdvantage):
    """Forgets to write."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict


class Peeks(Selector):
    """Looks at the rewards if there are any."""

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        reward = tensordict.get("reward", None)
        return tensordict[STEP_VALID] if reward is None else tensordict[STEP_VALID] & (reward > 0.25)[:, None]


class ReadsUndeclared(Selector):
    """Reads the entropies and does not say so."""

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        return valid_entropy(tensordict) > 0.5


class SelectsTwice(Selector):
    """Trains the first step twice."""

    def choose(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        step = torch.zeros_like(tensordict[STEP_VALID][:, :2], dtype=torch.int64)
        return step, torch.ones_like(step, dtype=torch.float64)


class SaysNested(Selector):
    """Takes the middle of a row: a longer row has another one."""

    nested = True

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        valid = tensordict[STEP_VALID]
        return valid & (torch.arange(valid.shape[1]) == valid.sum(-1, keepdim=True) // 2)


class SelectsPastTheEnd(Selector):
    """Takes the last step of the longest row."""

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        valid = tensordict[STEP_VALID]
        return torch.arange(valid.shape[1]).expand_as(valid) == valid.sum(-1).max() - 1


class UsesGlobalRandomState(Selector):
    """Draws from torch's global generator."""

    requires = ("generator",)

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        return tensordict[STEP_VALID] & (torch.rand(tensordict[STEP_VALID].shape) < 0.5)


class UsesPythonRandomState(Selector):
    """Draws from Python's global generator."""

    requires = ("generator",)

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        return tensordict[STEP_VALID] & (torch.arange(tensordict[STEP_VALID].shape[1]) < random.randint(1, 9))


class LooksAtPlaceInBatch(Selector):
    """Keeps more steps of later rows."""

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        valid = tensordict[STEP_VALID]
        return valid & (torch.arange(valid.shape[1]) <= torch.arange(len(valid))[:, None])


class ReadsPadding(Selector):
    """Does not look where a row ends when it sums entropies."""

    def __init__(self) -> None:
        super().__init__(STEP_ENTROPY)

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        entropy = tensordict[STEP_ENTROPY]
        return (entropy >= entropy.mean(-1, keepdim=True)) & tensordict[STEP_VALID]


class Undocumented(Selector):
    """Keeps the first steps."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        return tensordict[STEP_VALID] & (torch.arange(tensordict[STEP_VALID].shape[1]) < 2)


class UndocumentedError(Undocumented):
    """Keeps the first steps.

    Args:
        share: of what.
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        if not share > 0:
            raise ValueError("no")


class OddError(Undocumented):
    """Keeps the first steps.

    Args:
        share: of what.
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        assert share > 0


class WrongDtype(FirstK):
    """Writes float64 weights whatever comes in. Arguments as ``FirstK``."""

    def forward(self, tensordict: TensorDictBase, *, generator: torch.Generator | None = None) -> TensorDictBase:
        super().forward(tensordict)
        return tensordict.set(SELECTED_WEIGHT, tensordict[SELECTED_WEIGHT].double())


class WrongShape(LeaveOneOut):
    """Keeps a dimension too many."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        super().forward(tensordict)
        return tensordict.set("advantage", tensordict["advantage"][:, None])


class OnlyFloat32(LeaveOneOut):
    """Computes in single precision."""

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        return super().estimate(returns, group).float()


class NotCopied(LeaveOneOut):
    """Keeps a function that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.function = lambda x: x


class GroupsByPlace(GroupAdvantage):
    """Takes the ids of groups for indices."""

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        return returns * group


class NotFinite(GroupAdvantage):
    """Divides by a spread that may be 0."""

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        return (returns - returns.mean()) / returns.std(correction=0)


class LeaksGradient(Reinforce):
    """Does not detach the advantage."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        weight = tensordict[SELECTED_WEIGHT]
        product = torch.where(weight > 0, tensordict[SELECTED_ADVANTAGE], 0) * torch.where(
            weight > 0, tensordict[SELECTED_LOG_PROB], 0
        )
        return -weighted_sum(product, weight), {"log_prob": product.mean()}


class NoGradient(Reinforce):
    """Detaches too much."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        total, diagnostics = super().total(tensordict)
        return total.detach(), diagnostics


class WrongCount(Reinforce):
    """Counts one sample too many in every batch."""

    def count(self, tensordict: TensorDictBase) -> Tensor:
        return super().count(tensordict) + 1


class IgnoresWeights(Reinforce):
    """Gives every used slot the weight 1."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        return super().total(tensordict.clone().set(SELECTED_WEIGHT, (tensordict[SELECTED_WEIGHT] > 0).float()))


class MultipliesPadding(Objective):
    """Multiplies by the weight and nothing more."""

    def __init__(self) -> None:
        super().__init__([SELECTED_LOG_PROB, SELECTED_ADVANTAGE, SELECTED_WEIGHT])

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        return -(
            tensordict[SELECTED_WEIGHT].detach()
            * tensordict[SELECTED_ADVANTAGE].detach()
            * tensordict[SELECTED_LOG_PROB]
        ).sum(), {}


class NotScalar(TokenPPO):
    """Returns a diagnostic for every sample. Arguments as ``TokenPPO``."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        total, diagnostics = super().total(tensordict)
        return total, {**diagnostics, "ratio": tensordict[SELECTED_ADVANTAGE].sum(-1)}


class CutsSequences(SequencePPO):
    """Says that it is a sum over slots. Arguments as ``ClippedSequences``."""

    slotwise = True


class CutsGroups(DPO):
    """Does not say that it compares samples. Arguments as ``DPO``."""

    needs_groups = False


class WrongUnits(TokenPPO):
    """Says that its diagnostics are means over slots. Arguments as ``TokenPPO``."""

    def units(self, tensordict: TensorDictBase) -> Tensor:
        return Objective.units(self, tensordict)


class KeepsTheBest(Filter):
    """Keeps good samples."""

    def keep(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict["reward"] > 0.5


class KeepsTheFirst(Filter):
    """Keeps the group that comes first."""

    def keep(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict["group"] == tensordict["group"][0]


class SortsSamples(Filter):
    """Returns the samples by reward."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict[tensordict["reward"].argsort(stable=True)]


class ChangesWhatIsKept(Filter):
    """Centres the rewards that it keeps."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        kept = tensordict[torch.ones_like(tensordict["group"], dtype=torch.bool)]
        return kept.set("reward", kept["reward"] - 0.5)


class ChangesItsMind(Filter):
    """Keeps everything every other time."""

    calls = 0

    def keep(self, tensordict: TensorDictBase) -> Tensor:
        ChangesItsMind.calls += 1
        return torch.full_like(tensordict["group"], ChangesItsMind.calls % 2, dtype=torch.bool)


class EmptyShares(PerSequence):
    """Divides by a number of tokens that may be 0."""

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        return mask / (mask.sum(-1) * weight).sum(-1)[:, None, None]


class CountsTheBatch(FixedLength):
    """Divides by the longest sample of the batch. Arguments as ``FixedLength``.

    Args:
        length: ignored.
    """

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        return mask.to(weight.dtype) / mask.sum((1, 2)).max().clamp(min=1)


class CutsSamples(PerSequence):
    """Says that shares do not depend on other slots."""

    slotwise = True


class LetsPaddingIn(FixedLength):
    """Multiplies by the mask. Arguments as ``FixedLength``.

    Args:
        length: as there.
    """

    def total(self, values: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        return (self.shares(mask, weight) * weight[..., None] * values).sum()


class PlainValue(Value):
    """A linear function of what is at each position before the step."""

    def attach(self, policy: Any) -> None:
        self.head = torch.nn.Linear(policy.vocab_size, 1)

    def summary(self, state: Tensor) -> Tensor:
        return self.head(state).squeeze(-1)

    def forward(self, tensordict: TensorDictBase, *, policy: Any, sampler: Any) -> TensorDictBase:
        steps = replay(tensordict, policy.mask_id)
        state = torch.nn.functional.one_hot(steps.ids, policy.vocab_size).to(next(policy.parameters()).dtype)
        return tensordict.set(
            SELECTED_VALUE, steps.scatter(torch.where(steps.decision.committed, self.summary(state), 0.0))
        )


class NoValueHead(PlainValue):
    """Has nothing to train."""

    def attach(self, policy: Any) -> None:
        pass

    def summary(self, state: Tensor) -> Tensor:
        return state[..., 0].clone().requires_grad_()


class SharesThePolicy(PlainValue):
    """Trains the policy's weights as its own."""

    def attach(self, policy: Any) -> None:
        super().attach(policy)
        self.theirs = policy


class ValueWithoutGradient(PlainValue):
    """Detaches its values."""

    def summary(self, state: Tensor) -> Tensor:
        return super().summary(state).detach()


class CentresValues(PlainValue):
    """Subtracts the mean of the batch."""

    def summary(self, state: Tensor) -> Tensor:
        found = super().summary(state)
        return found - found.mean() if len(found) else found


class NotZero(KLK1):
    """A divergence with an offset. Arguments as ``KLEstimator``."""

    def estimate(self, log_ratio: Tensor) -> Tensor:
        return log_ratio + 0.1


class NoPolicyGradient(StepLogProb):
    """Computes without gradients."""

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase, **services: Any) -> TensorDictBase:
        return super().forward(tensordict, **services)


class CentresOverBatch(StepLogProb):
    """Subtracts the mean of the batch."""

    def estimate(self, steps: Replay, policy: Any, sampler: Any) -> dict[Any, Tensor]:
        found = super().estimate(steps, policy, sampler)
        return {
            **found,
            SELECTED_LOG_PROB: found[SELECTED_LOG_PROB]
            - (found[SELECTED_LOG_PROB].mean() if len(found[SELECTED_LOG_PROB]) else 0),
        }


class ForgetsOrder(StepLogProb):
    """Records one quantity and computes another."""

    def estimate(self, steps: Replay, policy: Any, sampler: Any) -> dict[Any, Tensor]:
        view = sampler.view(policy, steps.prompt, steps.ids)
        return {**super().estimate(steps, policy, sampler), SELECTED_LOG_PROB: token_log_prob(view, steps.decision)}


class NoOrderTerm(LowConfidence):
    """Leaves the order out of its log-probability. Arguments as ``Sampler``."""

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        return token_log_prob(view, decision)


class CommitsForbidden(LeftToRight):
    """Commits padding. Arguments as ``Sampler``."""

    def decide(self, view: View, generator: torch.Generator | None) -> Decision:
        decision = super().decide(view, generator)
        return Decision(decision.committed, torch.zeros_like(decision.tokens))


class CountsSteps(LeftToRight):
    """Lets the log-probability depend on what is not in the state. Arguments as ``Sampler``."""

    calls = 0

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        self.calls += 1
        return token_log_prob(view, decision) - 0.1 * self.calls


class TooManyCommits(LeftToRight):
    """Commits two positions and says one. Arguments as ``Sampler``."""

    def num_commits(self, view: View) -> Tensor:
        return view.allowed.sum(-1).clamp(max=2)


class FlatSchedule(Schedule):
    """Forgets the shape."""

    def __call__(self, fraction: Tensor) -> Tensor:
        return fraction.mean()


class ChangesFraction(Schedule):
    """Works in place."""

    def __call__(self, fraction: Tensor) -> Tensor:
        return fraction.mul_(0.5)


class Sums(Task):
    """Adds two numbers."""

    def __init__(self) -> None:
        super().__init__(5, 5, 5)

    def candidate(self, number: int) -> Example | None:
        return Example(f"{number}+1=", str(number + 1))

    def score(self, completion: str, example: Example) -> dict[str, float]:
        solved = float(completion.strip() == example.answer)
        return {"reward": solved, "solved": solved}


class SharesPuzzles(Sums):
    """Gives every split the same puzzles."""

    def example(self, split: str, index: Any) -> Example:
        return super().example("train", index) if split in self.SPLITS else super().example(split, index)


class DependsOnCalls(Sums):
    """Makes other examples the second time."""

    asked = 0

    def example(self, split: str, index: Any) -> Example:
        self.asked += 1
        example = super().example(split, index)
        return Example(f"{example.prompt}{self.asked}", example.answer)


class ChokesOnJunk(Sums):
    """Expects a number."""

    def score(self, completion: str, example: Example) -> dict[str, float]:
        solved = float(int(completion) == int(example.answer))
        return {"reward": solved, "solved": solved}


class RewardsLength(Sums):
    """Pays by the character."""

    def score(self, completion: str, example: Example) -> dict[str, float]:
        return {**super().score(completion, example), "reward": float(len(completion))}


class WrongAnswers(Sums):
    """Does not know the answer."""

    def candidate(self, number: int) -> Example | None:
        return Example(f"{number}+1=", "?")

    def score(self, completion: str, example: Example) -> dict[str, float]:
        return {"reward": 0.0, "solved": 0.0}


class NoIndexError(Sums):
    """Wraps around."""

    def example(self, split: str, index: Any) -> Example:
        return super().example(split, index % 5)


class LogsEarly(MetricsCSV):
    """Logs into nothing."""

    def log(self, update: int, metrics: Any) -> None:
        if self._file is not None:
            super().log(update, metrics)


class ClosesOnce(MetricsCSV):
    """Cannot be closed twice."""

    def close(self) -> None:
        assert self._file is not None
        super().close()


class CannotResume(MetricsCSV):
    """Starts from the beginning only."""

    def open(self, folder: Path, first_update: int) -> None:
        assert first_update == 0
        super().open(folder, first_update)


class UnknownService(FirstK):
    """Wants what nobody has. Arguments as ``FirstK``."""

    requires = ("oracle",)


class ReadsWhatItWrites(LeaveOneOut):
    """Says that it reads what it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [*self.in_keys, "advantage"]

    def ask_for(self, keys: Any) -> None:
        Component.ask_for(self, keys)


class RemembersCalls(FirstK):
    """Keeps another step each time. Arguments as ``FirstK``."""

    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        RemembersCalls.calls = getattr(RemembersCalls, "calls", 0) + 1
        valid = tensordict[STEP_VALID]
        return valid & (torch.arange(valid.shape[1]) == RemembersCalls.calls % 2)


class DividesByOthers(GroupAdvantage):
    """Divides by the number of other samples."""

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        return returns / (len(returns) - 1)


class StartsOver(LeftToRight):
    """Forgets what was filled. Arguments as ``Sampler``."""

    def resume(self, prompt: Any, ids: Tensor, *, policy: Any, generator: Any = None) -> dict[Any, Tensor]:
        return super().resume(prompt, torch.full_like(ids, policy.mask_id), policy=policy, generator=generator)


class LosesItsValue(Schedule):
    """Is another after it was copied."""

    def __init__(self) -> None:
        self.value = 1.0

    def __getstate__(self) -> dict[str, float]:
        return {"value": self.value + 1}

    def __call__(self, fraction: Tensor) -> Tensor:
        return torch.full_like(fraction, self.value)


class SilentSelector(Selector):
    def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
        return tensordict[STEP_VALID]


FAULTS = [
    (MutatesInput, "check_leaves_inputs_unchanged", r"changes \('step', 'entropy'\).*operation that ends in _"),
    (WritesMore, "check_writes_declared_keys", r"writes \('step', 'note'\), which is not among its out_keys"),
    (WritesLess, "check_writes_declared_keys", "does not write 'advantage'"),
    (Peeks, "check_reads_only_in_keys", "keys that it does not declare.*peeking is reading"),
    (ReadsUndeclared, "check_reads_only_in_keys", r"KeyError.*\(.*test_conformance.*or declare what it reads"),
    (SelectsTwice, "check_steps_distinct", r"\[0, 0\].*with_replacement = True"),
    (SaysNested, "check_nested", "but not of its first . steps.*remove nested = True"),
    (SelectsPastTheEnd, "check_steps_happened", 'of a row that has . steps.*"valid"'),
    (UsesGlobalRandomState, "check_global_random_state", "random state of torch.*generator=generator"),
    (UsesPythonRandomState, "check_global_random_state", "random state of Python"),
    (LooksAtPlaceInBatch, "check_order_of_batch", "in another order.*never by their place"),
    (ReadsPadding, "check_padding", "when padding holds garbage.*multiplying NaN"),
    (Undocumented, "check_parameters_documented", 'its parameter share.*add "share: ..."'),
    (UndocumentedError, "check_constructor_errors", "not documented.*section Raises"),
    (OddError, "check_constructor_errors", "raises AssertionError when built with share=-1.0"),
    (WrongDtype, "check_types_and_shapes", r"torch.float64, the trajectory has float32.*\.to\(torch.float32\)"),
    (WrongShape, "check_types_and_shapes", r"of shape \[8, 1\].*its shape is \[B\], here \[8\]"),
    (OnlyFloat32, "check_float64", "as torch.float32 from float64.*new_zeros"),
    (NotCopied, "check_copies", "when pickled.*no lambdas"),
    (GroupsByPlace, "check_group_names", "when the groups have other ids"),
    (NotFinite, "check_equal_returns", "not finite where all rewards are equal.*add a small number"),
    (LeaksGradient, "check_gradient", r"leaks its gradient into \('selected', 'advantage'\).*\.detach\(\)"),
    (NoGradient, "check_gradient", r"has no gradient in \[\('selected', 'log_prob'\)\]"),
    (WrongCount, "check_micro_batches", "counts 9 in a batch and .*let count add up"),
    (IgnoresWeights, "check_weights_matter", "whatever the weights are.*multiply each slot"),
    (MultipliesPadding, "check_padding", "when padding holds garbage"),
    (NotScalar, "check_scalars", "'ratio' of shape"),
    (CutsSequences, "check_slotwise", "for its pieces together.*set slotwise = False"),
    (CutsGroups, "check_micro_batches", "for its pieces together.*needs_groups = True"),
    (WrongUnits, "check_diagnostics", "its pieces together.*override units"),
    (KeepsTheBest, "check_whole_groups", "keeps part of a group: not sample .*decide by group"),
    (KeepsTheFirst, "check_keeps_by_content", "in one order of the batch and .* in another"),
    (SortsSamples, "check_keeps_samples", "not each once and in their order.*bool mask"),
    (ChangesWhatIsKept, "check_keeps_samples", "with another 'reward' than they came with"),
    (ChangesItsMind, "check_decides_again", "the first time and .* the second.*no state from call to call"),
    (EmptyShares, "check_shares", "negative or not finite.*of 0 by 1"),
    (CountsTheBatch, "check_additive", "another share when the batch holds other samples"),
    (CutsSamples, "check_slot_shares", "depends on the other slots.*slotwise = False"),
    (LetsPaddingIn, "check_padding_of_tokens", r"outside the mask into the sum.*torch\.where"),
    (NoValueHead, "check_own_parameters", r"no trainable parameters after attach.*torch\.nn\.Linear"),
    (SharesThePolicy, "check_own_parameters", "holds parameters of the policy"),
    (ValueWithoutGradient, "check_value_gradient", "without gradient.*detach none"),
    (CentresValues, "check_samples_independent", "for a part of a batch.*no mean over the batch"),
    (NotZero, "check_zero_at_reference", "where the policy equals the reference"),
    (NoPolicyGradient, "check_policy_gradient", "without gradient.*no_grad"),
    (CentresOverBatch, "check_samples_independent", "for a part of a batch.*no mean over the batch"),
    (ForgetsOrder, "check_recorded", r"differs from what the sampler recorded as \('step', 'log_prob'\)"),
    (NoOrderTerm, "check_probabilities", "action_log_prob.*exactly what decide draws"),
    (CommitsForbidden, "check_forbidden_tokens", "forbidden token 0.*probability 0"),
    (CountsSteps, "check_recorded_log_prob", "differs from the recomputed one.*function of the state"),
    (TooManyCommits, "check_commits", r"commits \[0, 2\] positions in a step.*max_commits"),
    (FlatSchedule, "check_values", "return a tensor like fraction"),
    (ChangesFraction, "check_values", "changes the fractions"),
    (SharesPuzzles, "check_splits_disjoint", "in pretrain and in train.*canonical"),
    (DependsOnCalls, "check_examples_reproducible", "in another order.*depend on number"),
    (ChokesOnJunk, "check_score_of_junk", "raises ValueError when scoring ''.*worth 0"),
    (RewardsLength, "check_score_of_junk", r"reward = .*in \[0, 1\]"),
    (WrongAnswers, "check_answer_scores_full", "scores its own answer"),
    (NoIndexError, "check_outside_of_splits", "has an example.*raise IndexError"),
    (LogsEarly, "check_opens_late", "logs before it was opened.*RuntimeError"),
    (ClosesOnce, "check_opens_late", "raises AssertionError when copied and closed before.*do nothing in close"),
    (SilentSelector, "check_summary", "has no docstring"),
    (CannotResume, "check_life_of_a_run", "raises AssertionError when used for a run"),
    (UnknownService, "check_declarations", "requires 'oracle', which is no service.*generator"),
    (ReadsWhatItWrites, "check_declarations", "reads and writes 'advantage'.*under another key"),
    (RemembersCalls, "check_same_result_for_same_seed", "run again with the same seed.*keep no state"),
    (DividesByOthers, "check_one_sample", "not finite for a batch of one.*minus 1"),
    (StartsOver, "check_resume", "changes positions that were filled when it resumed"),
    (LosesItsValue, "check_schedule_copies", "after deepcopy"),
]
SEEDLESS = {"check_copies", "check_padding", "check_reads_only_in_keys", "check_same_result_for_same_seed"}
ALSO: dict[Any, set[str]] = {
    UsesGlobalRandomState: SEEDLESS,
    UsesPythonRandomState: SEEDLESS,
    NotFinite: {"check_one_sample"},
    LeaksGradient: {"check_diagnostics"},
    CutsGroups: {"check_diagnostics"},
    NotScalar: {"check_order_of_batch", "check_padding"},
    CentresOverBatch: {"check_recorded"},
    CommitsForbidden: {"check_probabilities"},
    CountsSteps: {"check_probabilities", *SEEDLESS} - {"check_copies"},
    ChokesOnJunk: {"check_answer_scores_full"},
    RewardsLength: {"check_answer_scores_full"},
    ClosesOnce: {"check_life_of_a_run"},
    ChangesItsMind: {"check_keeps_samples", "check_keeps_by_content"},
    NoValueHead: {"check_value_gradient"},
    CountsTheBatch: {"check_slot_shares"},
    EmptyShares: {"check_additive", "check_padding_of_tokens"},
}
"""What else a fault fails; the others fail nothing but their own check."""
RUNNING = {check.name for check in checks_for(Selector)} - {check.name for check in checks_for(Logger)}
ALSO[ReadsUndeclared] = RUNNING - {"check_declarations"} | {"check_copies"}
ALSO[UnknownService] = ALSO[ReadsUndeclared]
ALSO[ReadsWhatItWrites] = RUNNING
ALSO[RemembersCalls] = SEEDLESS | {"check_order_of_batch"}


def failures(component: Any) -> dict[str, str]:
    """Message of each check that fails."""
    found = {}
    for check in checks_for(component):
        try:
            check(component)
        except ConformanceError as error:
            found[check.name] = " ".join(str(error).split())
    return found


@pytest.mark.parametrize(("cls", "name", "message"), FAULTS, ids=[cls.__name__ for cls, _, _ in FAULTS])
def test_each_fault_is_caught_by_its_check(cls: Any, name: str, message: str) -> None:
    found = failures(cls(8) if issubclass(cls, Sampler) else cls())
    assert name in found, sorted(found)
    assert re.search(message, found[name]), found[name]
    assert "To fix it: " in found[name]
    assert set(found) - {name, "check_registered"} <= ALSO.get(cls, set())


@pytest.fixture
def registered() -> Iterator[Any]:
    """Registers classes for one test; they are outside the kit, and guarded as plugins are."""
    added = []

    def add(kind: str, cls: type, **claims: Any) -> Any:
        register(kind, **claims)(cls)
        added.append(cls)
        return cls

    yield add
    for entry in [entry for entry in components() if entry.cls in added]:
        unregister(entry)


def first_two(unbiased_weight: bool) -> type[Selector]:
    class Chosen(Selector):
        """One of the first two steps at random."""

        requires = ("generator",)

        def kept(self, tensordict: TensorDictBase, generator: torch.Generator | None) -> Tensor:
            valid = tensordict[STEP_VALID]
            heads = torch.rand(len(valid), 1, generator=generator) < 0.5
            return valid & torch.where(heads, torch.arange(valid.shape[1]) < 1, torch.arange(valid.shape[1]) == 1)

        def weights(self, kept: Tensor, valid: Tensor) -> Tensor:
            return torch.full_like(kept[:, :1], 2.0 if unbiased_weight else 1.0, dtype=torch.float64)

    return Chosen


def test_a_plugin_that_conforms_passes_as_class_and_instance(registered: Any) -> None:
    cls = registered("selector", SilentSelector)
    cls.__doc__ = "All steps."
    try:
        check_component(cls)
        check_component(cls())
    finally:
        cls.__doc__ = None


def test_a_value_model_that_conforms(registered: Any) -> None:
    check_component(registered("value", PlainValue))


def test_everything_wrong_is_told_once(registered: Any) -> None:
    with pytest.raises(ConformanceError) as raised:
        check_component(registered("selector", ReadsUndeclared))
    text = str(raised.value)
    assert re.match(r"ReadsUndeclared fails \d+ of 21 checks", text)
    assert text.count("To fix it") <= 3
    assert "check_registered" not in text


def test_the_guard_on_plugins_speaks_through_the_checks(registered: Any) -> None:
    found = failures(registered("selector", WritesMore)())
    assert "RecipeError" in found["check_writes_declared_keys"]
    assert "('step', 'note')" in found["check_writes_declared_keys"]


def test_claimed_weights_are_held_to_the_claim(registered: Any) -> None:
    wrong = failures(registered("selector", first_two(False), unbiased=True)())["check_expected_weights"]
    assert re.search("registered as unbiased, but a step .* expected weight.*register unbiased=False", wrong)


def test_weights_without_a_claim_are_free(registered: Any) -> None:
    assert "check_expected_weights" not in failures(registered("selector", first_two(False), unbiased=False)())


class Standardised(GroupZScore):
    """Claims too much. Arguments as ``GroupZScore``."""


class WrongSign(Reinforce):
    """Climbs down."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        total, diagnostics = super().total(tensordict)
        return -total, diagnostics


class Doubled(StepLogProb):
    """Twice the gradient, the right value."""

    def estimate(self, steps: Replay, policy: Any, sampler: Any) -> dict[Any, Tensor]:
        found = super().estimate(steps, policy, sampler)
        return {**found, SELECTED_LOG_PROB: 2 * found[SELECTED_LOG_PROB] - found[SELECTED_LOG_PROB].detach()}


@pytest.mark.parametrize(("kind", "cls"), [("advantage", Standardised), ("loss", WrongSign), ("likelihood", Doubled)])
def test_claims_are_held_to_the_audit(kind: str, cls: Any, registered: Any) -> None:
    found = failures(registered(kind, cls, unbiased=True)())
    assert set(found) == {"check_claim"}
    assert re.search(r"unbiased with scale 1, but .* off by .*or register unbiased=False", found["check_claim"])


@pytest.mark.parametrize(("scale", "right"), [("2", True), ("1 + 1", True), ("3", False), ("twice", True)])
def test_a_scale_is_held_to_what_is_registered(scale: str, right: bool, registered: Any) -> None:
    found = failures(registered("likelihood", Doubled, unbiased=True, scale=scale)())
    assert set(found) == (set() if right else {"check_claim"})


def test_a_conditional_claim_is_that_of_the_defaults(registered: Any) -> None:
    assert not failures(OneStepDenoise(Linear(1.0, 0.0), normalise=False))
    assert "check_claim" in failures(registered("advantage", Unnormalised, unbiased=True)())


class Unnormalised(OneStepDenoise):
    """Not normalised, with another lambda in each step."""

    def __init__(self) -> None:
        super().__init__(Linear(1.0, 0.0), normalise=False)


class MissesAnOutcome(RandomSteps):
    """Leaves the last outcome out. Arguments as ``RandomSteps``."""

    def outcomes(self, tensordict: TensorDictBase) -> list[tuple[Tensor, Tensor, Tensor]]:
        return super().outcomes(tensordict)[:-1]


def test_listed_outcomes_must_be_all(registered: Any) -> None:
    found = failures(registered("selector", MissesAnOutcome, unbiased=True)(1))
    assert set(found) == {"check_expected_weights"}
    assert "do not sum to 1" in found["check_expected_weights"]


def test_draws_stand_in_for_outcomes_that_are_not_listed(registered: Any) -> None:
    class NotListed(RandomSteps):
        """Random steps. Arguments as ``RandomSteps``."""

        def outcomes(self, tensordict: TensorDictBase) -> list[tuple[Tensor, Tensor, Tensor]]:
            raise NotImplementedError

    assert "check_expected_weights" not in failures(registered("selector", NotListed, unbiased=True)(2))


@parametrize_with_checks(
    [MissesAnOutcome(2)], expected_failures={"MissesAnOutcome-check_registered": "a class of this test"}
)
def test_expected_failures_are_strict(component: Any, check: Any) -> None:
    check(component)


def test_cases_have_readable_ids_and_reasons() -> None:
    mark = parametrize_with_checks([RandomSteps, KLK3(0.1)], {"KLK3-check_gradient": "because"}).mark
    assert mark.args[0] == ("component", "check")
    cases = {case.id: case for case in mark.args[1]}
    assert "RandomSteps-check_steps_distinct" in cases
    (xfail,) = cases["KLK3-check_gradient"].marks
    assert xfail.kwargs == {"strict": True, "raises": ConformanceError, "reason": "because"}
    assert all(not case.marks for name, case in cases.items() if name != "KLK3-check_gradient")


def test_an_expected_failure_that_is_no_case_is_refused() -> None:
    with pytest.raises(ValueError, match="no such case: 'KLK3-check_typo'"):
        parametrize_with_checks([KLK3], {"KLK3-check_typo": "a typo"})


def test_a_class_that_cannot_be_built() -> None:
    class NeedsAList(Selector):
        """Wants a list."""

        def __init__(self, numbers: list[int]) -> None:
            super().__init__()
            self.total = sum(numbers)

    with pytest.raises(ConformanceError, match=r"TypeError when built as NeedsAList\(numbers=None\).*\n.*an instance"):
        check_component(NeedsAList)
    assert "check_steps_distinct" in {check.name for check in checks_for(NeedsAList)}


def test_a_class_of_no_kind() -> None:
    with pytest.raises(ConformanceError, match=r"Component is of no kind\n.*@register"):
        checks_for(Component)


def test_a_key_that_cannot_be_made_up() -> None:
    class ReadsOwnKey(Selector):
        """Reads what only its own sampler writes."""

        def __init__(self) -> None:
            super().__init__(("step", "mine"))

    found = failures(ReadsOwnKey())
    assert "reads ('step', 'mine'), which is no key of the trajectory" in found["check_reads_only_in_keys"]


def test_checks_are_named_and_explained() -> None:
    for entry in components():
        checks = checks_for(entry.cls)
        assert len({check.name for check in checks}) == len(checks)
        assert all(check.summary.endswith(".") and str(check) == check.name for check in checks)


def test_the_world_is_padded_everywhere() -> None:
    full = world().full
    steps, used = full[STEP_VALID].sum(-1), full[SELECTED_WEIGHT] > 0
    assert (steps < full[STEP_VALID].shape[1]).sum() >= 2
    assert used.any(-1).tolist() == [True] * 7 + [False]
    assert (used.sum(-1) < used.shape[1]).any()
    renoised = {("step", "state_ids"), ("step", "accepted")}  # of samplers that renoise: states that cannot be rebuilt
    assert set(KEYS) - renoised <= set(full.keys(True, True))
    assert (full["commit_step"] == full[STEP_VALID].shape[1]).any()


def test_nothing_needs_pytest_until_it_is_asked_for() -> None:
    code = "import sys, dlmrl_kit.testing as t; assert 'pytest' not in sys.modules and t.check_component"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_lists_every_check() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "check-a-component.md").read_text()
    for kind in KINDS:
        for check in checks_for(components(kind)[0].cls):
            assert f"`{check.name}`" in page, kind
