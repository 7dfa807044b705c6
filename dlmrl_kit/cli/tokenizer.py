"""``dlmrl tokenizer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlmrl_kit.cli.common import AllowImports, Sets, Uses, print_notes, quoted, resolved_recipe


def tokenizer_command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name or path of a pre-training recipe.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder for the tokenizer.")],
    vocab_size: Annotated[int, typer.Option("--vocab-size", metavar="N", help="Tokens in all, at least 259.")] = 1024,
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
) -> None:
    """Train a subword tokenizer on the texts of a pre-training recipe.

    Example: dlmrl tokenizer words.gin --out runs/tokenizer
    """
    loaded = resolved_recipe(recipe, sets, uses, allow_imports)
    print_notes(loaded)
    from dlmrl_kit.pretraining.tokenizer import write_tokenizer

    size = write_tokenizer(loaded.build_pretraining(), vocab_size, out)
    typer.echo(f"a tokenizer of {size} tokens: {quoted(out)}")
