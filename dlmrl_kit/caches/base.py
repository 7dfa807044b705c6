"""Caches: the kind, and its interface; what a window is says ``dlmrl_kit.core.window``."""

from __future__ import annotations

from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.window import Window


class Cache:
    """Base class of caches: which positions a denoising step computes again. Subclasses set ``to_end``."""

    to_end: bool = False
    """Whether what comes after the current block is computed again in each step."""

    def window(self, policy: Policy, completion_length: int, block_length: int) -> Window:
        """The windows for a policy and a sampler of these sizes."""
        return Window(policy.mask_id, completion_length, block_length, self.to_end, int(policy.shift_logits))
