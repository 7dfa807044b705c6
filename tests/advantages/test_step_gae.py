"""Step-wise generalised advantage estimation against a loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.value_batches import LENGTH, POLICY, Opinionated, counted, rolled_out, segments
from tensordict import TensorDict

from dlmrl_kit.advantages.step_gae import StepGAE
from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.audit import audit_algorithm, exact_estimator
from dlmrl_kit.core.keys import SELECTED_OLD_VALUE, SELECTED_RETURN, SELECTED_TOKEN_ADVANTAGE
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.random_order import RandomOrder


def loop_gae(
    data: TensorDict, b: int, gamma: float, lam: float
) -> dict[str, dict[tuple[int, int], float] | dict[int, float]]:
    """Advantages of steps by segment; advantages and returns of tokens by (segment, position)."""
    steps = [(k, counted(data, b, k)) for k in range(data["selected", "weight"].shape[1])]
    steps = [(k, tokens) for k, tokens in steps if tokens]
    value = {(k, i): float(data[SELECTED_OLD_VALUE][b, k, i]) for k, tokens in steps for i in tokens}
    found: dict[str, Any] = {"step": {}, "token": {}, "return": {}}
    next_value = next_advantage = next_return = 0.0
    for place, (k, tokens) in reversed(list(enumerate(steps))):
        reward = float(data["reward"][b]) if place == len(steps) - 1 else 0.0
        mean = sum(value[k, i] for i in tokens) / len(tokens)
        for i in tokens:
            found["token"][k, i] = reward - value[k, i] + gamma * next_value + gamma * lam * next_advantage
            found["return"][k, i] = reward + gamma * next_return
        next_advantage = reward - mean + gamma * next_value + gamma * lam * next_advantage
        next_value, next_return = mean, reward + gamma * next_return
        found["step"][k] = next_advantage
    return found


def advantages(data: TensorDict, gamma: float, lam: float) -> TensorDict:
    gae = StepGAE(gamma, lam)
    return gae(data.clone(), policy=POLICY, keys=gae.optional_keys)


def with_values(data: TensorDict) -> TensorDict:
    """Values everywhere, where no token counts too."""
    shape = (*data["selected", "weight"].shape, LENGTH)
    data[SELECTED_OLD_VALUE] = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return data


@pytest.mark.parametrize("shrink", [1, 3])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.7), (0.8, 0.0), (0.0, 0.5), (1.0, 0.0)])
def test_step_gae_against_a_loop(shrink: int, gamma: float, lam: float) -> None:
    data = with_values(rolled_out(shrink)[1])
    found = advantages(data, gamma, lam)
    expected = {
        key: torch.zeros_like(found[key])
        for key in (("selected", "advantage"), SELECTED_TOKEN_ADVANTAGE, SELECTED_RETURN)
    }
    for b in range(len(data)):
        loop = loop_gae(data, b, gamma, lam)
        for key, name in zip(expected, ("step", "token", "return"), strict=True):
            for place, number in loop[name].items():
                expected[key][(b, *place) if isinstance(place, tuple) else (b, place)] = number
    for key, numbers in expected.items():
        assert torch.allclose(found[key], numbers, atol=1e-12, rtol=0), key
    lone = [b for b, k in segments(data) if data["selected", "weight"][b, k] > 0 and not counted(data, b, k)]
    assert lone  # steps without a token that counts are passed over
    assert found["selected", "advantage"].dtype == torch.float64


def test_without_discount_every_token_is_credited_with_the_reward_beyond_its_value() -> None:
    data = with_values(rolled_out()[1])
    found = advantages(data, 1.0, 1.0)
    for b, k in segments(data):
        for i in counted(data, b, k):
            assert found[SELECTED_RETURN][b, k, i].item() == pytest.approx(data["reward"][b].item(), abs=1e-12)
            expected = (data["reward"][b] - data[SELECTED_OLD_VALUE][b, k, i]).item()
            assert found[SELECTED_TOKEN_ADVANTAGE][b, k, i].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", [EntropyOrder(3, temperature=0.8), RandomOrder(3)], ids=["entropy", "random"])
def test_a_value_of_the_state_leaves_the_gradient_unbiased(sampler: Sampler) -> None:
    def audited(gamma: float) -> float:
        estimator = exact_estimator(sampler, Swaps(advantage=StepGAE(gamma), value=[Opinionated()]))
        report = audit_algorithm(estimator, problems=2, attribution=False)
        assert report.exact
        return float(report.relative_bias)

    assert audited(1.0) < 1e-10
    assert audited(0.5) > 0.01
