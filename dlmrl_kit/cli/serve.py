"""``dlmrl serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlmrl_kit.cli.common import DEFAULT_RECIPE, AllowImports, Sets, Uses, print_notes, resolved_recipe


def serve_command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name or path of a training recipe.")
    ] = DEFAULT_RECIPE,
    host: Annotated[str, typer.Option(help="Address to listen at. Whoever reaches it can send weights.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    weights_folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder from which weights may be loaded by path.", show_default=False),
    ] = None,
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
) -> None:
    """Serve the rollouts of a recipe over HTTP, for runs with the collector Served.

    Example: dlmrl serve egspo_sa --port 8765
    """
    loaded = resolved_recipe(recipe, sets, uses, allow_imports)
    print_notes(loaded)
    from dlmrl_kit.training.serving import engine_server

    server = engine_server(loaded, host, port, weights_folder)
    typer.echo(f"{loaded.name}: serving at http://{host}:{server.server_port}, until Ctrl-C")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
    finally:
        server.server_close()
