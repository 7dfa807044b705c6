"""Likelihoods of segments that must equal one another, exactly."""

from __future__ import annotations

import pytest
import torch
from support.segment_cases import LENGTH_OF_COMPLETIONS, POLICY, WEIGHT, alike, estimated, rolled_out, selected

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import SELECTED_LOG_PROB, SELECTED_TOKEN_LOG_PROB, SELECTED_TOKEN_MASK, SEQUENCE_LENGTH
from dlmrl_kit.likelihoods.autoregressive_order import AutoregressiveOrder
from dlmrl_kit.likelihoods.elbo import Elbo
from dlmrl_kit.likelihoods.mean_field import MeanField
from dlmrl_kit.likelihoods.random_mask import RandomMask
from dlmrl_kit.likelihoods.sandwich import Sandwich
from dlmrl_kit.likelihoods.scheduled_mask import ScheduledMask
from dlmrl_kit.likelihoods.step_merge import StepMerge
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.selectors.equal_segments import EqualSegments
from dlmrl_kit.selectors.shrunk_steps import ShrunkSteps
from dlmrl_kit.selectors.whole_sequence import WholeSequence


def test_merging_all_steps_is_mean_field() -> None:
    sampler, data = rolled_out(LowConfidence, 2, True)
    for options in ({}, {"sampling_temperature": False, "after_eos": True}, {"prompt_mask_share": 0.5, "redraw": True}):
        wanted = estimated(MeanField(**options), sampler, selected(data, WholeSequence()))
        for selector in (EqualSegments(1), ShrunkSteps(sampler.max_steps)):
            found = estimated(StepMerge(**options), sampler, selected(data, selector))
            for key in (SELECTED_LOG_PROB, SELECTED_TOKEN_LOG_PROB, SELECTED_TOKEN_MASK, SEQUENCE_LENGTH):
                assert torch.equal(found[key], wanted[key])


