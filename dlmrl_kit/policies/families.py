"""Which transformers classes read a checkpoint, decided by its ``config.json``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlmrl_kit.errors import UserError
from dlmrl_kit.policies.base import Policy

SHIPPED = Path(__file__).resolve().parent.parent / "assets"
"""Folder of the checkpoints inside the package; a path ``shipped:NAME`` means ``SHIPPED / NAME``."""

BIDIRECTIONAL = ("llama", "qwen2", "qwen3")
"""Model types that transformers runs bidirectionally with ``is_causal=False``."""


def resolve(path: str | Path) -> str:
    """Turns ``shipped:NAME`` into the folder inside the package; other paths and hub ids stay as they are.

    Raises:
        UserError: a shipped checkpoint that does not exist, or a local folder without ``config.json``.
    """
    text = str(path)
    if text.startswith("shipped:"):
        folder = SHIPPED / text.removeprefix("shipped:")
        if not folder.is_dir():
            available = sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()) if SHIPPED.is_dir() else []
            raise UserError(f"no checkpoint {text!r} ships with dlmrl_kit; available: {', '.join(available) or 'none'}")
        return str(folder)
    if Path(text).is_dir() and not (Path(text) / "config.json").is_file():
        raise UserError(f"{text} holds no config.json: it is not a checkpoint written by save_pretrained")
    return text


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turns transformers' progress bars off: the kit has its own."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def load(path: str | Path, **options: Any) -> Policy:
    """See ``Policy.from_pretrained``."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = resolve(path)
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type not in BIDIRECTIONAL:
            raise UserError(
                f"{path}: no denoiser for model type {config.model_type!r}; supported: {', '.join(BIDIRECTIONAL)}"
            )
        config.is_causal = False
        config.use_cache = False
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(source, config=config)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load a denoiser from {path}: {error}") from error
    return Policy(model, tokenizer, **options)
