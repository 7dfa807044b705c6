"""A profile of training updates as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from dlmrl_kit.report.console import printable
from dlmrl_kit.report.tables import numbers, plain_table, words


def table_of_profile(report: Mapping[str, Any]) -> RenderableType:
    """Returns a table of seconds by phase, and the share of an update that is not spent in the model.

    Args:
        report: from ``dlmrl_kit.training.profiling.report``.
    """
    table = plain_table(words("phase"), numbers("seconds per update"), numbers("share"))
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
