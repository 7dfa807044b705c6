"""``dlmrl chat``."""

from __future__ import annotations

from typing import Annotated

import typer

from dlmrl_kit.cli.common import AllowImports, Sets, Uses, new_console
from dlmrl_kit.cli.decoding import Length, Recipe, Steps, Temperature
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.recipe.decoding import decoder_bindings


def chat_command(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Run folder, model folder, hub id, or shipped:NAME.")],
    recipe: Recipe = None,
    length: Length = None,
    steps: Steps = None,
    temperature: Temperature = None,
    seed: Annotated[int, typer.Option(help="Of the sampling noise.")] = 0,
    system: Annotated[
        str | None, typer.Option(help="What the conversation begins with, as the system.", show_default=False)
    ] = None,
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
) -> None:
    """Talk to a run or model, and watch it fill in its masks. /new begins again, /quit or an end of file ends.

    Example: dlmrl chat runs/my-run --length 256 --steps 128
    """
    from dlmrl_kit.report.chat import Chat
    from dlmrl_kit.training.opening import open_decoder

    opened = open_decoder(path, recipe, decoder_bindings(length, steps, sets), uses or (), allow_imports)
    sampler = opened.sampler if temperature is None else opened.sampler.at_temperature(temperature)
    chat = Chat(new_console(), opened.policy, sampler, seed=seed, system=system)
    typer.echo("type a message; /new begins again, /quit ends", err=True)
    while True:
        try:
            text = typer.prompt("you", prompt_suffix="> ", err=True).strip()
        except (EOFError, typer.Abort):
            return
        if text == "/quit":
            return
        if text == "/new":
            chat.begin()
            continue
        try:
            chat.say(text)
        except RecipeError as error:  # a message that the model cannot read ends no conversation
            typer.echo(f"error: {error}", err=True)
