"""The options of commands that decode prompts of the user."""

from __future__ import annotations

from typing import Annotated

import typer

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
