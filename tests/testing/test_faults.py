"""Each planted fault is caught by the check that is there for it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.conformance import failures
from support.faults.advantages import (
    DividesByOthers,
    GroupsByPlace,
    NotCopied,
    NotFinite,
    OnlyFloat32,
    ReadsWhatItWrites,
    WritesLess,
    WrongShape,
)
from support.faults.collectors import KeepsItsFirstWeights, LeavesKeysOut, OpenAtOnce, SortsPrompts
from support.faults.filters import ChangesItsMind, ChangesWhatIsKept, KeepsTheBest, KeepsTheFirst, SortsSamples
from support.faults.likelihoods import CentresOverBatch, ForgetsOrder, NoPolicyGradient
from support.faults.loggers import CannotResume, ClosesOnce, LogsEarly
from support.faults.normalisers import CountsTheBatch, CutsSamples, EmptyShares, LetsPaddingIn
from support.faults.samplers import CommitsForbidden, CountsSteps, NoOrderTerm, StartsOver, TooManyCommits
from support.faults.schedules import ChangesFraction, FlatSchedule, LosesItsValue
from support.faults.selectors import (
    ForgetsPadding,
    LooksAtPlaceInBatch,
    MutatesInput,
    OddError,
    Peeks,
    ReadsPadding,
    ReadsUndeclared,
    RemembersCalls,
    SaysNested,
    SelectsPastTheEnd,
    SelectsTwice,
    SilentSelector,
    Undocumented,
    UndocumentedError,
    UnknownService,
    UsesGlobalRandomState,
    UsesPythonRandomState,
    WritesMore,
    WrongDtype,
)
from support.faults.step_schedules import CountsCalls, KeepsDoubling, LeavesSomeOut, LosesItsSteps
from support.faults.tasks import (
    ChokesOnJunk,
    DependsOnCalls,
    InfiniteReward,
    NoIndexError,
    RewardsLength,
    SharesPuzzles,
    SolvedByPrefixes,
    WrongAnswers,
)
from support.faults.terms import (
    CutsGroups,
    CutsSequences,
    IgnoresWeights,
    LeaksGradient,
    MultipliesPadding,
    NoGradient,
    NotScalar,
    NotZero,
    WrongCount,
    WrongUnits,
)
from support.faults.values import CentresValues, NoValueHead, SharesThePolicy, ValueWithoutGradient

from dlmrl_kit.loggers.base import Logger
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.testing import checks_for

FAULTS = [
    (MutatesInput, "check_leaves_inputs_unchanged", r"changes \('step', 'entropy'\).*operation that ends in _"),
    (WritesMore, "check_writes_declared_keys", r"writes \('step', 'note'\), which is not among its out_keys"),
    (WritesLess, "check_writes_declared_keys", "does not write 'advantage'"),
    (Peeks, "check_reads_only_in_keys", "keys that it does not declare.*peeking is reading"),
    (ReadsUndeclared, "check_reads_only_in_keys", r"KeyError.*\(.*selectors.*or declare what it reads"),
    (SelectsTwice, "check_steps_distinct", r"\[0, 0\].*with_replacement = True"),
    (SaysNested, "check_nested", "but not of its first . steps.*remove nested = True"),
    (SelectsPastTheEnd, "check_steps_happened", 'of a row that has . steps.*"valid"'),
    (ForgetsPadding, "check_steps_happened", "of a row that has 1 steps"),
    (UsesGlobalRandomState, "check_global_random_state", "random state of torch.*list SEED in in_keys"),
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
    (IgnoresWeights, "check_weights_matter", "whatever the weights are.*multiply each segment"),
    (MultipliesPadding, "check_padding", "when padding holds garbage"),
    (NotScalar, "check_scalars", "'ratio' of shape"),
    (CutsSequences, "check_segmentwise", "for its pieces together.*set segmentwise = False"),
    (CutsGroups, "check_micro_batches", "for its pieces together.*needs_groups = True"),
    (WrongUnits, "check_diagnostics", "its pieces together.*override units"),
    (KeepsTheBest, "check_whole_groups", "keeps part of a group: not sample .*decide by group"),
    (KeepsTheFirst, "check_keeps_by_content", "in one order of the batch and .* in another"),
    (SortsSamples, "check_keeps_samples", "not each once and in their order.*bool mask"),
    (ChangesWhatIsKept, "check_keeps_samples", "with another 'reward' than they came with"),
    (ChangesItsMind, "check_decides_again", "the first time and .* the second.*keep no state"),
    (EmptyShares, "check_shares", "negative or not finite.*of 0 by 1"),
    (CountsTheBatch, "check_additive", "another share when the batch holds other samples"),
    (CutsSamples, "check_segment_shares", "depends on the other segments.*segmentwise = False"),
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
    (KeepsItsFirstWeights, "check_collects", "something else .*call 2"),
    (SortsPrompts, "check_collects", "in another order"),
    (LeavesKeysOut, "check_collects", "without .*commit_step"),
    (OpenAtOnce, "check_closes", "raises AssertionError when copied and closed before"),
    (LeavesSomeOut, "check_numbers", r"commits \[.*of . positions.*add up"),
    (CountsCalls, "check_numbers", "other numbers the second time.*positions alone"),
    (KeepsDoubling, "check_schedule_resized", "another schedule each time"),
    (LosesItsSteps, "check_step_schedule_copies", "other numbers after pickle"),
    (SharesPuzzles, "check_splits_disjoint", "in pretrain and in train.*canonical"),
    (DependsOnCalls, "check_examples_reproducible", "in another order.*depend on number"),
    (ChokesOnJunk, "check_score_of_junk", "raises ValueError when scoring ''.*worth 0"),
    (RewardsLength, "check_answer_scores_full", "rewards junk with 2, the answer with 1"),
    (InfiniteReward, "check_score_of_junk", "reward = inf.*a finite number"),
    (SolvedByPrefixes, "check_constants_solve_nothing", "'0' .*solves 100%.*most frequent answer"),
    (WrongAnswers, "check_answer_scores_full", "scores its own answer"),
    (NoIndexError, "check_outside_of_splits", "has an example.*raise IndexError"),
    (LogsEarly, "check_opens_late", "logs before it was opened.*RuntimeError"),
    (ClosesOnce, "check_opens_late", "raises AssertionError when copied and closed before.*do nothing in close"),
    (SilentSelector, "check_summary", "has no docstring"),
    (CannotResume, "check_life_of_a_run", "raises AssertionError when used for a run"),
    (UnknownService, "check_declarations", "requires 'oracle', which is no service.*restart"),
    (ReadsWhatItWrites, "check_declarations", "reads and writes 'advantage'.*under another key"),
    (RemembersCalls, "check_same_result_for_same_seed", "run again with the same seed.*keep no state"),
    (DividesByOthers, "check_one_sample", "not finite for a batch of one.*minus 1"),
    (StartsOver, "check_resume", "changes positions that were filled when it resumed"),
    (LosesItsValue, "check_schedule_copies", "after deepcopy"),
]
SEEDLESS = {"check_copies", "check_padding", "check_reads_only_in_keys", "check_same_result_for_same_seed"}
ALSO: dict[Any, set[str]] = {
    CountsCalls: {"check_step_schedule_copies"},
    UsesGlobalRandomState: {*SEEDLESS, "check_order_of_batch"},
    UsesPythonRandomState: {*SEEDLESS, "check_order_of_batch", "check_leaves_steps_out"},
    NotFinite: {"check_one_sample"},
    LeaksGradient: {"check_diagnostics"},
    CutsGroups: {"check_diagnostics"},
    NotScalar: {"check_order_of_batch", "check_padding"},
    CentresOverBatch: {"check_recorded"},
    CommitsForbidden: {"check_probabilities"},
    CountsSteps: {"check_probabilities", "check_order_of_batch", "check_rows_alone", *SEEDLESS} - {"check_copies"},
    ForgetsPadding: {"check_padding"},
    ChokesOnJunk: {"check_answer_scores_full"},
    RewardsLength: {"check_answer_scores_full"},
    ClosesOnce: {"check_life_of_a_run"},
    OpenAtOnce: {"check_collects"},
    ChangesItsMind: {"check_keeps_samples", "check_keeps_by_content"},
    NoValueHead: {"check_value_gradient"},
    CountsTheBatch: {"check_segment_shares"},
    EmptyShares: {"check_additive", "check_padding_of_tokens"},
}
"""What else a fault fails; the others fail nothing but their own check."""
RUNNING = {check.name for check in checks_for(Selector)} - {check.name for check in checks_for(Logger)}
ALSO[ReadsUndeclared] = RUNNING - {"check_declarations"} | {"check_copies"}
ALSO[UnknownService] = ALSO[ReadsUndeclared]
ALSO[ReadsWhatItWrites] = RUNNING
ALSO[RemembersCalls] = SEEDLESS | {"check_order_of_batch"}


@pytest.mark.thorough
@pytest.mark.parametrize(("cls", "name", "message"), FAULTS, ids=[cls.__name__ for cls, _, _ in FAULTS])
def test_each_fault_is_caught_by_its_check(cls: Any, name: str, message: str) -> None:
    found = failures(cls(8) if issubclass(cls, Sampler) else cls())
    assert name in found, sorted(found)
    assert re.search(message, found[name]), found[name]
    assert "To fix it: " in found[name]
    assert set(found) - {name, "check_registered"} <= ALSO.get(cls, set())
