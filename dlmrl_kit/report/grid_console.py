"""An evaluation grid in the terminal: a line for each cell while it goes on, the table and where the files are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from dlmrl_kit.experiments.evaluation_curve import FIGURE, FORWARDS, is_curve
from dlmrl_kit.experiments.evaluation_files import (
    CSV,
    JSON,
    LATEX,
    MARKDOWN,
    comparison_rows,
    forwards_rows,
    table_rows,
)
from dlmrl_kit.experiments.evaluation_grid import Cell
from dlmrl_kit.experiments.evaluation_results import GridResults
from dlmrl_kit.experiments.evaluation_runs import CELLS, PAGE, CellResult, GridObserver
from dlmrl_kit.report.console import printable, say
from dlmrl_kit.report.evaluation_tables import accuracy_text
from dlmrl_kit.report.tables import numbers, plain_table, words
from dlmrl_kit.training.figure_style import FORMATS


class RichGridObserver(GridObserver):
    """Prints a line for each cell.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_start(self, cells: Sequence[Cell], known: int) -> None:
        """Says how many cells there are."""
        say(self.console, f"{len(cells)} cells" + f", {known} of them measured already" * bool(known))

    def on_cell(self, cell: Cell, result: CellResult) -> None:
        """Says what a cell came to, and whether the batch size changes completions."""
        check = f"; {result.check}" if result.check is not None else ""
        say(self.console, f"{cell.name}: accuracy {accuracy_text(result.result)}{check}")


def grid_result(results: GridResults, folder: Path) -> RenderableType:
    """Returns the table in percent, tests between models, what cells of a curve took, and the files in ``folder``."""
    titles, *rows = table_rows(results)
    table = plain_table(words(titles[0]), *(numbers(title, whole=False) for title in titles[1:]))
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    parts: list[RenderableType] = [table]
    if results.comparisons:
        titles, *rows = comparison_rows(results.comparisons)
        tests = plain_table(*map(words, titles), title="models on the same examples")
        for row in rows:
            tests.add_row(*(Text(printable(cell)) for cell in row))
        parts.append(tests)
    if is_curve(results.curve):
        titles, *rows = forwards_rows(results.curve)
        paid = plain_table(*map(words, titles[:3]), *(numbers(title, whole=False) for title in titles[3:]))
        for row in rows:
            paid.add_row(*(Text(printable(cell)) for cell in row))
        parts.append(paid)
    files = {"table": f"{MARKDOWN}, {LATEX}, {CSV}, {JSON}", "completions": f"{CELLS}/*/{PAGE}"}
    if is_curve(results.curve):
        files["curve"] = ", ".join([FORWARDS, *(f"{FIGURE}.{form}" for form in FORMATS)])
    return Group(*parts, *(Text(f"{label:<12} {folder}: {names}") for label, names in files.items()))
