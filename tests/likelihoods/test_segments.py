"""Likelihoods of segments against loops; what batch, padding and segments must not change; bad arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import segment_loops as loops
from support.policies import recorded_calls, tiny_policy
from support.segment_cases import (
    CASES,
    LENGTH_OF_COMPLETIONS,
    POLICY,
    SEVERAL_ENDS,
    WEIGHT,
    alike,
    estimated,
    rolled_out,
    selected,
)

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import SELECTED_LOG_PROB, SELECTED_TOKEN_LOG_PROB, SELECTED_TOKEN_MASK, SEQUENCE_LENGTH
from dlmrl_kit.likelihoods.coupled import Coupled
from dlmrl_kit.likelihoods.elbo import Elbo
from dlmrl_kit.likelihoods.mean_field import MeanField
from dlmrl_kit.likelihoods.random_mask import RandomMask
from dlmrl_kit.likelihoods.sandwich import Sandwich
from dlmrl_kit.likelihoods.scheduled_mask import ScheduledMask
from dlmrl_kit.likelihoods.step_merge import StepMerge
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.selectors.equal_segments import EqualSegments
from dlmrl_kit.selectors.whole_sequence import WholeSequence

every = pytest.mark.parametrize("name", CASES)


@every
@pytest.mark.parametrize("stop_at_eos", [True, False])
@pytest.mark.parametrize("selector", [WholeSequence(3), EqualSegments(2)], ids=["whole", "segments"])
def test_equals_the_loop(name: str, stop_at_eos: bool, selector: Selector) -> None:
    check_against_loop(name, stop_at_eos, selector, POLICY)


@every
def test_several_tokens_may_end_a_text(name: str) -> None:
    check_against_loop(name, True, WholeSequence(2), SEVERAL_ENDS)
    _, data = rolled_out(LowConfidence, 2, True, policy=SEVERAL_ENDS)
    assert {*SEVERAL_ENDS.eos_ids} <= {*data["completion_ids"][:4].flatten().tolist()}


def check_against_loop(name: str, stop_at_eos: bool, selector: Selector, policy: TransformersPolicy) -> None:
    likelihood, loop = CASES[name]
    sampler, data = rolled_out(LowConfidence, 2, stop_at_eos, policy=policy)
    data = selected(data, selector)
    data[WEIGHT][3, 1] = 0
    found = estimated(likelihood, sampler, data, policy)
    for b in range(6):
        for k in range(data[WEIGHT].shape[1]):
            if data[WEIGHT][b, k] == 0:
                assert not any(
                    found[key][b, k].any() for key in (SELECTED_LOG_PROB, SELECTED_TOKEN_LOG_PROB, SELECTED_TOKEN_MASK)
                )
                continue
            segment = loops.Segment(likelihood, policy, sampler, data, b, k)
            wanted = loop(segment)
            tokens = torch.tensor([wanted.get(i, 0.0) for i in segment.positions], dtype=torch.float64)
            alike(found[SELECTED_TOKEN_LOG_PROB][b, k], tokens)
            alike(found[SELECTED_LOG_PROB][b, k], tokens.sum())
            assert found[SELECTED_TOKEN_MASK][b, k].nonzero().flatten().tolist() == sorted(wanted)
        assert found[SEQUENCE_LENGTH][b].item() == len(segment.counted())


@pytest.mark.parametrize("stop_at_eos", [True, False])
def test_what_counts(stop_at_eos: bool) -> None:
    """Up to the first end of text, itself included; or all that was committed."""
    sampler, data = rolled_out(LowConfidence, 2, stop_at_eos)
    data = selected(data, WholeSequence())
    eos = POLICY.is_end(data["completion_ids"])
    first = torch.where(eos.any(-1), eos.int().argmax(-1) + 1, LENGTH_OF_COMPLETIONS)
    committed = data["commit_step"] < sampler.max_steps
    assert committed.all() != stop_at_eos, "rows end early if they may"
    assert (first < LENGTH_OF_COMPLETIONS).sum() == 4
    for after_eos, mask in (
        (False, torch.arange(LENGTH_OF_COMPLETIONS) < first[:, None]),
        (True, committed),
    ):
        found = estimated(MeanField(after_eos=after_eos), sampler, data)
        assert torch.equal(found[SELECTED_TOKEN_MASK][:, 0], mask)
        assert torch.equal(found[SEQUENCE_LENGTH], mask.sum(-1))


@every
def test_no_batch_padding_or_segment_changes_masks_or_numbers(name: str) -> None:
    likelihood, _ = CASES[name]
    sampler, data = rolled_out(LowConfidence, 2, True)
    data = selected(data, WholeSequence(3))
    whole = estimated(likelihood, sampler, data)
    keys = (SELECTED_LOG_PROB, SELECTED_TOKEN_LOG_PROB, SELECTED_TOKEN_MASK)
    for rows in ([2], [5, 0, 3], [1, 1]):
        part = estimated(likelihood, sampler, data[rows])
        for key in (*keys, SEQUENCE_LENGTH):
            alike(part[key], whole[key][rows])
    wider = data.clone()
    for key, filler in (("prompt_ids", POLICY.pad_id), ("prompt_mask", False)):
        spare = torch.full((6, 3), filler, dtype=data[key].dtype)
        wider[key] = torch.cat([spare, data[key]], dim=1)
    padded = estimated(likelihood, sampler, wider)
    for key in keys:
        alike(padded[key], whole[key])
    for used in ([True, False, False], [False, True, True], [False, False, True]):
        cut = data.clone()
        cut[WEIGHT] = data[WEIGHT] * torch.tensor(used)
        part = estimated(likelihood, sampler, cut)
        for key in keys:
            alike(part[key][:, used], whole[key][:, used])
            assert not part[key][:, ~torch.tensor(used)].any()


@every
def test_masks_are_new_in_each_pass_only_if_redrawn(name: str) -> None:
    likelihood, _ = CASES[name]
    sampler, data = rolled_out(LowConfidence, 2, True)
    data = selected(data, WholeSequence(2))
    later = data.clone()
    later["iteration"] += 1
    same = torch.equal(
        estimated(likelihood, sampler, data)[SELECTED_LOG_PROB],
        estimated(likelihood, sampler, later)[SELECTED_LOG_PROB],
    )
    assert same != likelihood.redraw
    assert ("iteration" in likelihood.in_keys) == likelihood.redraw
    if not likelihood.redraw:
        alike(
            estimated(likelihood, sampler, data.exclude("iteration"))[SELECTED_LOG_PROB],
            estimated(likelihood, sampler, data)[SELECTED_LOG_PROB],
        )


FIXED = ("MeanField", "StepMerge", "AutoregressiveOrder", "AutoregressiveOrder, all arguments")


@pytest.mark.parametrize("name", [name for name in CASES if name not in FIXED])
def test_segments_of_a_sample_and_samples_have_masks_of_their_own(name: str) -> None:
    likelihood, _ = CASES[name]
    sampler, data = rolled_out(LowConfidence, 2, True)
    longest = int((data["commit_step"] < data["step", "valid"].shape[1]).sum(-1).argmax())
    row = data[[longest] * 6].clone()
    row["seed"] = data["seed"]
    found = estimated(likelihood, sampler, selected(row, WholeSequence(3)))[SELECTED_LOG_PROB]
    assert len(found.flatten().unique()) >= 6


@pytest.mark.parametrize("cls", [MeanField, StepMerge])
def test_without_random_masks_there_is_nothing_to_redraw(cls: type[MeanField | StepMerge]) -> None:
    """Else each pass would have log-probabilities of the old policy computed again, to the same numbers."""
    assert not cls(redraw=True).redraw
    assert "iteration" not in cls(redraw=True).in_keys
    assert cls(redraw=True, prompt_mask_share=0.1).redraw


@every
def test_forwards_are_what_the_update_reckons_with(name: str) -> None:
    """No more states are computed than declared, and none in which nothing is scored."""
    likelihood, _ = CASES[name]
    sampler, data = rolled_out(LowConfidence, 2, True)
    data = selected(data, WholeSequence(2))
    data[WEIGHT][4] = 0
    likelihood.prepare(data, sampler=sampler, policy=POLICY)
    segments = likelihood.segments(data, POLICY, sampler)
    copies = likelihood.masks(segments)
    assert copies.masked.shape == (10, likelihood.forwards(LENGTH_OF_COMPLETIONS), LENGTH_OF_COMPLETIONS)
    assert not (copies.scored & ~copies.masked).any()
    with recorded_calls(POLICY) as calls:
        likelihood(data.clone(), policy=POLICY, sampler=sampler)
    assert [len(ids) for ids, _, _ in calls] == [int(copies.scored.any(-1).sum())]


def test_a_segment_of_tokens_that_do_not_count_scores_nothing() -> None:
    sampler, data = rolled_out(LowConfidence, 2, False)
    data = selected(data, AllSteps())
    found = estimated(Elbo(), sampler, data)
    empty = (data[WEIGHT] > 0) & ~found[SELECTED_TOKEN_MASK].any(-1)
    assert empty.any()
    for name, (likelihood, _) in CASES.items():
        found = estimated(likelihood, sampler, data)
        for key in (SELECTED_LOG_PROB, SELECTED_TOKEN_LOG_PROB):
            assert found[key].isfinite().all(), name
        if not likelihood.after_eos:
            assert not found[SELECTED_LOG_PROB][empty].any()
            assert not found[SELECTED_TOKEN_MASK][empty].any()


def test_impossible_tokens_are_floored_with_finite_gradients() -> None:
    policy = tiny_policy(hidden=16, layers=1, characters="abc").double()
    sampler = RandomOrder(LENGTH_OF_COMPLETIONS, 2, top_k=1, stop_at_eos=False)
    data = selected(rolled_out(RandomOrder, 2, False)[1], WholeSequence(2))
    for likelihood, _ in CASES.values():
        policy.zero_grad()
        total = likelihood(data.clone(), policy=policy, sampler=sampler)[SELECTED_LOG_PROB]
        assert (total.min() < -90) == likelihood.sampling_temperature
        assert total.isfinite().all()
        total.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


def test_a_sampler_without_masks_is_refused() -> None:
    sampler, data = rolled_out(LowConfidence, 2, True)
    renoising = copy.copy(sampler)
    renoising.noise = "uniform"  # type: ignore[misc]
    with pytest.raises(RecipeError, match="Elbo scores masked copies, but LowConfidence denoises uniform noise"):
        estimated(Elbo(), renoising, selected(data, WholeSequence()))


WRONG: dict[str, Callable[[], Any]] = {
    "MeanField.prompt_mask_share must be in [0, 1], got 1.5": lambda: MeanField(prompt_mask_share=1.5),
    "StepMerge.prompt_mask_share must be in [0, 1], got -0.1": lambda: StepMerge(prompt_mask_share=-0.1),
    "RandomMask.lower must be in [0, 1], got -0.1": lambda: RandomMask(lower=-0.1),
    "RandomMask.upper must be in [lower, 1] = [0.5, 1], got 0.4": lambda: RandomMask(lower=0.5, upper=0.4),
    "ScheduledMask.inner_iterations must be at least 1, got 0": lambda: ScheduledMask(0),
    "Coupled.lower must be above 0 and below 1, got 0": lambda: Coupled(lower=0),
    "Coupled.upper must be at least lower = 0.2 and below 1, got 1.0": lambda: Coupled(upper=1.0),
    "Sandwich.num_copies must be at least 1, got 0": lambda: Sandwich(num_copies=0),
    "Sandwich.beta must be above 0 and finite, got 0.0": lambda: Sandwich(beta=0.0),
    "Sandwich.mix_weight must be in [0, 1], got 1.1": lambda: Sandwich(mix_weight=1.1),
    "Sandwich.block_length must be at least 1, got 0": lambda: Sandwich(block_length=0),
    "Sandwich.prompt_mask_share must be in [0, 1], got 2.0": lambda: Sandwich(prompt_mask_share=2.0),
    "Sandwich.earlier_mask_share must be in [0, 1], got 2.0": lambda: Sandwich(earlier_mask_share=2.0),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments(message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared below)
        WRONG[message]()
    assert str(error.value) == message


def test_segments_hold_the_keys_of_the_selection() -> None:
    sampler, data = rolled_out(LowConfidence, 2, True)
    data = selected(data, WholeSequence(2))
    data[WEIGHT][0, 0] = data[WEIGHT][2, 1] = 0
    segments = MeanField().segments(data, POLICY, sampler)
    rows, columns = (data[WEIGHT] > 0).nonzero(as_tuple=True)
    assert torch.equal(segments.per_sample("seed"), data["seed"][rows])
    assert torch.equal(segments.per_segment(("selected", "advantage")), data["selected", "advantage"][rows, columns])
    assert torch.equal(segments.draw, columns)
    assert segments.draws == 2
    values = torch.arange(len(rows)).double()
    assert torch.equal(segments.scatter(values)[rows, columns], values)
