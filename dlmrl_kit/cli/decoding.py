"""The options of commands that decode prompts of the user."""

from __future__ import annotations

from typing import Annotated

import typer

from dlmrl_kit.core.errors import UserError

Recipe = Annotated[
    str | None,
    typer.Option(help="Recipe whose sampler decodes. Default: that of the run.", show_default=False),
]
Length = Annotated[
    int | None,
    typer.Option(min=1, help="Short for --set Sampler.completion_length=N.", show_default=False),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1, help="Denoising steps of a completion of --length: sets Sampler.tokens_per_step.", show_default=False
    ),
]
Temperature = Annotated[
    float | None, typer.Option(min=0, help="0 is greedy. Default: that of the recipe's sampler.", show_default=False)
]


def decoder_bindings(length: int | None, steps: int | None, sets: list[str] | None) -> list[str]:
    """Returns the bindings of a recipe that these options stand for, before those of ``--set``.

    Raises:
        UserError: a number of steps without a length, or one that does not divide it.
    """
    found = [] if length is None else [f"Sampler.completion_length = {length}"]
    if steps is not None:
        if length is None or length % steps:
            raise UserError(f"--steps {steps} needs a --length that it divides; got {length}")
        found.append(f"Sampler.tokens_per_step = {length // steps}")
    return [*found, *(sets or [])]
