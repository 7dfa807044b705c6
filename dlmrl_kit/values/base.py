"""Value models say what a state, or a token of it, is worth: small modules that are trained beside the policy.

A value model reads the selected steps as a likelihood does, and writes ``("selected", "value")`` with gradient. What it
wrote before the update is ``("selected", "old_value")``: advantages are computed from it, and the value loss is clipped
around it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    PROMPT_IDS,
    PROMPT_MASK,
    SELECTED_OLD_VALUE,
    SELECTED_STEP,
    SELECTED_VALUE,
    SELECTED_WEIGHT,
)
from dlmrl_kit.core.policy import Policy, Vocabulary
from dlmrl_kit.likelihoods.segments import counted_positions
from dlmrl_kit.samplers.base import Sampler


class Value(Component, ABC):
    """Base class of value models; ``attach`` creates their modules, ``forward`` writes ``("selected", "value")``.

    Values are [B, K, L], by position: those of the tokens committed in each segment, 0 elsewhere.
    """

    requires = ("policy", "sampler")
    always_given: ClassVar[tuple[str, ...]] = ("policy", "sampler")
    has_gradient: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [
            PROMPT_IDS,
            PROMPT_MASK,
            COMPLETION_IDS,
            COMMIT_STEP,
            SELECTED_STEP,
            SELECTED_WEIGHT,
        ]
        self.out_keys = [SELECTED_VALUE]

    @abstractmethod
    def forward(self, tensordict: TensorDictBase, *, policy: Policy, sampler: Sampler) -> TensorDictBase:
        """Adds ``("selected", "value")`` [B, K, L], with gradient."""


class OldValue(Component):
    """Runs a value model before the update, and writes ``("selected", "old_value")`` without gradient."""

    requires = ("policy", "sampler")

    def __init__(self, value: Value) -> None:
        super().__init__()
        self.value = value
        self.in_keys = list(value.in_keys)
        self.out_keys = [SELECTED_OLD_VALUE]

    def forward(self, tensordict: TensorDictBase, *, policy: Policy, sampler: Sampler) -> TensorDictBase:
        """Runs the value model on a copy and keeps its values."""
        with torch.no_grad():
            found = self.value(tensordict.copy(), policy=policy, sampler=sampler)
        return tensordict.set(SELECTED_OLD_VALUE, found[SELECTED_VALUE])


def segment_tokens(tensordict: TensorDictBase, vocabulary: Vocabulary, after_eos: bool) -> Tensor:
    """Returns the positions committed in each segment that count: bool [B, K, L]; none in segments of weight 0.

    Args:
        tensordict: holds ``completion_ids``, ``commit_step`` and the selection with ``("selected", "end")``.
        vocabulary: tells which tokens end a text.
        after_eos: whether positions behind the first end of text count.
    """
    commit_step = tensordict[COMMIT_STEP][:, None]
    start, end = (tensordict["selected", name][..., None] for name in ("step", "end"))
    inside = (commit_step >= start) & (commit_step < end) & (tensordict[SELECTED_WEIGHT] > 0)[..., None]
    return inside & counted_positions(tensordict[COMPLETION_IDS], vocabulary, after_eos)[:, None]


def check_by_position(component: object, token_mask: Tensor, values: Tensor) -> None:
    """Refuses a likelihood whose tokens are packed by step where values are by position.

    Raises:
        ValueError: the shapes differ.
    """
    if token_mask.shape != values.shape:
        raise ValueError(
            f"{type(component).__name__} takes numbers by position, {list(values.shape)}: it needs a likelihood that "
            f"scores positions, such as StepMerge; token_mask is {list(token_mask.shape)}"
        )
