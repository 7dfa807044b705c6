"""A run in the terminal: a live progress bar, or plain lines where the output is no terminal; tables at the end."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dlmrl_kit.core.results import EvalResult, Observer, PretrainResult, RunResult

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


class RichObserver(Observer):
    """Shows a run on a terminal, or as plain lines elsewhere. Use it as a context manager: leaving it ends the display.

    Args:
        console: where to write; default: standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.folder: Path | None = None
        self._recipe = ""
        self._label = ""
        self._total = 0
        self._first = 0
        self._started = time.monotonic()
        self._metrics: dict[str, float] = {}
        self._evaluations: dict[int, EvalResult] = {}
        self._progress: Progress | None = None
        self._live: Live | None = None
        self._printed = -1

    def __enter__(self) -> RichObserver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the live display; what it showed last stays on the screen."""
        if self._live is not None:
            self._live.update(self._view(), refresh=True)
            self._live.stop()
            self._live = None

    def on_start(
        self, *, folder: Path, recipe: str, total_updates: int, first_update: int, info: dict[str, Any]
    ) -> None:
        """Prints what is run, and where; starts the progress bar."""
        self.folder, self._recipe = folder, recipe
        self._total, self._first = total_updates, first_update
        self._started = time.monotonic()
        # A resumed run reads the recipe.gin in its own folder, whose name says nothing.
        self._label = folder.name if recipe == "recipe" else recipe
        self._say(f"{self._label}: {total_updates} updates into {folder}")
        if first_update:
            self._say(f"resumed after update {first_update}")
        if info:
            self._say(", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in info.items()))
        if self.console.is_terminal:
            self._start_live()

    def on_message(self, text: str) -> None:
        """Prints the text."""
        self._say(text)

    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        """Moves the bar, or prints a line every few updates."""
        self._metrics = metrics
        done = update + 1
        if self._live is not None and self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=done)
            self._live.update(self._view())
        elif not self.console.is_terminal and self._wants_line(done):
            self._printed = done
            cells = "  ".join(f"{name} {value}" for name, value in _cells(metrics))
            self._say(f"update {done}/{self._total}  {cells}{self._time_left(done)}")

    def on_eval(self, update: int, result: EvalResult) -> None:
        """Shows the accuracy."""
        self._evaluations[update] = result
        if self._live is not None:
            self._live.update(self._view())
        elif not self.console.is_terminal:
            self._say(_evaluation_line(update, result))

    def on_end(self, result: RunResult | PretrainResult) -> None:
        """Ends the display and prints the outcome, where everything is, and what to try next."""
        self.stop()
        self.console.print()
        if isinstance(result, PretrainResult):
            self._say(f"{result.steps} steps done in {duration(result.seconds)}, loss {result.loss:.4f}")
            self._say(
                f"accuracy on held-out puzzles: greedy {result.accuracy:.1%}; at temperature 1 "
                f"{result.sampled_accuracy:.1%}, pass@8 {result.pass_at_8:.1%}"
            )
        else:
            skipped = f", {result.skipped} skipped (not finite)" if result.skipped else ""
            self._say(f"{result.updates} updates done in {duration(result.seconds)}{skipped}")
            self.console.print(table_before_after(result.before, result.after))
        for label, path in _outputs(result):
            self._say(f"{label:<12} {path}")
        self.console.print()
        self._say("Try next:")
        for command, purpose in self._next_commands(result):
            self._say(f"  {command}  # {purpose}")

    def _start_live(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("updates "),
            TimeElapsedColumn(),
            TextColumn("elapsed "),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            expand=True,
        )
        # Time left is estimated from this session's updates only: those done before a resume took no time.
        self._progress.add_task(Text(self._label).markup, total=self._total, completed=self._first)
        self._live = Live(self._view(), console=self.console, refresh_per_second=4)
        self._live.start(refresh=True)

    def _view(self) -> RenderableType:
        parts: list[RenderableType] = [self._progress] if self._progress is not None else []
        if self._metrics:
            table = Table(box=None, padding=(0, 2, 0, 0))
            cells = _cells(self._metrics)
            for name, _ in cells:
                table.add_column(name, justify="right", overflow="fold")
            table.add_row(*(value for _, value in cells))
            parts.append(table)
        shown = sorted({min(self._evaluations), max(self._evaluations)}) if self._evaluations else []
        parts += [Text(_evaluation_line(update, self._evaluations[update])) for update in shown]
        return Group(*parts)

    def _wants_line(self, done: int) -> bool:
        every = max(1, self._total // PLAIN_LINES)
        return self._printed < 0 or done == self._total or done // every > self._printed // every

    def _time_left(self, done: int) -> str:
        if done >= self._total:
            return ""
        each = (time.monotonic() - self._started) / max(1, done - self._first)
        return f"  {duration(each * (self._total - done))} left"

    def _say(self, text: str) -> None:
        """One line, never wrapped, never interpreted as markup."""
        self.console.print(Text(printable(text)), soft_wrap=True)

    def _next_commands(self, result: RunResult | PretrainResult) -> list[tuple[str, str]]:
        folder = shlex.quote(str(result.folder))
        if isinstance(result, PretrainResult):
            model = str(result.model)
            start = shlex.quote(f"Pretrained.path={json.dumps(model)}")
            return [
                (f"dlmrl eval {shlex.quote(model)}", "accuracy with other decoding settings"),
                (f"dlmrl train --set {start}", "reinforcement learning from here"),
            ]
        train = f"dlmrl train {self._recipe_again(result.folder)}"
        return [
            (f"dlmrl eval {folder} --temperature 1 --samples 8", "pass@k, with sampled completions"),
            (f"{train} --use selector={_other_selector(result.folder)}", "change one word"),
            ("dlmrl show EntropyTopK", "what a component does, and from which paper"),
            ("dlmrl list", "all components and recipes"),
        ]

    def _recipe_again(self, folder: Path) -> str:
        from dlmrl_kit.recipe.load import recipe_names

        return self._recipe if self._recipe in recipe_names() else shlex.quote(str(folder / "recipe.gin"))


def table_before_after(before: EvalResult, after: EvalResult) -> Group:
    """Accuracy with its 95% interval, reward and its components before and after training."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    change = 100 * (after.accuracy - before.accuracy)
    table.add_row("accuracy \\[95% CI]", _accuracy(before), _accuracy(after), f"{change:+.1f} points", style="bold")
    rows = {"reward": (before.reward, after.reward)}
    rows |= {f"reward/{k}": (before.components[k], v) for k, v in after.components.items() if k in before.components}
    for name, (old, new) in rows.items():
        table.add_row(Text(name), f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
    return Group(_title(after), table)


def table_of_evaluation(result: EvalResult) -> Group:
    """Everything an evaluation measured."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_row("accuracy \\[95% CI]", _accuracy(result), style="bold")
    if list(result.pass_at_k) != [1]:
        for k, value in sorted(result.pass_at_k.items()):
            table.add_row(f"pass@{k}", f"{value:.1%}")
    table.add_row("reward", f"{result.reward:.3f}")
    for name, value in result.components.items():
        table.add_row(Text(f"reward/{name}"), f"{value:.3f}")
    return Group(_title(result), table)


def table_of_samples(samples: list[dict[str, Any]]) -> Table:
    """The samples of an evaluation, one per row. What a model wrote is shown, never interpreted."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("prompt", "completion", "answer"):
        table.add_column(heading, overflow="fold")
    table.add_column("solved", no_wrap=True)
    table.add_column("reward", justify="right", no_wrap=True)
    for sample in samples:
        texts = [Text(printable(str(sample[key]))) for key in ("prompt", "completion", "answer")]
        table.add_row(*texts, "yes" if sample["solved"] else "no", f"{sample['reward']:.3f}")
    return table


def table_of_profile(report: dict[str, Any]) -> Group:
    """Seconds by phase from ``dlmrl_kit.training.profiling.report``, and the share that is not the model."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("phase")
    for heading in ("seconds per update", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["phases"]:
        table.add_row(row["phase"], f"{row['seconds']:.4f}", f"{row['share']:.1%}")
    updates = f"{report['updates']} update{'s' if report['updates'] > 1 else ''}"
    lines = [
        f"one update takes {report['seconds']:.3g} s; {report['not_model']:.1%} of it is not body, head, backward or "
        "optimiser"
    ]
    if not any(row["seconds"] for row in report["phases"] if row["phase"] == "update"):
        lines.insert(0, "nothing was learned: the recipe's filters kept nothing of these rollouts")
    heading = f"{report['recipe']}: {updates}, after one that is not counted"
    return Group(Text(printable(heading)), table, *(Text(line) for line in lines))


def printable(text: str) -> str:
    """``text`` with everything that could control a terminal written as an escape; newlines stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def duration(seconds: float) -> str:
    """A length of time: ``8 s``, ``3 min 20 s``, ``2 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _cells(metrics: dict[str, float]) -> list[tuple[str, str]]:
    shown = [name for name in COLUMNS if name in metrics and not (name == "loss" and "reward" in metrics)]
    cells = [(COLUMNS[name][0], COLUMNS[name][1].format(metrics[name])) for name in shown]
    return [*cells, ("skipped", f"{metrics['skipped']:.0f}")] if metrics.get("skipped") else cells


def _evaluation_line(update: int, result: EvalResult) -> str:
    when = f"after update {update}" if update else "before training"
    return f"{result.split} accuracy {when}: {_accuracy(result)} of {result.size}, reward {result.reward:.3f}"


def _accuracy(result: EvalResult) -> str:
    low, high = result.interval()
    return f"{result.accuracy:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def _title(result: EvalResult) -> Text:
    decoding = result.decoding
    temperature = decoding.get("temperature", 0)
    how = [f"temperature {_plain(temperature)}" if temperature else "greedy"]
    how += [
        f"{key.replace('_', ' ')} {_plain(decoding[key])}" for key in ("sampler", "tokens_per_step") if key in decoding
    ]
    return Text(f"{result.size} puzzles of {result.split}; {', '.join(how)}")


def _other_selector(folder: Path) -> str:
    recipe = folder / "recipe.gin"
    uniform = recipe.is_file() and "@UniformSteps(" in recipe.read_text(encoding="utf-8")
    return "EntropyTopK" if uniform else "UniformSteps"


def _outputs(result: RunResult | PretrainResult) -> list[tuple[str, Path]]:
    files = {"model": result.model}
    files |= {name: result.folder / file for name, file in (("curve", "curve.png"), ("metrics", "metrics.csv"))}
    files["recipe"] = result.folder / "recipe.gin"
    return [("run folder", result.folder), *((name, path) for name, path in files.items() if path.exists())]


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
