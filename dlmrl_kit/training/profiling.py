"""Where the time of a training update goes, for any recipe: wall-clock seconds by phase, each second counted once.

A second belongs to the innermost phase: ``head`` is never part of ``sampling``, though sampling calls it.
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

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.results import Observer
from dlmrl_kit.recipe.load import Recipe
from dlmrl_kit.training.loop import Run

MODEL = ("body", "head", "backward", "optimiser")
"""The phases that any implementation has: the policy's forwards up to the head, its head, autograd, the optimiser."""

PHASES = (*MODEL, "sampling", "rewards", "old and reference", "update", "bookkeeping")
"""All phases. ``sampling`` is the rest of the sampler; ``rewards`` is decoding completions and waiting for their
scores, which may be computed in a thread; ``old and reference`` and ``update`` are the rest of these stages (states,
log-probabilities, losses); ``bookkeeping`` is all that is left: prompts, selection, advantages, metrics."""


class Clock:
    """Wall-clock seconds of the thread that made it, by phase.

    Args:
        synchronise: called at the borders of phases; waits until the device has done what it was asked for.
        mark: makes a context that names a phase in a trace.

    Attributes:
        seconds: by phase, of the phases there were.
    """

    def __init__(
        self,
        synchronise: Callable[[], None] = lambda: None,
        mark: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronise = synchronise
        self._mark = mark
        self._thread = threading.get_ident()
        self._open: list[str] = []
        self._last = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time within the context belongs to ``name``, but for phases within it. Other threads have no phases."""
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
        """Gives the time since the last border to the phase that it was spent in."""
        self._synchronise()
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    @contextlib.contextmanager
    def timed(self, owner: Any, attribute: str, name: str) -> Iterator[None]:
        """Within the context, every call of a method is a phase.

        Args:
            owner: an object, or a class for the method of all its objects.
            attribute: the method.
            name: of the phase.
        """
        inner = getattr(owner, attribute)
        own = vars(owner).get(attribute)  # None: inherited, so that removing the wrapper restores it

        @functools.wraps(inner)
        def wrapper(*given: Any, **named: Any) -> Any:
            with self.phase(name):
                return inner(*given, **named)

        setattr(owner, attribute, wrapper)
        try:
            yield
        finally:
            if own is None:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, own)


def profile(recipe: Recipe, updates: int, *, trace: Path | None = None) -> dict[str, float]:
    """Trains for a few updates and measures them. No evaluation, checkpoint or logger; nothing is kept.

    Args:
        recipe: for training, from ``load_recipe``.
        updates: measured, at least 1, after one that is not: what is done once (compiling, allocating) is left out.
        trace: file for a Chrome trace of the measured updates, which take longer then; compressed if named ``.gz``.

    Returns:
        Mean seconds per update of each of ``PHASES``, 0 where a phase did not occur. They add up to an update's time.

    Raises:
        UserError: a recipe that is not for training or is broken, or training that cannot go on.
    """
    if recipe.root != "Algorithm":
        raise RecipeError(f"{recipe.name} is a recipe for {recipe.root}: only training recipes can be profiled")
    with tempfile.TemporaryDirectory() as folder:
        run = _prepared(recipe, updates, Path(folder))
        run._update(0)
        run.checked = True  # also where the first update kept no sample to check
        clock = Clock(_synchroniser(run.policy.device), torch.profiler.record_function if trace else nullcontext)
        with _traced(trace), _measured(run, clock):
            for update in range(1, updates + 1):
                with clock.phase("bookkeeping"):
                    run._update(update)
    return {name: clock.seconds.get(name, 0.0) / updates for name in PHASES}


def _prepared(recipe: Recipe, updates: int, folder: Path) -> Run:
    """A run that neither logs, evaluates nor saves within its first ``updates`` + 1 updates."""
    algorithm: Any = recipe.build()
    algorithm.loggers = []
    trainer = algorithm.trainer
    trainer.updates = max(trainer.updates, updates + 2)
    trainer.eval_every, trainer.checkpoint_every = 0, trainer.updates
    return Run(algorithm, folder, recipe.name, Observer())


@contextlib.contextmanager
def _measured(run: Run, clock: Clock) -> Iterator[None]:
    """Within the context, the stages of a run's updates are phases of the clock."""
    policy, updater, sampler = run.policy, run.updater, type(run.algorithm.sampler)
    methods = [
        (policy, "forward", "body"),
        (policy, "features", "body"),
        (policy, "head", "head"),
        (torch.Tensor, "backward", "backward"),
        (updater.optimiser, "step", "optimiser"),
        (sampler, "forward", "sampling"),  # of the class: components sample with copies of the recipe's sampler
        (sampler, "resume", "sampling"),
        (run.scorer, "submit", "rewards"),
        (run.scorer, "components", "rewards"),
        (run.scorer, "examples", "rewards"),
        (updater, "score", "old and reference"),
        (updater, "update", "update"),
    ]
    with contextlib.ExitStack() as stack:
        for method in methods:
            stack.enter_context(clock.timed(*method))
        yield


def _synchroniser(device: torch.device) -> Callable[[], None]:
    return (lambda: None) if device.type == "cpu" else functools.partial(torch.accelerator.synchronize, device)


@contextlib.contextmanager
def _traced(path: Path | None) -> Iterator[None]:
    """Writes a trace of what is done within the context, unless ``path`` is None or there is an error."""
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
    """What ``profile`` found, as JSON can hold it: the phases that take longest first, and shares of an update.

    Args:
        recipe: its name.
        updates: that were measured.
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
