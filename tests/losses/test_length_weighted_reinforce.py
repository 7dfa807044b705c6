"""REINFORCE weighted by length, as SPG has it."""

from __future__ import annotations

import pytest
from support.loss_batches import LENGTH, STEP, make_batch, totals, with_equal_advantages

from dlmrl_kit.losses.length_weighted_reinforce import LengthWeightedReinforce


@pytest.mark.parametrize("seed", range(3))
def test_length_weighted_reinforce_equals_spgs_formula(seed: int) -> None:
    """-sum_i A_i * (log-probability per token)_i * length_i / sum_i length_i."""
    batch = with_equal_advantages(make_batch(seed, b=6))
    length = batch[LENGTH].tolist()
    per_token = {i: total.item() / length[i] for i, total in totals(batch, STEP).items()}
    terms = [-batch["advantage"][i].item() * value * length[i] for i, value in per_token.items()]
    loss = LengthWeightedReinforce()
    tokens = sum(length[i] for i in per_token)
    assert loss(batch)["loss_objective"].item() == pytest.approx(sum(terms) / tokens, rel=1e-10)
    assert loss.count(batch).item() == tokens
