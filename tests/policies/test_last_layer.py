"""The last layer at asked places only: the states and gradients of the whole model, and where it is not used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decoder_models import CLASSES, model_of

from dlmrl_kit.policies.last_layer import last_layer_at, prunable

MODELS = [model_of(*pair) for pair in CLASSES]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(MODELS), st.integers(0, 10**6), st.booleans())
def test_states_and_gradients_are_those_of_the_whole_model(model: Any, seed: int, padded: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(13, (3, 7), generator=generator)
    mask = torch.ones(3, 7, dtype=torch.bool)
    if padded:
        mask[1, :2], mask[2, :4] = False, False
    asked = (torch.rand(3, 7, generator=generator) < 0.4) & mask
    asked[0] = False  # a row of which nothing is asked
    asked[1, 6] = True
    row, column = asked.nonzero(as_tuple=True)
    body = model.get_decoder()
    position = (mask.long().cumsum(-1) - 1).clamp(min=0)
    whole = body(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).last_hidden_state[asked]
    found = last_layer_at(body, ids, mask, row, column)
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-9)

    weight = torch.randn(whole.shape, generator=generator, dtype=torch.float64)
    parameters = list(body.parameters())
    expected, own = (torch.autograd.grad((x * weight).sum(), parameters) for x in (whole, found))
    for a, b in zip(own, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_places_may_be_given_as_a_table() -> None:
    ids, mask = torch.arange(10).reshape(2, 5), torch.ones(2, 5, dtype=torch.bool)
    column = torch.tensor([[4, 0, 4], [1, 2, 3]])
    body = MODELS[0].get_decoder()
    whole = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    found = last_layer_at(body, ids, mask, torch.arange(2)[:, None], column)
    torch.testing.assert_close(found, whole.gather(1, column[..., None].expand(-1, -1, 16)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("config", "cls"), CLASSES)
def test_it_is_used_only_where_it_is_the_same(config: Any, cls: Any) -> None:
    assert prunable(model_of(config, cls))
    assert not prunable(model_of(config, cls, is_causal=True))
    assert not prunable(model_of(config, cls, attn_implementation="eager"))
    assert not prunable(model_of(config, cls).train())
    assert not prunable(torch.nn.Linear(2, 2))
