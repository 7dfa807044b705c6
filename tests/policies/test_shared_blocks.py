"""States packed into sequences that share blocks are the states run one by one, gradients included."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.block_checkpoints import BLOCK
from support.family_cases import CASES
from torch import Tensor
from torch.nn.functional import rms_norm

from dlmrl_kit.policies.routers import ExpertsPolicy
from dlmrl_kit.policies.shared_blocks import LONGEST, first_of_sequences, packing

LENGTH = 10
NAMES = ("sdar", "llada2", "sdar_moe", "fast_dllm", "stable_diffcoder")


@st.composite
def asked_states(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """States of some samples, whose prompts may be alike, in any order; tokens, mask and what is asked of each."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    samples, tokens = draw(st.integers(1, 4)), draw(st.sampled_from((2, 12)))  # with two tokens much is alike
    prompts = torch.randint(2, 2 + tokens, (samples, 9), generator=generator)
    if draw(st.booleans()):
        prompts = prompts[:1].expand(samples, -1)
    length = torch.tensor(draw(st.lists(st.integers(1, 9), min_size=samples, max_size=samples)))
    finals = torch.randint(2, 2 + tokens, (samples, LENGTH), generator=generator)
    block = (length[:, None] % BLOCK + torch.arange(LENGTH)) // BLOCK
    commit = (block + torch.rand(samples, LENGTH, generator=generator)).argsort(-1).argsort(-1)
    count = draw(st.integers(1, 10))
    sample = torch.randint(samples, (count,), generator=generator)
    step = torch.randint(LENGTH, (count, 1), generator=generator)
    real = torch.arange(9) >= 9 - length[sample, None]
    ids = torch.cat([prompts[sample] * real, finals[sample].masked_fill(commit[sample] >= step, 1)], 1)
    asked = commit[sample] == step
    if draw(st.booleans()):  # any positions, of some rows none
        asked = torch.rand(count, LENGTH, generator=generator) < 0.3
    positions = torch.cat([torch.zeros_like(real), asked], 1)
    return ids, torch.cat([real, torch.ones_like(asked)], 1), positions


@pytest.fixture(scope="module", params=NAMES)
def policy(request: pytest.FixtureRequest) -> Any:
    """A tiny model of a family, in float64 where torch has kernels for it: not of the experts."""
    made = next(case for case in CASES if case.name == request.param).load()
    if isinstance(made, ExpertsPolicy):
        return made
    for module in made.modules():
        if type(module).__name__.endswith("RMSNorm"):  # transformers' own computes in float32 whatever it is given
            norm: Any = module
            norm.forward = partial(rms_norm, normalized_shape=norm.weight.shape, weight=norm.weight, eps=1e-6)
    return made.double()


@settings(max_examples=15, deadline=None)
@given(asked_states())
def test_features_and_gradients_are_those_of_whole_states(policy: Any, given: tuple[Tensor, Tensor, Tensor]) -> None:
    ids, mask, positions = given
    weights = [weight for _, weight in policy.trainable()]
    found = policy.features(ids, mask, positions)
    row, column = positions.nonzero(as_tuple=True)
    if policy.shift_logits:
        column = torch.where(mask[row, column - 1], column - 1, column)
    wanted = policy.hidden(ids, mask)[row, column]
    near = {torch.float64: 1e-10, torch.float32: 1e-5}[wanted.dtype]
    torch.testing.assert_close(found, wanted, atol=near, rtol=near)
    with torch.no_grad():
        torch.testing.assert_close(policy.features(ids, mask, positions), found, atol=near, rtol=near)
    if not len(row):
        return
    slope = torch.randn(wanted.shape, dtype=wanted.dtype, generator=torch.Generator().manual_seed(0)) / len(row)
    ours, theirs = (
        torch.autograd.grad((slope * states).sum(), weights, allow_unused=True, materialize_grads=True)
        for states in (found, wanted)
    )
    largest = max(float(gradient.abs().max()) for gradient in theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=near * max(1.0, largest), rtol=0)


@given(asked_states(), st.sampled_from((1, 10**6)))
def test_a_sequence_is_a_tree_of_different_blocks(given: tuple[Tensor, Tensor, Tensor], hidden_size: int) -> None:
    """What a packed token sees is its state, and no two blocks of a sequence have seen the same."""
    ids, mask, positions = given
    row, column = positions.nonzero(as_tuple=True)
    if not len(row):
        return
    packed = packing(ids, mask, row, column, BLOCK, hidden_size)
    seen = packed.earlier() & (packed.block >= 0)[:, None, :]
    for number, (at, there) in enumerate(zip(packed.row.tolist(), packed.column.tolist(), strict=True)):
        state = ids[row[number]][mask[row[number]]]
        where = seen[at, there].nonzero().squeeze(-1)
        where = where[packed.position[at, where].argsort()]
        assert packed.position[at, where].tolist() == list(range(len(where)))
        assert torch.equal(packed.tokens[at, where], state[: len(where)])
        position = int(packed.position[at, there])
        assert position == int(mask[row[number], : column[number]].sum())
        assert len(where) == min((position // BLOCK + 1) * BLOCK, len(state))
    for at in range(len(packed.tokens)):
        sets = {}
        for there in (packed.block[at] >= 0).nonzero().squeeze(-1).tolist():
            where = seen[at, there].nonzero().squeeze(-1)
            content = sorted(zip(packed.position[at, where].tolist(), packed.tokens[at, where].tolist(), strict=True))
            place = (int(packed.first[at, there]), int(packed.block[at, there]))
            assert sets.setdefault(tuple(content), place) == place


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 1)), min_size=1, max_size=20), st.sampled_from((1, 256, 4096))
)
def test_sequences_cost_no_more_than_states_alone(states: list[tuple[int, float]], hidden_size: int) -> None:
    length = [whole for whole, _ in states]
    shared = [0] + [int(part * min(pair)) for pair, (_, part) in zip(pairwise(length), states[1:], strict=True)]
    first = first_of_sequences(length, shared, hidden_size)
    assert first[0]
    sequences: list[int] = []
    for whole, same, new in zip(length, shared, first, strict=True):
        if new:
            sequences.append(whole)
        else:
            assert same
            sequences[-1] += whole - same
            assert sequences[-1] <= LONGEST
    cost = [sum(tokens * (6 * hidden_size + tokens) for tokens in many) for many in (sequences, length)]
    assert cost[0] <= cost[1]


def test_the_states_of_a_sample_take_one_sequence() -> None:
    """Prompt 8, blocks of 4, states in the third block and the fifth: 8 + 8 + 4 tokens, and 4 of the first's own."""
    final = torch.arange(10, 22)
    ids = torch.cat([torch.arange(8), final]).repeat(2, 1)
    ids[0, 10:], ids[1, 17:] = 99, 99
    row, column = torch.tensor([0, 1]), torch.tensor([10, 17])
    packed = packing(ids, torch.ones_like(ids, dtype=torch.bool), row, column, 4, 4096)
    assert packed.tokens.shape == (1, 24)
    assert packed.row.tolist() == [0, 0]
