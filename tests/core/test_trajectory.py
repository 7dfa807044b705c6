"""States rebuilt from (final tokens, step of commit), against loops."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from dlmrl_kit.core.trajectory import committed_at, gather_steps, masked_at, num_valid, state_at

MASK = 99
B, K, L, T = 4, 5, 6, 7
GENERATOR = torch.Generator().manual_seed(0)
# -1: given from the start; T: never committed
COMMIT_STEP = torch.randint(-1, T + 1, (B, L), generator=GENERATOR).to(torch.int16)
IDS = torch.randint(0, 50, (B, L), generator=GENERATOR)
STEP = torch.randint(0, T, (B, K), generator=GENERATOR)


def test_the_example_holds_every_case() -> None:
    assert {-1, 0, T} <= set(COMMIT_STEP.flatten().tolist())
    assert committed_at(COMMIT_STEP, STEP).any()


def test_states_and_masks() -> None:
    masked, committed = masked_at(COMMIT_STEP, STEP), committed_at(COMMIT_STEP, STEP)
    states = state_at(IDS, COMMIT_STEP, STEP, MASK)
    assert masked.shape == committed.shape == states.shape == (B, K, L)
    for b in range(B):
        for k in range(K):
            for i in range(L):
                when, t = int(COMMIT_STEP[b, i]), int(STEP[b, k])
                assert masked[b, k, i].item() == (when >= t)
                assert committed[b, k, i].item() == (when == t)
                assert states[b, k, i].item() == (MASK if when >= t else int(IDS[b, i]))


def test_replaying_the_commits_gives_the_states() -> None:
    """x_0 is masked but for given tokens; committing what step t commits leads from x_t to x_{t+1}."""
    for b in range(B):
        state = [int(IDS[b, i]) if COMMIT_STEP[b, i] == -1 else MASK for i in range(L)]
        for t in range(T):
            assert state_at(IDS, COMMIT_STEP, torch.full((B, 1), t), MASK)[b, 0].tolist() == state
            state = [int(IDS[b, i]) if COMMIT_STEP[b, i] == t else state[i] for i in range(L)]


def test_gather_steps() -> None:
    flat = torch.randn(B, T, generator=GENERATOR)
    deep = torch.randn(B, T, 2, 3, generator=GENERATOR)
    for values in (flat, deep):
        gathered = gather_steps(values, STEP)
        assert gathered.shape == (B, K, *values.shape[2:])
        for b in range(B):
            for k in range(K):
                assert torch.equal(gathered[b, k], values[b, int(STEP[b, k])])


def test_gather_steps_is_differentiable() -> None:
    values = torch.zeros(B, T, requires_grad=True)
    gather_steps(values, STEP).sum().backward()
    expected = [[(STEP[b] == t).sum().item() for t in range(T)] for b in range(B)]
    assert values.grad is not None
    assert values.grad.tolist() == expected


def test_num_valid() -> None:
    valid = torch.arange(T) < torch.tensor([0, 3, T, 1])[:, None]
    assert num_valid(TensorDict({("step", "valid"): valid}, [B])).tolist() == [0, 3, T, 1]
