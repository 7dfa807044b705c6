"""``dlmrl plot``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Format(str, Enum):
    """A file format of figures."""

    png = "png"
    pdf = "pdf"
    svg = "svg"


def plot_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, of a finished run or not.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where to write them. Default: RUN/figures.", show_default=False),
    ] = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="May be repeated. Default: all three.", show_default=False),
    ] = None,
) -> None:
    """Draw the figures of a run: curve, parts of the reward, denoising steps, updates.

    Example: dlmrl plot runs/my-run --out paper --format pdf
    """
    from dlmrl_kit.training.figure_style import FORMATS
    from dlmrl_kit.training.figures import plot_run

    wanted = FORMATS if not formats else tuple(dict.fromkeys(format.value for format in formats))
    for path in plot_run(run, out, wanted):
        typer.echo(path)
