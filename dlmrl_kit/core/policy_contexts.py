"""What a policy is for a while: cached, merged, fused, whole, in step with other processes.

The defaults are right for a policy without an adapter and without a cache, all of which is in one process.
"""

from __future__ import annotations

import contextlib

from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.window import Window


class PolicyContexts:
    """The contexts of ``core.policy.Policy``, of which it is the base class."""

    def check_cache(self) -> None:
        """Refuses approximate caches (``dlmrl_kit.caches``) if the policy cannot use them; here it never can.

        Raises:
            UserError: the policy has no such cache.
        """
        raise UserError(f"{type(self).__name__} has no approximate cache: take no cache")

    def cached(self, window: Window) -> contextlib.AbstractContextManager[None]:
        """Within the context, forwards without gradients are those of the cached policy; see ``core.window``.

        Args:
            window: which positions a step computes again. Inputs must end with completions of its length.

        Raises:
            UserError: as ``check_cache``.
        """
        self.check_cache()
        return contextlib.nullcontext()

    def merged(self) -> contextlib.AbstractContextManager[None]:
        """Within the context an adapter is merged into the weights: faster, equal up to rounding, without gradients."""
        return contextlib.nullcontext()

    def fused(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, an adapter takes fewer matrix products; the weights must not change meanwhile."""
        return contextlib.nullcontext()

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Within the context forwards need no other process where all weights fit; they must be ``in_step`` anyway."""
        return contextlib.nullcontext()

    def in_step(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, processes that hold parts of the weights take part in each other's forwards."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Back-propagates a loss that follows from forwards within the same ``in_step``."""
        loss.backward()
