"""The head of an update in pieces: the same log-probabilities and gradients, and no more logits than a piece holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.policies import tiny_policy
from support.rollouts import make, prompts, roll_out

from dlmrl_kit.core.policy import LOGITS_BYTES
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.likelihoods.step_merge import StepMerge
from dlmrl_kit.likelihoods.steps import StepLogProb, StepTokenLogProb
from dlmrl_kit.samplers.low_confidence import LowConfidence

POLICY = tiny_policy()
PIECE_TOKENS = 5


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Pieces of five predictions; yields how many went through the head each time."""
    seen: list[int] = []
    original = POLICY.head

    def counting(hidden: Any) -> Any:
        seen.append(len(hidden))
        return original(hidden)

    monkeypatch.setattr(POLICY, "head", counting)
    monkeypatch.setitem(LOGITS_BYTES, True, 4 * POLICY.vocab_size * PIECE_TOKENS)
    return seen  # type: ignore[return-value]


def estimate(likelihood: Any, small_pieces: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of all steps, and the gradient of their weighted sum; clears ``small_pieces`` before them."""
    sampler = make(LowConfidence, 6, 2, temperature=0.8)
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=4))
    valid = data["step", "valid"]
    step = torch.arange(valid.shape[1]).expand_as(valid).masked_fill(~valid, 0)
    data["selected", "step"], data["selected", "weight"] = step, valid.float()
    data["selected", "end"], data["seed"] = step + 1, sample_seeds(len(data), "cpu", 0)
    small_pieces.clear()
    likelihood.prepare(data, sampler=sampler, policy=POLICY)
    log_prob = likelihood(data, policy=POLICY, sampler=sampler)["selected", "log_prob"]
    total = (log_prob * torch.linspace(-1, 1, log_prob.numel()).reshape(log_prob.shape)).sum()
    gradient = torch.autograd.grad(total, list(POLICY.parameters()))
    return log_prob.detach(), torch.cat([g.flatten() for g in gradient])


@pytest.mark.parametrize("likelihood", [StepLogProb(), StepTokenLogProb(), StepTokenLogProb(False), StepMerge()])
def test_pieces_change_nothing(likelihood: Any, small_pieces: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    log_prob, gradient = estimate(likelihood, small_pieces)
    pieces = small_pieces.copy()
    monkeypatch.undo()
    whole_log_prob, whole_gradient = estimate(likelihood, [])
    torch.testing.assert_close(log_prob, whole_log_prob, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-4, atol=1e-5)
    assert whole_gradient.abs().max() > 1e-3
    grown = 6 if isinstance(likelihood, StepLogProb) else PIECE_TOKENS  # at least one whole state, of up to 6 positions
    assert max(pieces) <= grown
    assert len(pieces) >= 4  # and in the backward pass once more
