"""The table of trajectory keys."""

from __future__ import annotations

import torch

from dlmrl_kit.core.keys import KEYS


def test_every_key_names_a_torch_dtype() -> None:
    letters = {"B", "P", "L", "T", "K", "C", "V", "D"}
    for key, spec in KEYS.items():
        assert isinstance(getattr(torch, spec.dtype), torch.dtype), key
        assert {part.strip() for part in spec.shape.strip("[]").split(",")} <= letters, key
