"""The loss of MDPO, against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict

from dlmrl_kit.losses.token_ppo import ConfidenceTokenPPO, TokenPPO
from dlmrl_kit.normalisers.means import PerStep


def loss_data(seed: int = 0) -> TensorDict:
    """Random log-probabilities in float64 with gradient, masks, weights; garbage where nothing counts."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, 3, 5, generator=generator) < 0.6
    weight = torch.rand(4, 3, generator=generator).double() + 0.5
    weight[1, 2] = weight[3] = 0
    old = -torch.rand(4, 3, 5, generator=generator).double() * 2
    new = old + 0.4 * torch.randn(4, 3, 5, generator=generator).double()
    dirty = ~(mask & (weight != 0)[..., None])
    return TensorDict(
        {
            ("selected", "token_log_prob"): new.masked_fill(dirty, math.nan).requires_grad_(),
            ("selected", "old_token_log_prob"): old.masked_fill(dirty, math.inf),
            ("selected", "token_mask"): mask,
            ("selected", "advantage"): torch.randn(4, 3, generator=generator).double(),
            ("selected", "weight"): weight,
        },
        [4],
    )


@pytest.mark.parametrize("seed", range(3))
def test_confidence_token_ppo_equals_the_loop(seed: int) -> None:
    """lambda_t c s summed over masked tokens, with lambda_t = L / masked, over L times the weight of the steps."""
    data, length = loss_data(seed), 5
    loss = ConfidenceTokenPPO(0.2, 0.3, PerStep())
    new = data["selected", "token_log_prob"]
    total, steps = torch.zeros((), dtype=torch.float64), 0.0
    for b in range(4):
        for k in range(3):
            weight, here = data["selected", "weight"][b, k].item(), data["selected", "token_mask"][b, k]
            if weight == 0 or not here.any():
                continue
            steps += weight
            lam = length / int(here.sum())
            for i in here.nonzero().flatten().tolist():
                old, advantage = data["selected", "old_token_log_prob"][b, k, i], data["selected", "advantage"][b, k]
                ratio = (new[b, k, i] - old).exp()
                surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage)
                total = total - weight * lam * old.exp() * surrogate
    wanted = total / (length * steps)
    found = loss(data)["loss_objective"]
    assert found.item() == pytest.approx(wanted.item(), abs=1e-9)
    gradients = [torch.autograd.grad(value, new, retain_graph=True)[0] for value in (found, wanted)]
    assert torch.allclose(gradients[0], gradients[1], atol=1e-9)
    assert gradients[0].any()


def test_with_full_confidence_it_is_token_ppo() -> None:
    data = loss_data()
    data["selected", "old_token_log_prob"] = torch.zeros_like(data["selected", "old_token_log_prob"])
    found, plain = (cls(normaliser=PerStep())(data)["loss_objective"] for cls in (ConfidenceTokenPPO, TokenPPO))
    assert found.item() == plain.item() != 0
