"""A trace in the terminal: tokens appear step by step, in the colour of their entropy."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dlmrl_kit.report.tables import numbers, plain_table, words
from dlmrl_kit.training.trace import SampleTrace, Trace

COLOURS = ("green", "bright_green", "yellow", "dark_orange", "red")
"""From low to high entropy."""
SECONDS = 8.0
"""About how long the display of one completion takes."""
LINE = 100
"""Positions up to which a table shows the whole completion at every step, and not only what the step committed."""


def show_trace(console: Console, trace: Trace, *, sample: int = 0) -> None:
    """Prints one completion of a trace: played step by step on a terminal, then as a table of its steps.

    Args:
        console: where to print.
        trace: of a prompt.
        sample: number of the completion, from 0.
    """
    shown = trace.samples[sample]
    console.print(Text(f"{trace.name}: sample {sample + 1} of {len(trace.samples)}", style="bold"))
    console.print(Text(f"prompt: {trace.prompt}"))
    if trace.answer:
        console.print(Text(f"answer: {trace.answer}"))
    if console.is_terminal:
        _play(console, shown)
    console.print(steps_table(shown))
    verdict = "" if shown.solved is None else f" ({'solved' if shown.solved >= 1 else 'not solved'})"
    reward = "" if shown.reward is None else f"reward {shown.reward:.3g}{verdict}"
    console.print(Text(f"completion: {shown.text}"))
    console.print(Text(reward))


def _play(console: Console, sample: SampleTrace) -> None:
    number = len(sample.steps)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for step in range(number + 1):
            live.update(Group(Text(f"after {step} of {number} steps"), canvas(sample, step)), refresh=True)
            time.sleep(min(0.5, SECONDS / (number + 1)))


def canvas(sample: SampleTrace, step: int) -> Text:
    """Returns the state after ``step`` steps: open positions as dots, others coloured by entropy."""
    text = Text()
    highest = max((token.entropy or 0.0 for token in sample.tokens), default=0.0) or 1.0
    before = None if sample.canvases is None else sample.canvases[min(step, len(sample.canvases) - 1)]
    for position, token in enumerate(sample.tokens):
        if token.step is None or token.step >= step:
            text.append("·" if before is None else before[position], style="dim")
            continue
        level = round((len(COLOURS) - 1) * (token.entropy or 0.0) / highest)
        latest = " bold underline" if token.step == step - 1 else ""
        text.append(token.text, style=COLOURS[level] + latest)
    return text


def steps_table(sample: SampleTrace) -> Table:
    """Returns a table of the denoising steps; a star marks those that the update trains."""
    trained = any(step.weight for step in sample.steps)
    rewards = any(step.reward is not None for step in sample.steps)
    columns = [numbers("step"), words("after it" if len(sample.tokens) <= LINE else "committed")]
    columns += [numbers("entropy"), numbers("log-prob")]
    columns += [numbers("one-step reward")] if rewards else []
    columns += [numbers("advantage"), words("trained")] if trained else []
    table = plain_table(*columns)
    for number, step in enumerate(sample.steps):
        row: list[str | Text] = [str(number + 1), _committed(sample, number)]
        row += ["" if step.entropy is None else f"{step.entropy:.3f}", f"{step.log_prob:.3f}"]
        row += [_or_nothing(step.reward)] if rewards else []
        row += [_or_nothing(step.advantage), "*" if step.weight else ""] if trained else []
        table.add_row(*row)
    return table


def _committed(sample: SampleTrace, step: int) -> Text:
    if len(sample.tokens) <= LINE:
        return canvas(sample, step + 1)
    committed = [(position, token) for position, token in enumerate(sample.tokens, 1) if token.step == step]
    return Text(" ".join(f"{position}:{token.text!r}" for position, token in committed))


def _or_nothing(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
