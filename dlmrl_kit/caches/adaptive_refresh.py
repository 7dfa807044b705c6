r"""A cache that refreshes as often as measured drift asks for: a control loop on the effective sample size.

After each update the effective sample size of its importance weights is known, (sum w)^2 / (m sum w^2), over all
processes. The next update's interval follows from it and from those before it (``caches.pace``), never from what the
next update samples: given the past its behaviour distribution mu is fixed, so that E_mu[pi / mu f] = E_pi[f] holds as
with any fixed cache. An interval that depended on the same samples would favour some of them, and no weight knows that.
"""

from __future__ import annotations

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.caches.pace import Pace, ladder, next_pace
from dlmrl_kit.core.component import Sizes, rebuilt, settings
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.core.window import Window, cell_of


@register("cache")
class AdaptiveRefresh(Cache):
    """Samples each update with the cheapest refresh interval of a cache whose effective sample size is large enough.

    It begins exactly, and tries longer intervals one update each: 2, 4, 8, ... positions. Outside of training nothing
    is measured: there, and in the audit, it is the cache itself, with the longest interval.

    Args:
        smallest_effective_sample_size: the smallest acceptable one, a share of the weights in (0, 1].
        cache: what is refreshed; its own ``refresh`` is the longest interval, None that of a block. None: a
            ``DualCache``.
        try_again_after: an interval that was not good enough is tried again after so many updates.

    Raises:
        ValueError: a value out of range.
    """

    not_sizes = ("try_again_after",)

    def __init__(
        self, smallest_effective_sample_size: float = 0.8, cache: Cache | None = None, try_again_after: int = 20
    ) -> None:
        super().__init__()
        inner = DualCache() if cache is None else cache
        allowed = 0 < smallest_effective_sample_size <= 1
        check(allowed, self, "smallest_effective_sample_size", smallest_effective_sample_size, "above 0 and at most 1")
        fits = isinstance(inner, Cache) and "refresh" in settings(inner)
        check(fits, self, "cache", cache, "a cache with the setting refresh, such as DualCache")
        check(try_again_after >= 1, self, "try_again_after", try_again_after, "at least 1")
        self.smallest_effective_sample_size, self.try_again_after = smallest_effective_sample_size, try_again_after
        self.cache, self.to_end = inner, inner.to_end

    @property
    def may_be_exact(self) -> bool:
        """Says yes: it begins exactly, and may go back."""
        return True

    def at(self, pace: Pace) -> Cache:
        """Returns the cache that an update of this pace samples with."""
        return rebuilt(self.cache, refresh=pace.refresh)

    def next(self, pace: Pace, effective_sample_size: float, cost: float, block_length: int) -> Pace:
        """Returns the pace after an update; arguments as ``caches.pace.next_pace``, and positions of a block."""
        return next_pace(
            pace,
            effective_sample_size,
            cost,
            smallest=self.smallest_effective_sample_size,
            longest=self.longest(block_length),
            try_again_after=self.try_again_after,
        )

    def longest(self, block_length: int) -> int:
        """Returns the longest interval, in positions."""
        return cell_of(self.cache.refresh, block_length)

    def paces(self, block_length: int) -> list[Pace]:
        """Lists the paces that an update may have, from the exact one on."""
        return [Pace(rung) for rung in ladder(self.longest(block_length))]

    def window(self, policy: Policy, completion_length: int, block_length: int) -> Window:
        """Returns the windows of the cache itself."""
        return self.cache.window(policy, completion_length, block_length)

    def resized(self, before: Sizes, after: Sizes) -> AdaptiveRefresh:
        """Returns one of the cache resized."""
        return rebuilt(self, cache=self.cache.resized(before, after))
