"""The loss of single tokens against a loop."""

from __future__ import annotations

from typing import Any

import pytest
from support.value_batches import NORMALISERS, batch, loop_shares

from dlmrl_kit.core.keys import SELECTED_TOKEN_ADVANTAGE
from dlmrl_kit.losses.token_ppo import TokenAdvantagePPO, TokenPPO


@pytest.mark.parametrize("normaliser", NORMALISERS, ids=lambda n: type(n).__name__)
def test_the_loss_of_single_tokens_against_a_loop(normaliser: Any) -> None:
    data = batch(1)
    found = TokenAdvantagePPO(0.2, 0.4, normaliser)(data)["loss_objective"]
    expected = 0.0
    for t, share in loop_shares(data, normaliser).items():
        ratio = float((data["selected", "token_log_prob"][t] - data["selected", "old_token_log_prob"][t]).exp())
        advantage = float(data[SELECTED_TOKEN_ADVANTAGE][t])
        expected -= share * min(ratio * advantage, min(max(ratio, 0.8), 1.4) * advantage)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_equal_advantages_within_a_step_give_token_ppo() -> None:
    data = batch(2)
    spread = data["selected", "advantage"][..., None].expand(5, 3, 6).clone()
    found = TokenAdvantagePPO()(data.clone().set(SELECTED_TOKEN_ADVANTAGE, spread))
    expected = TokenPPO()(data)
    assert {key: value.item() for key, value in found.items()} == {key: value.item() for key, value in expected.items()}
