"""What was measured by denoising step as a table for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from dlmrl_kit.experiments.step_files import step_name
from dlmrl_kit.experiments.step_measures import StepReport
from dlmrl_kit.report.console import printable
from dlmrl_kit.report.tables import numbers, plain_table, words


def table_of_steps(report: StepReport) -> RenderableType:
    """Returns a table with a row for each step and one for the whole gradient, and what chance alone would show."""
    titles = ("kept", "entropy", "reward var.", "advantage var.", "norm", "signal", "noise", "ratio")
    table = plain_table(words("step"), *(numbers(title, whole=False) for title in titles))
    for m in report.steps:
        found = (m.kept, m.entropy, m.reward_variance, m.advantage_variance, m.norm, m.signal, m.noise, m.ratio)
        table.add_row(step_name(m), *("-" if value is None else f"{value:.3g}" for value in found))
    heading = f"{report.recipe} at {report.model}: {report.batches} independent batches"
    note = f"without any signal, the ratio comes to lie below {report.chance:.2f} with a probability of at least 95%"
    return Group(Text(printable(heading)), table, Text(note, style="dim"))
