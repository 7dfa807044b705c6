"""A run in the terminal: a live progress bar, or plain lines where the output is no terminal; tables at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from dlmrl_kit.core.results import EvalResult, PretrainResult, RunObserver, RunResult
from dlmrl_kit.report import next_commands, run_end
from dlmrl_kit.report.console import ProgressBars, duration, say
from dlmrl_kit.report.evaluation_tables import accuracy_text, plain_value, table_before_after
from dlmrl_kit.report.tables import numbers

COLUMNS: dict[str, tuple[str, str]] = {
    "reward": ("reward", "{:.3f}"),
    "accuracy": ("accuracy", "{:.1%}"),
    "loss": ("loss", "{:.4f}"),
    "entropy": ("entropy", "{:.3f}"),
    "selected_steps": ("selected", "{:.1f}"),
    "ratio": ("ratio", "{:.3f}"),
    "clip_fraction": ("clipped", "{:.1%}"),
    "kl": ("KL", "{:.4f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
}
"""Metrics shown while a run goes on: metric -> (heading, format); the loss only where there is no reward."""

PLAIN_LINES = 20
"""About how many lines of progress a run writes where the output is no terminal."""

LOG_WIDTH = 120
"""Columns of tables in a log file."""


class RichRunObserver(RunObserver):
    """Shows a run of training or pre-training on a terminal, or as plain lines elsewhere.

    Use it as a context manager: leaving it ends the display.

    Args:
        console: where to write; default: standard output.
        show_samples: how many samples of each update are printed.
    """

    def __init__(self, console: Console | None = None, show_samples: int = 0) -> None:
        self.console = console or Console(highlight=False)
        self.shown_samples = show_samples
        self._total = 0
        self._first = 0
        self._started = time.monotonic()
        self._metrics: dict[str, float] = {}
        self._evaluations: dict[int, EvalResult] = {}
        self._bars = ProgressBars(self.console, time_left=True)
        self._printed = -1

    def stop(self) -> None:
        """Ends the live display; what it showed last stays on the screen."""
        self._bars.stop()

    def on_start(
        self, *, folder: Path, recipe: str, total_updates: int, first_update: int, info: Mapping[str, object]
    ) -> None:
        """Prints what is run, and where; starts the progress bar."""
        self._total, self._first = total_updates, first_update
        self._started = time.monotonic()
        # A resumed run reads the recipe.gin in its own folder, whose name says nothing.
        label = folder.name if recipe == "recipe" else recipe
        say(self.console, f"{label}: {total_updates} updates into {folder}")
        if first_update:
            say(self.console, f"resumed after update {first_update}")
        if info:
            facts = (f"{key.replace('_', ' ')} {plain_value(value)}" for key, value in info.items())
            say(self.console, ", ".join(facts))
        self._bars.start()
        self._bars.add("run", label, total=total_updates, done=first_update, unit="updates ")

    def on_message(self, text: str) -> None:
        """Prints the text."""
        say(self.console, text)

    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        """Moves the bar, or prints a line every few updates."""
        self._metrics = metrics
        done = update + 1
        self._bars.move("run", done)
        self._bars.show_below(*self._below())
        if not self._bars.shown and self._wants_line(done):
            self._printed = done
            cells = "  ".join(f"{name} {value}" for name, value in _cells(metrics))
            say(self.console, f"update {done}/{self._total}  {cells}{self._time_left(done)}")

    def on_samples(self, update: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Prints ``shown_samples`` of them, spread over the prompts as they all are."""
        count = min(self.shown_samples, len(samples))
        for number in range(count):
            sample = samples[number * len(samples) // count]
            say(self.console, sample_text(f"update {update + 1}, sample {number + 1}", sample))

    def on_eval(self, update: int, result: EvalResult) -> None:
        """Shows the accuracy."""
        self._evaluations[update] = result
        self._bars.show_below(*self._below())
        if not self._bars.shown:
            say(self.console, _evaluation_line(update, result))

    def on_end(self, result: RunResult | PretrainResult) -> None:
        """Ends the display and prints the outcome, where everything is, and what to try next."""
        self.stop()
        self.console.print()
        if isinstance(result, PretrainResult):
            self._say_all(run_end.pretraining_outcome(result))
            commands = next_commands.commands_after_pretraining(result)
        else:
            say(self.console, run_end.training_outcome(result))
            self.console.print(table_before_after(result.before, result.after))
            commands = next_commands.commands_after_training(result)
        self._say_all(run_end.outputs(result))
        self.console.print()
        self._say_all(["Try next:", *(f"  {command}" for command in commands)])

    def _say_all(self, lines: list[str]) -> None:
        for line in lines:
            say(self.console, line)

    def _below(self) -> list[RenderableType]:
        """Returns what stands below the bar: the newest metrics, and the first and the last evaluation."""
        parts: list[RenderableType] = []
        if self._metrics:
            cells = dict(_cells(self._metrics))
            table = Table(*(numbers(name, whole=False) for name in cells), box=None, padding=(0, 2, 0, 0))
            table.add_row(*cells.values())
            parts.append(table)
        shown = sorted({min(self._evaluations), max(self._evaluations)}) if self._evaluations else []
        return [*parts, *(Text(_evaluation_line(update, self._evaluations[update])) for update in shown)]

    def _wants_line(self, done: int) -> bool:
        every = max(1, self._total // PLAIN_LINES)
        return self._printed < 0 or done == self._total or done // every > self._printed // every

    def _time_left(self, done: int) -> str:
        if done >= self._total:
            return ""
        # Only this session's updates tell how long one takes: those before a resume took no time of it.
        each = (time.monotonic() - self._started) / max(1, done - self._first)
        return f"  {duration(each * (self._total - done))} left"


class LogRunObserver(RichRunObserver):
    """Prints a run as plain lines for a log file, with tables of a fixed width whatever the terminal's is."""

    def __init__(self) -> None:
        super().__init__(Console(highlight=False, width=LOG_WIDTH))


def _cells(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Returns the headings and values of the metrics that are shown."""
    shown = [name for name in COLUMNS if name in metrics and not (name == "loss" and "reward" in metrics)]
    cells = [(COLUMNS[name][0], COLUMNS[name][1].format(metrics[name])) for name in shown]
    return [*cells, ("skipped", f"{metrics['skipped']:.0f}")] if metrics.get("skipped") else cells


def sample_text(title: str, sample: Mapping[str, Any]) -> str:
    """Returns a sample to read: its reward, and below it prompt and completion, line by line."""
    reward = sample.get("reward")
    lines = [f"{title}: reward {'not finite' if reward is None else f'{reward:.3f}'}"]
    for name in ("prompt", "completion"):
        found = sample.get(name, "")
        text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
        lines += [f"  {'' if row else name:<10}  {part}" for row, part in enumerate(text.split("\n"))]
    return "\n".join(lines)


def _evaluation_line(update: int, result: EvalResult) -> str:
    when = f"after update {update}" if update else "before training"
    what = f"{result.task} {result.split}".strip()
    line = f"{what} accuracy {when}: {accuracy_text(result)} of {result.size}, reward {result.reward:.3f}"
    return "; ".join(filter(None, (line, result.caution())))
