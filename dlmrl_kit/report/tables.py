"""How tables look in a terminal: no frame, text that folds, numbers at the right that are never broken."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD, Box
from rich.table import Column, Table
from rich.text import Text

ROUNDING = 1e-8
"""Numbers that are smaller than this are rounding errors."""


def words(heading: str, *, whole: bool = False) -> Column:
    """Returns a column of text. A long cell takes several lines, unless it is to be kept ``whole``."""
    return Column(Text(heading), overflow="fold", no_wrap=whole)


def numbers(heading: str, *, whole: bool = True, max_width: int | None = None) -> Column:
    """Returns a column of numbers, aligned at the right; cells that are not ``whole`` may take several lines."""
    return Column(Text(heading), justify="right", no_wrap=whole, max_width=max_width)


def plain_table(*columns: Column, title: str | None = None, box: Box = SIMPLE_HEAD) -> Table:
    """Returns an empty table without a frame; its ``title`` stands above it, at the left, as it is."""
    shown = None if title is None else Text(title)
    return Table(*columns, title=shown, title_justify="left", box=box, pad_edge=False)


def short_number(value: float | None) -> str:
    """Returns two digits of a number: ``0.12``, ``350``, ``< 1e-8`` for rounding errors, ``-`` for None."""
    if value is None:
        return "-"
    if abs(value) < ROUNDING:
        return "< 1e-8"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def four_decimals(value: float | None) -> str:
    """Returns a number with four decimals, ``-`` for None."""
    return "-" if value is None else f"{value:.4f}"
