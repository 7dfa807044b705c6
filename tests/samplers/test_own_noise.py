"""A row draws the same whatever the batch is: other rows, their order, pieces, padding, what else is recorded."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.policies import TabularPolicy, tiny_policy
from support.rollouts import SAMPLERS, make, no_prompt, prompts
from support.seeds import seeded
from support.statistics import chi_square, chi_square_limit
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.core.behaviour import Behaviour
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.policy import LOGITS_BYTES
from dlmrl_kit.core.seeding import combine_seeds, sample_seeds
from dlmrl_kit.samplers.base import Sampler, View
from dlmrl_kit.samplers.entropy_bound_renoising import EntropyBoundRenoising
from dlmrl_kit.samplers.learned_order import LearnedOrder
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder

LENGTH = 7
POLICY = tiny_policy(characters="abcd", initializer_range=0.25, layers=1, hidden=16).to(torch.float64)
OPTIONS: dict[str, Any] = {"block_length": 4, "temperature": 1.5}
EVERY: dict[str, Sampler] = {
    **{cls.__name__: make(cls, LENGTH, 2, **OPTIONS) for cls in SAMPLERS},
    "LearnedOrder": LearnedOrder(LENGTH, 2, **OPTIONS),
    "EntropyBoundRenoising": EntropyBoundRenoising(LENGTH, 4, steps=3, confidence_threshold=0),
}
DRAWN = ("completion_ids", "commit_step")


def batch(rows: int = 8, seed: int = 0) -> TensorDict:
    """Rows in pairs with the same prompt, each with a seed of its own."""
    data = seeded(prompts(POLICY, rows=rows // 2)[torch.arange(rows) // 2], seed)
    return data.set("group", torch.arange(rows) // 2)


def padded(data: TensorDict, columns: int) -> TensorDict:
    """The same prompts with more padding on the left."""
    more = data.clone()
    for key, value in (("prompt_ids", POLICY.pad_id), ("prompt_mask", False)):
        more[key] = torch.nn.functional.pad(data[key], (columns, 0), value=value)
    return more


def same(found: Any, expected: Any) -> None:
    for key in DRAWN:
        assert torch.equal(found[key], expected[key]), key
    for name in ("valid", "num_committed"):
        assert torch.equal(found["step", name], expected["step", name]), name
    torch.testing.assert_close(found["step", "log_prob"], expected["step", "log_prob"], rtol=1e-9, atol=1e-9)


def check_any_batch(name: str, order: list[int], chunk: int, columns: int) -> None:
    """Pairs in this order, cut into pieces, with padding; a sampler of groups gets whole pairs."""
    sampler, whole = EVERY[name], batch()
    expected = sampler(whole.clone(), policy=POLICY)
    rows = torch.tensor([2 * pair + member for pair in order for member in (0, 1)])
    size = 2 * chunk if sampler.group_size else chunk
    pieces = [sampler(piece.clone(), policy=POLICY) for piece in padded(whole[rows], columns).split(size)]
    same(torch.cat([piece.exclude("prompt_ids", "prompt_mask") for piece in pieces]), expected[rows])


@pytest.mark.parametrize("name", EVERY)
def test_a_row_draws_the_same_in_another_batch(name: str) -> None:
    check_any_batch(name, [3, 0, 2], 2, 1)


@pytest.mark.thorough
@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=8, deadline=None)
@given(st.permutations(range(4)), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_a_row_draws_the_same_in_any_batch(name: str, order: list[int], some: int, chunk: int, columns: int) -> None:
    check_any_batch(name, order[:some], chunk, columns)


@pytest.mark.parametrize("name", EVERY)
def test_what_else_is_recorded_and_held_in_memory_changes_no_draw(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, whole = EVERY[name], batch()
    expected = sampler(whole.clone(), policy=POLICY)
    same(sampler(whole.clone(), policy=POLICY, keys=sampler.optional_keys), expected)
    monkeypatch.setitem(LOGITS_BYTES, True, 1)  # one row at a time
    same(sampler(whole.clone(), policy=POLICY, keys=sampler.optional_keys), expected)
    assert not torch.equal(sampler(batch(seed=1), policy=POLICY)["completion_ids"], expected["completion_ids"])


@pytest.mark.parametrize("name", [name for name in EVERY if name != "EntropyBoundRenoising"])
def test_resumed_rows_draw_the_same_in_any_batch(name: str) -> None:
    sampler, whole = EVERY[name], batch()
    filled = torch.arange(8)[:, None] > torch.arange(LENGTH)
    ids = torch.where(filled, 5, POLICY.mask_id)
    expected = sampler.resume(whole, ids, policy=POLICY)
    order = torch.tensor([6, 1, 3, 0])
    found = sampler.resume(padded(whole[order], 2), ids[order], policy=POLICY)
    for key in DRAWN:
        assert torch.equal(found[key], expected[key][order])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", EVERY)
def test_a_gpu_draws_what_a_cpu_draws(name: str) -> None:
    policy = tiny_policy(characters="abcd", initializer_range=0.25, layers=1, hidden=16).to(torch.float64)
    expected = EVERY[name](batch(), policy=policy)
    same(EVERY[name](batch().to("cuda"), policy=policy.to("cuda")).cpu(), expected)


@pytest.mark.parametrize("name", EVERY)
def test_without_seeds_nothing_is_drawn(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} draws from the seed of each sample, the key 'seed'.*prompt_batch"):
        EVERY[name](batch().exclude("seed"), policy=POLICY)


def independent(first: Tensor, second: Tensor, probs: list[float]) -> None:
    """Pairs of tokens come up as often as the product of their probabilities says."""
    size = len(probs)
    counts = torch.bincount(size * first + second, minlength=size * size).tolist()
    statistic, degrees = chi_square(counts, [p * q for p, q in itertools.product(probs, probs)])
    assert degrees == size * size - 1
    assert statistic < chi_square_limit(degrees)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**62), base=st.integers(0, 2**40), probs=st.lists(st.integers(1, 9), min_size=2, max_size=5)
)
def test_tokens_are_independent_between_samples_positions_and_steps(seed: int, base: int, probs: list[int]) -> None:
    """With seeds as updates give them, and with seeds that are consecutive numbers, the worst there are."""
    rows, shares = 4000, [p / sum(probs) for p in probs]
    logits = torch.tensor(shares, dtype=torch.float64).log().expand(rows * 2, -1)
    view = View(logits, Behaviour(), torch.ones(rows, 2, dtype=torch.bool))
    for seeds in (sample_seeds(rows, "cpu", seed), base + torch.arange(rows)):
        now, after = (view.draw(combine_seeds(seeds, step)).reshape(rows, 2) for step in (3, 4))
        independent(now[:, 0], now[:, 1], shares)  # two positions
        independent(now[:, 0], after[:, 0], shares)  # two steps
        independent(now[:-1, 1], now[1:, 1], shares)  # two samples
        independent(now[:, 0], after[:, 1], shares)


@pytest.mark.parametrize("cls", [RandomOrder, PlackettLuceOrder])
def test_every_order_of_positions_is_as_likely_as_it_should_be(cls: type[Sampler]) -> None:
    """Positions of equal score, one per step: 24 orders, all equally likely, and independent of the tokens."""
    policy, rows = TabularPolicy(2, 4, scale=0.0), 24_000
    data = cls(4, temperature=1.0)(seeded(no_prompt(rows)), policy=policy)
    orders = Counter(map(tuple, data["commit_step"].tolist()))
    statistic, degrees = chi_square([orders[order] for order in itertools.permutations(range(4))], [1 / 24] * 24)
    assert degrees == 23
    assert statistic < chi_square_limit(degrees)
    first = data["commit_step"][:, 0].long()
    both = torch.bincount(2 * first + data["completion_ids"][:, 0], minlength=8).tolist()
    statistic, degrees = chi_square(both, [1 / 8] * 8)
    assert statistic < chi_square_limit(degrees)
