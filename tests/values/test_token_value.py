"""Token values against a loop; what they leave alone, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.policies import tiny_policy
from support.value_batches import POLICY, Opinionated, batch, counted, rolled_out, segments

from dlmrl_kit.advantages.step_gae import StepGAE
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.keys import SELECTED_OLD_VALUE, SELECTED_VALUE
from dlmrl_kit.losses.token_ppo import TokenAdvantagePPO
from dlmrl_kit.regularisers.value_loss import ValueLoss
from dlmrl_kit.values.base import OldValue
from dlmrl_kit.values.token_value import TokenValue

# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("after_eos", [False, True])
def test_token_values_against_a_loop(after_eos: bool) -> None:
    sampler, data = rolled_out()
    value = Opinionated(after_eos, batch_size=5)
    found = value(data.clone(), policy=POLICY, sampler=sampler)[SELECTED_VALUE]
    assert value.head is not None
    weight = value.head.weight[0]
    expected = torch.zeros_like(found)
    behind = 0
    for b, k in segments(data):
        positions = counted(data, b, k, after_eos)
        behind += len(counted(data, b, k, True)) - len(positions)
        prompt = data["prompt_ids"][b][data["prompt_mask"][b]].tolist()
        commit, start = data["commit_step"][b], data["selected", "step"][b, k]
        state = data["completion_ids"][b].masked_fill(commit >= start, POLICY.mask_id).tolist()
        hidden = POLICY.model.model(input_ids=torch.tensor([prompt + state])).last_hidden_state[0, len(prompt) :]
        for i in positions:
            expected[b, k, i] = (weight * hidden[i]).sum()
    assert (behind > 0) == (not after_eos)
    assert torch.allclose(found, expected, atol=1e-10, rtol=0)
    assert found.abs().max() > 0.1


def test_values_start_at_zero_and_give_the_policy_no_gradient() -> None:
    sampler, data = rolled_out()
    value = TokenValue()
    value.attach(POLICY)
    found = value(data.clone(), policy=POLICY, sampler=sampler)[SELECTED_VALUE]
    assert torch.equal(found, torch.zeros_like(found))
    parameters = [p for _, p in POLICY.trainable()]
    gradient = torch.autograd.grad(found.sum(), [*parameters, *value.parameters()], allow_unused=True)
    assert all(part is None for part in gradient[:-1])
    assert gradient[-1].abs().max() > 0
    old = OldValue(Opinionated())(data.clone(), policy=POLICY, sampler=sampler)[SELECTED_OLD_VALUE]
    assert not old.requires_grad
    with pytest.raises(UserError, match="hidden size 16; this one has 32"):
        value.attach(tiny_policy())


# -------------------------------------------------------------------------------------------------------------- terms


@pytest.mark.parametrize("term", [TokenAdvantagePPO(), ValueLoss()], ids=lambda t: type(t).__name__)
def test_tokens_that_are_not_by_position_are_refused(term: Any) -> None:
    data = batch()
    for name in ("token_mask", "token_log_prob", "old_token_log_prob"):
        data["selected", name] = data["selected", name][..., :2]
    with pytest.raises(ValueError, match=r"needs a likelihood that scores positions, such as StepMerge; token_mask is"):
        term(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepGAE(gamma=1.5), r"gamma must be in \[0, 1\]"),
        (lambda: StepGAE(lam=-0.1), r"lam must be in \[0, 1\]"),
        (lambda: ValueLoss(clip=-1), "clip must be at least 0"),
        (lambda: TokenValue(batch_size=0), "batch_size must be at least 1"),
        (lambda: TokenValue(learning_rate=0.0), "learning_rate must be positive"),
    ],
)
def test_values_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
