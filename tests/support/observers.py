"""Observers that end a run, or keep what it says."""

from __future__ import annotations

from dlmrl_kit.core.results import RunObserver


class Stop(Exception):
    pass


class StopAfterTheFirstUpdate(RunObserver):
    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        if update == 1:
            raise Stop


class Messages(RunObserver):
    """Keeps the messages of a run."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def on_message(self, message: str) -> None:
        self.messages.append(message)
