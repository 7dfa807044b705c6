"""The cache of each update of a run: of ``AdaptiveRefresh``, what follows from the updates before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.caches.adaptive_refresh import AdaptiveRefresh
from dlmrl_kit.caches.base import Cache
from dlmrl_kit.caches.pace import EXACT, Pace, reason
from dlmrl_kit.corrections.base import SAMPLE_SIZE

REFRESH = "cache/refresh"
COMPUTED = "cache/computed_positions"


class Refreshing:
    """Knows the pace of the present update, and finds that of the next one.

    All processes have the same, as it follows from metrics over all of them.

    Args:
        adaptive: the recipe's cache.
        block_length: of the sampler.
        every_step: as ``Correction.every_step``.
    """

    def __init__(self, adaptive: AdaptiveRefresh, block_length: int, every_step: bool) -> None:
        self.adaptive, self.block_length, self.every_step, self.pace = adaptive, block_length, every_step, Pace()

    @property
    def cache(self) -> Cache:
        """What the present update is sampled with."""
        return self.adaptive.at(self.pace)

    def learn(self, metrics: Mapping[str, float]) -> tuple[dict[str, float], str | None]:
        """Goes on to the next update.

        Args:
            metrics: of this one. If it trained nothing there is no effective sample size, and the pace stays.

        Returns:
            The metric ``cache/refresh``, the interval of this update in positions, and why the next one has another
            interval, for the user; None if it has the same.
        """
        own, why = self.pace, None
        if SAMPLE_SIZE in metrics:
            cost = 1.0 if own.refresh == EXACT else cost_of(metrics, self.every_step)
            self.pace = self.adaptive.next(own, metrics[SAMPLE_SIZE], cost, self.block_length)
            why = reason(own, self.pace, metrics[SAMPLE_SIZE], self.adaptive.smallest_effective_sample_size)
        return {REFRESH: float(own.refresh)}, why

    def state(self) -> dict[str, object]:
        """Returns what a checkpoint holds, for JSON; ``restore`` takes it back."""
        return asdict(self.pace)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over the ``state`` of a checkpoint."""
        self.pace = Pace(**{**state, "costs": {int(rung): cost for rung, cost in state["costs"].items()}})


def cost_of(metrics: Mapping[str, float], every_step: bool) -> float:
    """Returns how many positions cached rollout and correction took in an update, in those of its exact rollout.

    An exact one, which needs no forwards for its correction, takes 1.

    Args:
        metrics: of the update.
        every_step: whether the correction scored every step, not only the selected ones.
    """
    selected = metrics.get("selected_steps", 0.0) * metrics.get("kept", 1.0) / metrics["steps"]
    return metrics[COMPUTED] + (1.0 if every_step else selected)


def refreshing(algorithm: Algorithm) -> Refreshing | None:
    """Returns what finds the cache of each update; None if all have the same."""
    cache, correction = algorithm.cache, algorithm.correction
    if not isinstance(cache, AdaptiveRefresh):
        return None
    return Refreshing(cache, algorithm.sampler.block_length, correction is not None and correction.every_step)
