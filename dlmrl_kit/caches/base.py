"""The interface of caches; ``core.window`` says what a window is and what a policy does with it."""

from __future__ import annotations

from dlmrl_kit.core.component import Resizable
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.window import Window


class Cache(Resizable):
    """Base class of approximate key-value caches, which say what positions a denoising step computes again.

    Subclasses set ``to_end``.
    """

    to_end: bool = False
    """Whether each step also computes again the positions after the current block."""

    def window(self, policy: Policy, completion_length: int, block_length: int) -> Window:
        """Returns the windows for a policy, and for completions of a length that are decoded in blocks."""
        return Window(policy.mask_id, completion_length, block_length, self.to_end, int(policy.shift_logits))
