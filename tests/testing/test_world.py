"""The world that components are checked in has values for the keys that plugins declare."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dlmrl_kit.core.keys import KEYS, declare_key
from dlmrl_kit.testing.world import world


@pytest.fixture(autouse=True)
def _declarations_end() -> Iterator[None]:
    before = dict(KEYS)
    yield
    KEYS.clear()
    KEYS.update(before)


def test_declared_keys_have_values_of_the_trajectory_as_it_is() -> None:
    """Also once its steps are cut, and once the module that declares them is loaded again."""
    for begin in (5, 0):
        last = declare_key(
            ("acme", "last"),
            "int64",
            "[B]",
            "last step",
            lambda data, begin=begin: begin + data["step", "valid"].sum(-1),
        )
    noise = declare_key(("acme", "noise"), "float32", "[B, T, D]", "any numbers")
    made = world(torch.float64)
    for steps in (made.full["step", "valid"].shape[1], 3):
        made.full["step"] = made.full["step"].apply(lambda value, n=steps: value[:, :n].clone())
        made.add_declared()
        assert torch.equal(made.full[last], made.full["step", "valid"].sum(-1))
        assert made.full[noise].shape == (8, steps, 2)
        assert made.full[noise].dtype == torch.float64
