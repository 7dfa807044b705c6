"""Measures where the time of a training update goes, for any recipe, in wall-clock seconds by phase.

Each second is counted once, for the innermost phase: the head's time within sampling counts for ``head`` alone.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.component import rebuilt
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.phases import listening
from dlmrl_kit.recipe.load import Recipe
from dlmrl_kit.training.start import start_training
from dlmrl_kit.training.update import Update

MODEL = ("body", "head", "backward", "optimiser")
"""The phases that any implementation has: the policy's body, its head, the backward pass, the optimiser."""

PHASES = (*MODEL, "sampling", "rewards", "old and reference", "update", "bookkeeping")
"""All phases. ``sampling`` is the sampler without the model; ``rewards`` is decoding completions and waiting for their
scores, which may be computed in a thread; ``old and reference`` and ``update`` are what these do besides running the
model (states, log-probabilities, losses); ``bookkeeping`` is the rest: prompts, selection, advantages, metrics. The
check before the first update is measured in none of them."""


class Clock:
    """Counts the wall-clock seconds of the thread that made it, by phase.

    Args:
        synchronise: called at the borders of phases; should wait until the device has finished its work.
        mark: makes the context that names a phase in a trace.

    Attributes:
        seconds: by phase, for the phases that occurred.
    """

    def __init__(
        self,
        synchronise: Callable[[], None] = lambda: None,
        mark: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronise = synchronise
        self._mark = mark
        self._thread = threading.get_ident()
        self._open: list[str] = []
        self._last = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within the context, time counts for ``name``, except in nested phases. Other threads are not measured."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._turn()
        self._open.append(name)
        try:
            with self._mark(name):
                yield
                self._synchronise()
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        """Adds the time since the last border to the phase that is open."""
        self._synchronise()
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def profile(recipe: Recipe, updates: int, *, trace: Path | None = None) -> dict[str, float]:
    """Trains for a few updates and measures them, without evaluation, checkpoints and loggers; saves nothing.

    Args:
        recipe: for training, from ``load_recipe``.
        updates: how many to measure, at least 1. One that is not measured comes before, so that compiling and the like
            is left out.
        trace: file for a Chrome trace of the measured updates, which then take longer; compressed if named ``.gz``.

    Returns:
        Mean seconds per update in each of ``PHASES``, 0 if it did not occur. They add up to the time of an update.

    Raises:
        UserError: the recipe is broken or not for training, or training cannot go on.
    """
    algorithm = recipe.build()
    if not isinstance(algorithm, Algorithm):
        raise RecipeError(f"{recipe.name} is a recipe for {recipe.root}: only training recipes can be profiled")
    algorithm = _long_enough(algorithm, updates + 1)
    started = start_training(algorithm)
    update = Update(algorithm, *started)
    update(0)
    clock = Clock(_synchroniser(started.policy.device), torch.profiler.record_function if trace else nullcontext)
    with _traced(trace), listening(clock.phase):
        for number in range(1, updates + 1):
            with clock.phase("bookkeeping"):
                update(number)
    return {name: clock.seconds.get(name, 0.0) / updates for name in PHASES}


def _long_enough(algorithm: Algorithm, updates: int) -> Algorithm:
    """Returns the algorithm with a trainer of at least ``updates`` updates."""
    if algorithm.trainer.updates >= updates:
        return algorithm
    trainer = rebuilt(algorithm.trainer, updates=updates)
    return Algorithm(task=algorithm.task, policy=algorithm.policy, trainer=trainer, **algorithm.fillings)


def _synchroniser(device: torch.device) -> Callable[[], None]:
    return (lambda: None) if device.type == "cpu" else functools.partial(torch.accelerator.synchronize, device)


@contextlib.contextmanager
def _traced(path: Path | None) -> Iterator[None]:
    """Writes a trace of what runs within the context, unless ``path`` is None or it fails."""
    if path is None:
        yield
        return
    with torch.profiler.profile() as profiler:
        yield
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / path.name
        profiler.export_chrome_trace(str(part))
        write_atomic(path, part.read_bytes())


def report(recipe: str, updates: int, seconds: dict[str, float]) -> dict[str, Any]:
    """Returns the result of ``profile`` for JSON: the phases by time, longest first, with their shares of an update.

    Args:
        recipe: name of the recipe.
        updates: how many were measured.
        seconds: per update, by phase.
    """
    total = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return {
        "recipe": recipe,
        "updates": updates,
        "seconds": total,
        "phases": [{"phase": name, "seconds": value, "share": value / total} for name, value in ordered],
        "not_model": sum(value for name, value in ordered if name not in MODEL) / total,
    }
