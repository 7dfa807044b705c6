"""The results of an evaluation grid as files: Markdown, LaTeX, CSV and JSON, each with what can change a number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.experiments.aggregate import Estimate, csv_text
from dlmrl_kit.experiments.evaluation_curve import FORWARDS, curve_rows, draw_curve, is_curve
from dlmrl_kit.experiments.evaluation_results import Comparison, GridResults, Point
from dlmrl_kit.experiments.text_tables import latex_table, markdown_table

MARKDOWN, LATEX, CSV, JSON = "table.md", "table.tex", "table.csv", "table.json"


def write_results(results: GridResults, folder: Path) -> None:
    """Writes ``table.md``, ``table.tex``, ``table.csv``, ``table.json``, ``forwards.csv``, and the figure if any."""
    write_atomic(folder / MARKDOWN, markdown(results))
    write_atomic(folder / LATEX, latex(results))
    write_atomic(folder / CSV, csv_text(csv_rows(results)))
    write_atomic(folder / JSON, json.dumps(results.to_json(), indent=1, ensure_ascii=False) + "\n")
    write_atomic(folder / FORWARDS, csv_text(curve_rows(results.curve)))
    if is_curve(results.curve):
        draw_curve(results.curve, folder)


def percent(found: Estimate | None, sign: str = "") -> str:
    """Returns a mean in percent with its interval: ``40.0 [35.3, 44.9]``; a dash for None."""
    if found is None or found.mean is None:
        return "-"
    form = f"{{:{sign}.1f}}"
    shown = form.format(100 * found.mean)
    if found.low is None or found.high is None:
        return shown
    return f"{shown} [{form.format(100 * found.low)}, {form.format(100 * found.high)}]"


def table_rows(results: GridResults) -> list[list[str]]:
    """Returns the table: a row of titles, then one for each model."""
    rows = [["model", *map(str, results.columns)]]
    rows += [[row, *(percent(results.cells.get((row, column))) for column in results.columns)] for row in results.rows]
    return rows


def forwards_rows(points: Sequence[Point]) -> list[list[str]]:
    """Returns what each cell took: a row of titles, then one for each cell."""
    rows = [["on", "model and sampler", "setting", "accuracy", "forwards per completion", "tokens per completion"]]
    for point in points:
        numbers = (percent(point.accuracy), f"{point.forwards:.4g}", f"{point.tokens:,.0f}")
        rows.append([point.panel, point.line, point.setting, *numbers])
    return rows


def comparison_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Returns the tests between models: a row of titles, then one for each test."""
    rows = [["measured", "first", "second", "second - first", "solved by one alone", "p", "test"]]
    for found in comparisons:
        alone = "-" if found.only_first is None else f"{found.only_first} / {found.only_second}"
        what = f"{found.column}" + f" ({found.group})" * bool(found.group)
        difference = percent(found.difference, "+")
        rows.append([what, found.first, found.second, difference, alone, f"{found.p_value:.3g}", found.test])
    return rows


def markdown(results: GridResults) -> str:
    """Returns the results as Markdown."""
    parts = ["# Evaluation", "In percent, with 95% intervals.", markdown_table(table_rows(results))]
    if results.comparisons:
        note = f"p-values are two-sided and not corrected for the number of tests, which is {len(results.comparisons)}."
        parts += ["## Models on the same examples", markdown_table(comparison_rows(results.comparisons)), note]
    if results.curve:
        parts += ["## Accuracy against forwards", markdown_table(forwards_rows(results.curve))]
    parts += ["## Batch size", markdown_table([["cell", "check"], *map(list, results.checks.items())])]
    parts += ["## The same in every cell", markdown_table([["what", "value"], *map(list, results.header.items())])]
    rows = [[cell, key, value] for cell, own in results.differences.items() for key, value in own.items()]
    if rows:
        parts += ["## Not the same in every cell", markdown_table([["cell", "what", "value"], *rows])]
    return "\n\n".join(parts) + "\n"


def latex(results: GridResults) -> str:
    """Returns the table for the package ``booktabs``, with what can change a number as comments above it."""
    comments = [f"{key}: {value}" for key, value in results.header.items()]
    comments += [f"{cell}: {key}: {value}" for cell, own in results.differences.items() for key, value in own.items()]
    comments += [f"{cell}: batch size: {check}" for cell, check in results.checks.items()]
    return latex_table(table_rows(results), ["In percent, with 95% intervals.", *comments])


def csv_rows(results: GridResults) -> Iterator[Sequence[object]]:
    """Yields a row of titles, then one for each number, with everything that can change it."""
    names = list(dict.fromkeys(key for own in results.differences.values() for key in own))
    shared = [*results.header.items()]
    yield ("cell", "row", "measured", "metric", "mean", "low", "high", "n", *names, *(key for key, _ in shared))
    for name, row, column in results.places:
        found, own = results.cells[row, column], results.differences[name]
        numbers = (found.mean, found.low, found.high, found.n)
        facts = (*(own.get(key) for key in names), *(value for _, value in shared))
        yield (name, row, column.task, column.metric, *numbers, *facts)