@pytest.mark.parametrize("tempered", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("tokens_per_step", [1, 2])
def test_merging_no_steps_is_step_replay(tempered: bool, eos: bool, tokens_per_step: int) -> None:
    """Without an end of text, or with the tokens behind it counted."""
    sampler, data = rolled_out(LowConfidence, tokens_per_step, stop_at_eos=not eos, eos=eos)
    for selector in (AllSteps(), EqualSegments(sampler.max_steps), ShrunkSteps(1)):
        given = selected(data, selector)
        found = estimated(StepMerge(tempered, after_eos=eos), sampler, given)
        replayed = StepTokenLogProb(tempered)
        wanted = replayed(given.clone(), policy=POLICY, sampler=sampler)[SELECTED_LOG_PROB].detach()
        assert (given[WEIGHT] > 0).all()
        if tokens_per_step == 1:
            assert torch.equal(found[SELECTED_LOG_PROB], wanted)
        torch.testing.assert_close(found[SELECTED_LOG_PROB], wanted, rtol=1e-14, atol=1e-14)
        source = replayed.recorded[SELECTED_LOG_PROB]
        alike(found[SELECTED_LOG_PROB], data[source].gather(1, given["selected", "step"]))


@pytest.mark.parametrize("tempered", [True, False])
@pytest.mark.parametrize("stop_at_eos", [True, False])
def test_autoregressive_order_is_the_replay_of_a_left_to_right_trajectory(tempered: bool, stop_at_eos: bool) -> None:
    sampler, data = rolled_out(LeftToRight, 1, stop_at_eos)
    steps = selected(data, AllSteps())
    replayed = StepTokenLogProb(tempered)(steps, policy=POLICY, sampler=sampler)[SELECTED_LOG_PROB].detach()
    whole = estimated(AutoregressiveOrder(tempered, after_eos=True), sampler, selected(data, WholeSequence()))
    alike(whole[SELECTED_LOG_PROB][:, 0], replayed.sum(-1))
    alike(whole[SELECTED_LOG_PROB][:, 0], data["step", "token_log_prob" if tempered else "model_log_prob"].sum(-1))
    parts = estimated(AutoregressiveOrder(tempered, after_eos=True), sampler, selected(data, EqualSegments(3)))
    alike(parts[SELECTED_LOG_PROB].sum(-1), replayed.sum(-1))


def test_autoregressive_order_does_not_depend_on_the_order_of_decoding() -> None:
    for stop_at_eos in (True, False):
        sampler, data = rolled_out(LeftToRight, 1, stop_at_eos)
        reversed_ = data.clone()
        committed = data["commit_step"] < sampler.max_steps
        last = committed.sum(-1, keepdim=True) - 1
        reversed_["commit_step"] = torch.where(committed, last - data["commit_step"], data["commit_step"]).short()
        for after_eos in (True, False):
            likelihood = AutoregressiveOrder(after_eos=after_eos)
            a, b = (estimated(likelihood, sampler, selected(td, WholeSequence())) for td in (data, reversed_))
            assert torch.equal(a[SELECTED_LOG_PROB], b[SELECTED_LOG_PROB])


def test_random_masks_of_one_ratio_reduce_to_mean_field() -> None:
    sampler, data = rolled_out(RandomOrder, 2, True)
    data = selected(data, WholeSequence(3))
    wanted = estimated(MeanField(), sampler, data)
    for likelihood in (RandomMask(lower=1.0, upper=1.0), ScheduledMask(2)):
        found = estimated(likelihood, sampler, data)  # the second and last pass
        for key in (SELECTED_LOG_PROB, SELECTED_TOKEN_LOG_PROB, SELECTED_TOKEN_MASK, SEQUENCE_LENGTH):
            assert torch.equal(found[key], wanted[key])
    none = estimated(RandomMask(lower=0.0, upper=0.0), sampler, data)
    assert not none[SELECTED_TOKEN_MASK].any()
    assert not none[SELECTED_LOG_PROB].any()


def test_a_schedule_masks_more_in_each_pass() -> None:
    sampler, data = rolled_out(RandomOrder, 2, True)
    data = selected(data, WholeSequence(3))
    likelihood = ScheduledMask(5)
    ratios = []
    for number in range(5):
        data["iteration"] = torch.full((6,), number)
        ratios.append(likelihood.ratio(likelihood.segments(data, POLICY, sampler)))
    steps = torch.stack(ratios).diff(dim=0)
    assert (steps > 0).all()
    alike(steps, steps[:1].expand(4, -1).contiguous())
    assert torch.equal(ratios[-1], torch.ones(18, dtype=torch.float64))
    data["iteration"][2] = 5
    with pytest.raises(RecipeError, match=r"ScheduledMask\.inner_iterations = 5, but this is pass 6"):
        estimated(likelihood, sampler, data)


def test_sandwich_with_equal_bounds_is_the_lower_bound_of_the_same_masks() -> None:
    """mix_weight = 0: whatever the advantage, and for one block with nothing else masked a draw of ``Elbo``."""
    sampler, data = rolled_out(RandomOrder, 2, True)
    data = selected(data, WholeSequence(3))
    equal = Sandwich(block_length=3, mix_weight=0.0)
    found = estimated(equal, sampler, data)
    positive = data.clone()
    positive["selected", "advantage"] = torch.ones_like(data["selected", "advantage"])
    alike(found[SELECTED_LOG_PROB], estimated(Sandwich(block_length=3), sampler, positive)[SELECTED_LOG_PROB])
    mixed = estimated(Sandwich(block_length=3), sampler, data)[SELECTED_LOG_PROB]
    below = data["selected", "advantage"] <= 0
    assert torch.equal(mixed[~below], found[SELECTED_LOG_PROB][~below])
    assert (mixed[below] != found[SELECTED_LOG_PROB][below]).sum() >= 4  # a single token has one bound

    single = Sandwich(block_length=LENGTH_OF_COMPLETIONS, mix_weight=0.0, num_copies=1, prompt_mask_share=0.0)
    segments = single.segments(data, POLICY, sampler)
    copies = single.masks(segments)
    log_probs = torch.randn(copies.scored.shape, dtype=torch.float64).masked_fill(~copies.scored, 0)
    for a, b in zip(
        single.combine(log_probs, copies, segments), Elbo().combine(log_probs, copies, segments), strict=True
    ):
        alike(a, b)


def test_sandwich_takes_the_sign_of_each_segment_and_zero_is_not_positive() -> None:
    sampler, data = rolled_out(RandomOrder, 2, True)
    data = selected(data, WholeSequence(2))
    data["selected", "advantage"] = torch.tensor([[0.0, 1e-9]] * 6, dtype=torch.float64)
    upper, lower = (estimated(Sandwich(mix_weight=w), sampler, data)[SELECTED_LOG_PROB] for w in (1.0, 0.0))
    assert torch.equal(upper[:, 1], lower[:, 1])
    assert (upper[:, 0] != lower[:, 0]).sum() >= 4  # a single token has one bound
    half = estimated(Sandwich(mix_weight=0.5), sampler, data)[SELECTED_LOG_PROB]
    alike(half, (upper + lower) / 2)


def test_sandwich_draws_every_block_before_it_repeats_one() -> None:
    sampler, data = rolled_out(RandomOrder, 2, True)
    data = selected(data, WholeSequence(3))
    likelihood = Sandwich(num_copies=4, block_length=2, earlier_mask_share=0.0)
    segments = likelihood.segments(data, POLICY, sampler)
    scored = likelihood.masks(segments).scored
    for r in range(len(scored)):
        blocks = [int(row.int().argmax()) // 2 for row in scored[r]]  # the first block with a masked token
        there = {i // 2 for i in segments.targets[r].nonzero().flatten().tolist()}
        assert len(set(blocks)) == min(4, len(there))
        assert set(blocks) <= there
