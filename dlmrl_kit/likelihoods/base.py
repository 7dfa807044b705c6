"""The interface of likelihood estimators: the log-probability of the selected steps under the current policy.

``likelihoods.steps`` is for those of single denoising steps, ``likelihoods.segments`` for those of several at once,
which are scored in masked copies of the completion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar

from tensordict import TensorDictBase

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    PROMPT_IDS,
    PROMPT_MASK,
    SELECTED_LOG_PROB,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    Key,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.samplers.base import Sampler


class Likelihood(Component, ABC):
    """Base class of likelihood estimators: they write ``("selected", "log_prob")`` [B, K] and, on demand, other keys.

    Under the policy that generated the trajectory the same numbers may be known from the rollout: ``recorded`` maps
    each key that has an ``old_`` twin to the sampler's key that holds it.
    """

    requires = ("policy", "sampler")
    always_given: ClassVar[tuple[str, ...]] = ("policy", "sampler")
    has_gradient: ClassVar[bool] = True
    redraw: bool = False
    """Whether it reads ``iteration``: its masks are drawn anew in each pass over a rollout."""
    random_masks: bool = False
    """Whether what it computes depends on ``seed``."""
    sampling_temperature: bool = True
    """Whether it scores with the sampler's behaviour distribution; otherwise with softmax(logits)."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys: list[Key] = [
            PROMPT_IDS,
            PROMPT_MASK,
            COMPLETION_IDS,
            COMMIT_STEP,
            SELECTED_STEP,
            SELECTED_WEIGHT,
        ]
        self.out_keys: list[Key] = [SELECTED_LOG_PROB]

    @property
    def recorded(self) -> dict[Key, Key]:
        """Estimated key -> key in which the sampler records the same quantity under the behaviour policy."""
        return {}

    def forwards(self, length: int) -> int:
        """Returns how many model forwards an entry of a selection takes, for completions of ``length`` positions."""
        return 1

    def prepare(
        self, tensordict: TensorDictBase, *, sampler: Sampler, policy: Policy, keys: Collection[Key] = ()
    ) -> TensorDictBase:
        """Adds those of ``keys`` that do not depend on the policy's weights, once per rollout; here there are none."""
        return tensordict

    @abstractmethod
    def forward(
        self, tensordict: TensorDictBase, *, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> TensorDictBase:
        """Adds ``out_keys`` and the on-demand ``keys``, with gradient: [B, K, ...] each, 0 where the weight is."""
