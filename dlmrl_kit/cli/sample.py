"""``dlmrl sample``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dlmrl_kit.cli.common import AllowImports, Sets, Uses, check_new_file
from dlmrl_kit.cli.decoding import Length, Recipe, Steps, Temperature
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.recipe.decoding import decoder_bindings


def sample_command(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Run folder, model folder, hub id, or shipped:NAME.")],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", show_default=False)] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A prompt per line; of a .jsonl file the field prompt, a text or a conversation. -: standard input.",
            show_default=False,
        ),
    ] = None,
    recipe: Recipe = None,
    length: Length = None,
    steps: Steps = None,
    temperature: Temperature = None,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the sampling noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Completions decoded at once.")] = 64,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write JSONL there, a line per prompt.", show_default=False)
    ] = None,
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
) -> None:
    """Complete prompts with a run or model.

    Example: dlmrl sample runs/my-run "3_424231241__32_:" --samples 4 --temperature 0.9
    """
    if out is not None:
        check_new_file(out, "--out")
    from dlmrl_kit.core.files import write_atomic
    from dlmrl_kit.rollout.prompt_file import read_prompts
    from dlmrl_kit.training.opening import open_decoder

    wanted = [*(prompts or []), *(read_prompts(file) if file is not None else [])]
    if not wanted:
        raise UserError("no prompt: give some as arguments, or a file of them with --file")
    opened = open_decoder(path, recipe, decoder_bindings(length, steps, sets), uses or (), allow_imports)
    sampler = opened.sampler if temperature is None else opened.sampler.at_temperature(temperature)
    found = opened.policy.generate(wanted, sampler, seed=seed, samples=samples, batch_size=batch_size)
    lines = [
        json.dumps({"prompt": prompt, "completions": texts}, ensure_ascii=False)
        for prompt, texts in zip(wanted, found, strict=True)
    ]
    if out is not None:
        write_atomic(out, "".join(line + "\n" for line in lines))
        typer.echo(f"{len(lines)} prompts: {out}")
        return
    for texts in found:
        for text in texts:
            typer.echo(text)
