"""Approximate caches: the cached policy is a function of the state, equal to one computed layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decoder_models import CLASSES, model_of
from support.policies import TabularPolicy, tiny_policy
from support.rollouts import SAMPLERS, make, prompts, roll_out
from support.runs import recipe
from support.seeds import seeded
from torch import Tensor

from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.caches.prefix_cache import PrefixCache
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.window import Window
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.policies.key_cache import KeyCache
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.entropy_bound_renoising import EntropyBoundRenoising
from dlmrl_kit.samplers.learned_order import LearnedOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.settings import check_cache
from dlmrl_kit.training.runs import train

MASK, PROMPT, LENGTH, BLOCK = 12, 3, 7, 3
BODIES = [model_of(*pair, num_hidden_layers=3).get_decoder() for pair in CLASSES]


def layer_by_layer(body: Any, ids: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Final hidden states [B, S, D] of the cached policy, with the model's own layers on whole sequences.

    In every layer, what is outside of the window is the anchor's input to that layer.
    """
    span = window.of(ids)
    column = torch.arange(ids.shape[1])
    inside = ((column >= span.start[:, None]) & (column < span.end[:, None]))[..., None]
    position = (mask.long().cumsum(-1) - 1).clamp(min=0)
    then, now = body.embed_tokens(span.anchor), body.embed_tokens(ids)
    shared = {
        "attention_mask": mask[:, None, None, :],
        "position_embeddings": body.rotary_emb(then, position_ids=position),
        "position_ids": position,
        "is_causal": False,
    }
    for layer in body.layers:
        then, now = layer(then, **shared), layer(torch.where(inside, now, then), **shared)
    return body.norm(torch.where(inside, now, then))


