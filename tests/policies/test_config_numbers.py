"""Numbers in ``config.json`` that make no sense: one line at loading that names file and key, in every family."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.family_cases import CASES

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.config_numbers import check_numbers
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.testing.family_case import FamilyCase

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "eps": ({"rms_norm_eps": 0}, "rms_norm_eps must be a number between 0 and 1, got 0"),
    "eps below 0": ({"layer_norm_eps": -1e-5}, "layer_norm_eps must be a number between 0 and 1, got -1e-05"),
    "eps as text": ({"norm_eps": "1e-5"}, "norm_eps must be a number between 0 and 1, got '1e-5'"),
    "theta": ({"rope_theta": -10000.0}, "rope_theta must be a number of at least 1, got -10000.0"),
    "inner theta": (
        {"rope_parameters": {"rope_theta": 0}},
        "rope_parameters: rope_theta must be a number of at least 1",
    ),
    "inner factor": ({"rope_scaling": {"factor": 0.0}}, "rope_scaling: factor must be a positive number, got 0.0"),
    "parts": ({"text_config": {"hidden_size": -8}}, "text_config: hidden_size must be a whole number of 1 to"),
    "size": ({"vocab_size": 0}, "vocab_size must be a whole number of 1 to"),
    "no whole size": ({"d_model": 32.5}, "d_model must be a whole number of 1 to 2147483648, got 32.5"),
    "true": ({"num_attention_heads": True}, "num_attention_heads must be a whole number"),
    "layers": ({"n_layers": 10**9}, "n_layers must be a whole number of 1 to 10000, got 1000000000"),
    "other counts": ({"num_shared_experts": -1}, "num_shared_experts must be a whole number of 0 to"),
    "dropout": ({"attention_dropout": 1.5}, "attention_dropout must be a number from 0 to 1, got 1.5"),
    "width": (
        {"hidden_size": 30, "num_attention_heads": 4},
        "hidden_size = 30 is no multiple of num_attention_heads = 4",
    ),
    "groups": ({"n_heads": 4, "n_kv_heads": 3}, "n_heads = 4 is no multiple of n_kv_heads = 3"),
    "experts": ({"num_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok = 3 is more than num_experts = 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_number_that_makes_no_sense_is_named(case: str) -> None:
    config, message = WRONG[case]
    with pytest.raises(UserError) as caught:
        check_numbers("x/config.json", config)
    assert str(caught.value).startswith(f"x/config.json: {message}")


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": 30, "num_attention_heads": 4, "head_dim": 8},
        {"num_key_value_heads": None, "n_kv_heads": None, "sliding_window": None, "rope_scaling": None},
        {"type_vocab_size": 0, "num_nextn_predict_layers": 0, "attention_dropout": 0, "initializer_range": 0.0},
        {"max_relative_positions": -1, "pad_token_id": -1, "mask_rate": -0.5, "rope_theta": 1e30},
    ],
)
def test_what_published_configurations_have_is_left_alone(config: dict[str, Any]) -> None:
    check_numbers("config.json", config)


def numbers(config: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields where the numbers of a configuration are."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from numbers(value, (*before, name))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*before, name)


def changed(config: dict[str, Any], place: tuple[str, ...], value: object) -> dict[str, Any]:
    """Returns a configuration with another value at a place."""
    found = copy.deepcopy(config)
    inner = found
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_number_is_refused_by_name_or_gives_finite_logits(case: FamilyCase, tmp_path: Path) -> None:
    case.write(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    row = torch.arange(1, 9)[None]
    full = torch.ones_like(row, dtype=torch.bool)
    refused = set()
    for place in numbers(config):
        for value in (-1, 0):
            path.write_text(json.dumps(changed(config, place, value)))
            try:
                policy = load_policy(tmp_path, **case.options)
            except UserError as error:
                text = str(error)
                assert "\n" not in text, place
                assert place[-1] in text or "tensors are" in text or str(path) in text, (place, text)
                refused.add(place[-1])
                continue
            assert torch.isfinite(policy(row, full, full)).all(), (place, value)
    assert refused >= {name for name in config if name in ("vocab_size", "hidden_size", "d_model", "rms_norm_eps")}
