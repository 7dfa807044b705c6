"""``dlmrl plugin``: new plugins, and a report card of installed ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dlmrl_kit.cli.common import AsJson, one_line_errors, print_json, quoted

plugin_app = typer.Typer(
    name="plugin",
    help="Write a new plugin, or examine an installed one.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@plugin_app.command("new")
@one_line_errors
def new_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the package, such as acme or acme_steps.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            metavar="KIND[,KIND...]",
            help="One component of each of these kinds. Default: selector, or none with --new-kind.",
            show_default=False,
        ),
    ] = None,
    new_kind: Annotated[
        str, typer.Option("--new-kind", metavar="KIND", help="Declare a kind of this name.", show_default=False)
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder. Default: ./NAME.", show_default=False)
    ] = None,
) -> None:
    """Write a complete package with a component of each kind, its recipes and its tests, which pass as it is.

    With --new-kind the package declares a kind of its own, which fills a slot of its own.

    Example: dlmrl plugin new acme --kind selector,loss
    """
    from dlmrl_kit.scaffold.package import write_package

    folder = Path(name) if out is None else out
    kinds = ([] if new_kind else ["selector"]) if kind is None else [part.strip() for part in kind.split(",")]
    names = write_package(name, kinds, folder, new_kind)
    where = quoted(folder)
    typer.echo(f"{folder}: {', '.join(names)}")
    typer.echo("\nTry next:")
    typer.echo(f"  pip install -e '{where}[dev]'  # once: what you change then counts at once")
    typer.echo(f"  pytest {where}")
    typer.echo(f"  dlmrl plugin check {name}")


@plugin_app.command("check")
@one_line_errors
def check_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of an installed plugin, see dlmrl list.")],
    as_json: AsJson = False,
) -> None:
    """Print a report card of an installed plugin: import, versions, conformance of its components, recipes.

    Ends with exit code 1 if anything failed. Example: dlmrl plugin check acme
    """
    from dlmrl_kit.scaffold.report_card import report_card

    marks = []
    for mark in report_card(name):
        marks.append(mark)
        if not as_json:
            told = mark.fault or mark.note
            typer.echo(f"{'FAILED' if mark.fault else 'ok':<7}{mark.what}: {mark.asked}{f' - {told}' if told else ''}")
    failed = sum(bool(mark.fault) for mark in marks)
    if as_json:
        print_json([asdict(mark) for mark in marks])
    else:
        typer.echo(f"\n{failed} of {len(marks)} failed" if failed else f"\nall {len(marks)} passed")
    if failed:
        raise typer.Exit(1)