def states(generator: torch.Generator, rows: int) -> tuple[Tensor, Tensor]:
    """States in the middle of decoding block by block, and their masks: some rows are left-padded."""
    ids = torch.randint(MASK, (rows, PROMPT + LENGTH), generator=generator)
    mask = torch.ones(rows, PROMPT + LENGTH, dtype=torch.bool)
    for row in range(rows):
        mask[row, : int(torch.randint(PROMPT, (), generator=generator))] = False
        begin = PROMPT + BLOCK * int(torch.randint(-(-LENGTH // BLOCK), (), generator=generator))
        end = min(begin + BLOCK, PROMPT + LENGTH)
        left = int(torch.randint(1, end - begin + 1, (), generator=generator))
        ids[row, begin + torch.randperm(end - begin, generator=generator)[:left]] = MASK
        ids[row, end:] = MASK
    return ids, mask


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(BODIES),
    st.sampled_from([DualCache(), PrefixCache()]),
    st.sampled_from([None, 1, 2]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_cached_states_are_those_computed_layer_by_layer(
    body: Any, cache: Any, refresh: int | None, shift: bool, everywhere: bool, seed: int
) -> None:
    """In any order of calls: rows come, go, are repeated and change places, and ask for different positions."""
    generator = torch.Generator().manual_seed(seed)
    window = Window(MASK, LENGTH, BLOCK, cache.to_end, int(shift), refresh)
    found = KeyCache(window)
    ids, mask = states(generator, 5)
    for _ in range(4):
        rows = torch.randint(5, (int(torch.randint(1, 6, (), generator=generator)),), generator=generator)
        asked = (ids[rows] == MASK) if everywhere else _in_block(ids[rows], window)
        if shift:
            asked = asked.roll(-1, dims=1)
        first = int((~mask[rows].any(0)).long().cumprod(0).sum())  # shared padding is left out
        row, column = asked[:, first:].nonzero(as_tuple=True)
        with torch.no_grad():
            own = found.hidden_at(body, ids[rows, first:], mask[rows, first:], row, column)
            expected = layer_by_layer(body, ids[rows], mask[rows], window)[asked]
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-9)
        ids = _committed(ids, generator)
        everywhere = everywhere or bool(torch.rand((), generator=generator) < 0.2)


def _in_block(ids: Tensor, window: Window) -> Tensor:
    span = window.of(ids)
    begin = PROMPT + ((ids[:, PROMPT:] == MASK).long().argmax(-1) // BLOCK) * BLOCK
    column = torch.arange(ids.shape[1])
    return (ids == MASK) & (column >= begin[:, None]) & (column < begin[:, None] + BLOCK) & (span.anchor == MASK)


def _committed(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Each row commits one position of its block, but for rows with a single mask."""
    ids = ids.clone()
    for row in range(len(ids)):
        masks = (ids[row] == MASK).nonzero().squeeze(-1)
        if len(masks) > 1:
            block = (masks[0] - PROMPT) // BLOCK
            own = masks[(masks - PROMPT) // BLOCK == block]
            ids[row, own[int(torch.randint(len(own), (), generator=generator))]] = 1
    return ids


POLICY = tiny_policy(layers=3, characters="abcd", initializer_range=0.5, attn_implementation="sdpa").double()
CACHES = [DualCache(), PrefixCache(), DualCache(2)]
every_cache = pytest.mark.parametrize("cache", CACHES, ids=lambda cache: f"{type(cache).__name__} {cache.refresh}")


def sampled(sampler: Sampler, cache: Any, policy: Any = POLICY, seed: int = 0) -> Any:
    return roll_out(sampler, policy, prompts(policy, rows=8), seed, cache=cache)


def replayed(trajectory: Any, sampler: Sampler, policy: Any = POLICY) -> Tensor:
    return StepLogProb()(trajectory.clone(), policy=policy, sampler=sampler)["selected", "log_prob"].detach()


@every_cache
@pytest.mark.parametrize("cls", SAMPLERS)
def test_a_cached_rollout_records_what_it_samples_from(cls: type[Sampler], cache: Any) -> None:
    sampler = make(cls, 7, tokens_per_step=2, block_length=3, temperature=0.8)
    trajectory = sampled(sampler, cache)
    valid, recorded = trajectory["step", "valid"], trajectory["step", "log_prob"]
    with torch.no_grad(), sampler.sampling_from(POLICY, cache):
        again = replayed(trajectory, sampler)
    torch.testing.assert_close(again[valid], recorded[valid], rtol=1e-9, atol=1e-9)
    apart = (replayed(trajectory, sampler) - recorded)[valid].abs().max()
    if cls is LeftToRight and cache.refresh == 2:  # each step completes a cell
        assert apart < 1e-9
    else:
        assert apart > 1e-3  # the policy's is another one


@every_cache
def test_the_first_step_of_a_block_is_exact(cache: Any) -> None:
    """All earlier tokens are in the anchor, so that only commits of the block itself can be missed."""
    sampler = make(LowConfidence, 6, tokens_per_step=3, block_length=3, stop_at_eos=False)
    trajectory = sampled(sampler, cache)
    torch.testing.assert_close(replayed(trajectory, sampler), trajectory["step", "log_prob"], rtol=1e-9, atol=1e-9)


@every_cache
def test_shifted_logits_and_features_of_a_learned_order(cache: Any) -> None:
    policy = tiny_policy(layers=2, characters="abcd", attn_implementation="sdpa").double()
    policy.shift_logits = True
    for sampler in (make(LowConfidence, 7, 2, block_length=3), LearnedOrder(7, 2, block_length=3)):
        trajectory = sampled(sampler, cache, policy)
        with torch.no_grad(), sampler.sampling_from(policy, cache):
            again = replayed(trajectory, sampler, policy)
        torch.testing.assert_close(again, trajectory["step", "log_prob"], rtol=1e-9, atol=1e-9)


def positions_computed(sampler: Sampler, cache: Any, keys: Any = ()) -> list[int]:
    """Positions that go through the first layer's MLP in each forward of a rollout of one sample."""
    counts: list[int] = []
    hook = POLICY.model.model.layers[0].mlp.register_forward_hook(
        lambda _, given, out: counts.append(out[..., 0].numel())
    )
    try:
        sampler(seeded(prompts(POLICY, rows=1)), policy=POLICY, cache=cache, keys=keys)
    finally:
        hook.remove()
    return counts


def test_positions_that_are_computed() -> None:
    sampler = LowConfidence(6, 1, block_length=3, stop_at_eos=False)
    assert positions_computed(sampler, None) == [10] * 6
    assert positions_computed(sampler, DualCache()) == [10, 3, 3, 3, 10, 3, 3, 3]
    assert positions_computed(sampler, PrefixCache()) == [10, 6, 6, 6, 10, 3, 3, 3]
    greedy = [("step", "greedy_ids")]  # everything open is asked for, and known from the anchor
    assert positions_computed(sampler, DualCache(), greedy) == [10, 3, 3, 3, 10, 3, 3, 3]


def test_equal_prompts_begin_together() -> None:
    sampler, counts = LowConfidence(3, 1, stop_at_eos=False), []
    hook = POLICY.model.model.layers[0].mlp.register_forward_hook(lambda _, given, out: counts.append(len(out)))
    same = prompts(POLICY, rows=2)[torch.tensor([0, 1, 0, 0, 1])]
    sampler(seeded(same), policy=POLICY, cache=DualCache())
    hook.remove()
    assert counts == [2, 5, 5, 5]


def test_gradients_are_those_of_the_policy() -> None:
    sampler = LowConfidence(6, 2, block_length=3)
    trajectory = sampled(sampler, DualCache())
    exact = StepLogProb()(trajectory.clone(), policy=POLICY, sampler=sampler)["selected", "log_prob"]
    with sampler.sampling_from(POLICY, DualCache()):
        inside = StepLogProb()(trajectory.clone(), policy=POLICY, sampler=sampler)["selected", "log_prob"]
    assert torch.equal(exact, inside)
    assert inside.requires_grad


def test_lora_is_merged_in_cached_rollouts_too() -> None:
    from peft import LoraConfig

    policy = tiny_policy(layers=2, attn_implementation="sdpa")
    policy.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "v_proj", "up_proj"]))
    sampler = LowConfidence(6, 2, block_length=3)
    trajectory = sampled(sampler, PrefixCache(), policy)
    with torch.no_grad(), sampler.sampling_from(policy, PrefixCache()):
        again = replayed(trajectory, sampler, policy)
    torch.testing.assert_close(again, trajectory["step", "log_prob"], rtol=1e-4, atol=1e-4)


def test_evaluation_decodes_without_the_cache(tmp_path: Path) -> None:
    sets = ["Trainer.updates = 1", "CharacterLlama.num_layers = 2", "Sampler.block_length = 8"]
    results = [
        train(recipe("egspo", sets, ["policy=CharacterLlama", f"cache={cache}"]), tmp_path / cache)
        for cache in ("none", "DualCache")
    ]
    assert results[0].before == results[1].before


def test_policies_without_a_cache_are_refused() -> None:
    sampler, cache = LowConfidence(6, 2), DualCache()
    with pytest.raises(UserError, match=r"a cache needs a model of one of the classes LlamaModel.*sdpa"):
        check_cache(sampler, tiny_policy(attn_implementation="eager"), cache)
    blockwise = tiny_policy(attn_implementation="sdpa")
    blockwise.block_size = 3
    with pytest.raises(UserError, match="reuses finished blocks exactly"):
        check_cache(sampler, blockwise, cache)
    with pytest.raises(UserError, match="TabularPolicy has no approximate cache: take no cache"):
        check_cache(sampler, TabularPolicy(3, 6), cache)
    with pytest.raises(UserError, match="a cache needs a model of one of the classes"):  # by hand, too
        sampled(sampler, cache, tiny_policy(attn_implementation="eager"))
    renoising = EntropyBoundRenoising(6, steps=2)
    with pytest.raises(UserError, match="DualCache is for samplers that commit a position once"):
        check_cache(renoising, tiny_policy(attn_implementation="sdpa"), cache)
