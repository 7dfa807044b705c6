"""The interface of caches; ``core.window`` says what a window is and what a policy does with it."""

from __future__ import annotations

from dlmrl_kit.caches.pace import EXACT
from dlmrl_kit.core.component import Resizable, Sizes, rebuilt
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.validate import check
from dlmrl_kit.core.window import Window


class Cache(Resizable):
    """Base class of approximate key-value caches, which say what positions a denoising step computes again.

    Subclasses set ``to_end``.

    Args:
        refresh: all positions are computed again whenever so many neighbouring positions of the block are complete, as
            ``core.window`` says; 1 is exact. None: only when a block begins.

    Raises:
        ValueError: a value out of range.
    """

    to_end: bool = False
    """Whether each step also computes again the positions after the current block."""
    refresh: int | None = None

    def __init__(self, refresh: int | None = None) -> None:
        check(refresh is None or refresh >= 1, self, "refresh", refresh, "at least 1, or None")
        self.refresh = refresh

    @property
    def may_be_exact(self) -> bool:
        """Whether there are updates that it samples from the policy itself: those with interval 1."""
        return self.refresh == EXACT

    def window(self, policy: Policy, completion_length: int, block_length: int) -> Window:
        """Returns the windows for a policy, and for completions of a length that are decoded in blocks."""
        before = int(policy.shift_logits)
        return Window(policy.mask_id, completion_length, block_length, self.to_end, before, self.refresh)

    def resized(self, before: Sizes, after: Sizes) -> Cache:
        """Returns a cache whose cells are about the same share of a block.

        One that is not exact stays so, and one that refreshes within a block does where the new block has room for it.
        """
        if self.refresh is None or self.refresh == 1:
            return self
        most = after.block_length if self.refresh >= before.block_length else after.block_length - 1
        scaled = round(self.refresh * after.block_length / before.block_length)
        return rebuilt(self, refresh=max(2, min(scaled, most)))
