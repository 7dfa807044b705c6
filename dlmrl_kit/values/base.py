"""Value models: what a state, or a token of it, is worth; a small module trained beside the policy.

A value model reads the selected steps as a likelihood does, and writes ``("selected", "value")`` with gradient. What it
said before the update is ``("selected", "old_value")``: advantages are made of it, and its loss is clipped around it.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase

from dlmrl_kit.component import Component, Key
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.samplers.base import Sampler

VALUE: Key = ("selected", "value")
OLD_VALUE: Key = ("selected", "old_value")


class Value(Component):
    """Base class of value models; ``attach`` creates their modules, ``forward`` writes ``("selected", "value")``."""

    requires = ("policy", "sampler")

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [
            "prompt_ids",
            "prompt_mask",
            "completion_ids",
            "commit_step",
            ("selected", "step"),
            ("selected", "weight"),
        ]
        self.out_keys = [VALUE]


class OldValue(Component):
    """A value model before the update: writes ``("selected", "old_value")``, without gradient."""

    requires = ("policy", "sampler")

    def __init__(self, value: Value) -> None:
        super().__init__()
        self.value = value
        self.in_keys = list(value.in_keys)
        self.out_keys = [OLD_VALUE]

    def forward(self, tensordict: TensorDictBase, *, policy: Policy, sampler: Sampler) -> TensorDictBase:
        """Runs the value model on a copy and keeps its values."""
        with torch.no_grad():
            found = self.value(tensordict.copy(), policy=policy, sampler=sampler)
        return tensordict.set(OLD_VALUE, found[VALUE])
