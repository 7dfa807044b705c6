"""Evaluations as tables for the terminal: one alone, its samples, and two of them before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.report.console import printable
from dlmrl_kit.report.tables import numbers, plain_table, words


def accuracy_text(result: EvalResult) -> str:
    """Returns the accuracy with its 95% interval, in percent: ``40.0% [35.3, 44.9]``."""
    low, high = result.interval()
    return f"{result.accuracy:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def examples_text(result: EvalResult) -> str:
    """Returns what an evaluation was measured on: ``Sudoku4x4: 400 examples of heldout``."""
    return f"{result.task}: " * bool(result.task) + f"{result.size} examples of {result.split}"


def table_before_after(before: EvalResult, after: EvalResult) -> RenderableType:
    """Returns a table of accuracy, reward and components of the reward before and after training."""
    table = plain_table(words(""), *(numbers(heading) for heading in ("before", "after", "change")))
    change = f"{100 * (after.accuracy - before.accuracy):+.1f} points"
    table.add_row(Text("accuracy [95% CI]"), accuracy_text(before), accuracy_text(after), change, style="bold")
    rows = {"reward": (before.reward, after.reward)}
    rows |= {f"reward/{k}": (before.components[k], v) for k, v in after.components.items() if k in before.components}
    for name, (old, new) in rows.items():
        table.add_row(Text(name), f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
    return Group(_heading(after), table, *_cautions(after))


def table_of_evaluation(result: EvalResult) -> RenderableType:
    """Returns a table of everything that an evaluation measured."""
    table = plain_table(words(""), numbers("value"))
    table.add_row(Text("accuracy [95% CI]"), accuracy_text(result), style="bold")
    if list(result.pass_at_k) != [1]:
        for k, share in sorted(result.pass_at_k.items()):
            table.add_row(f"pass@{k}", f"{share:.1%}")
    table.add_row("reward", f"{result.reward:.3f}")
    for name, value in result.components.items():
        table.add_row(Text(f"reward/{name}"), f"{value:.3f}")
    return Group(_heading(result), table, *_cautions(result))


def table_of_samples(samples: Sequence[Mapping[str, object]]) -> Table:
    """Returns a table of an evaluation's samples, one per row. What a model wrote is shown, never interpreted."""
    shown = ("prompt", "completion", "answer")
    table = plain_table(*(words(heading) for heading in shown), words("solved", whole=True), numbers("reward"))
    for sample in samples:
        texts = [Text(printable(str(sample[key]))) for key in shown]
        table.add_row(*texts, "yes" if sample["solved"] else "no", f"{sample['reward']:.3f}")
    return table


def plain_value(value: object) -> str:
    """Returns a setting or a fact as people write it: ``12,000``, ``0.001``, ``cpu``."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cautions(result: EvalResult) -> list[Text]:
    return [Text(result.caution())] if result.caution() else []


def _heading(result: EvalResult) -> Text:
    decoding = result.decoding
    how = [result.temperature()]
    shown = [key for key in ("sampler", "tokens_per_step") if key in decoding]
    how += [f"{key.replace('_', ' ')} {plain_value(decoding[key])}" for key in shown]
    return Text(f"{examples_text(result)}; {', '.join(how)}")
