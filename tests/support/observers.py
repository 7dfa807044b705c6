"""Observers that end a run."""

from __future__ import annotations

from dlmrl_kit.core.results import RunObserver


class Stop(Exception):
    pass


class StopAfterTheFirstUpdate(RunObserver):
    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        if update == 1:
            raise Stop
