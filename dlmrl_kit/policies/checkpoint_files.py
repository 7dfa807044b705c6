"""The files of a checkpoint: where they are, its configuration, its tokenizer. Code in a checkpoint is never run."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.options import LoadOptions

SHIPPED = Path(__file__).resolve().parent.parent / "assets"
"""Folder of the checkpoints inside the package; a path ``shipped:NAME`` means ``SHIPPED / NAME``."""

DOWNLOADED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py")
"""Files that are fetched of a hub id. Python files are kept as data, so that they can be written beside the weights."""


def resolve(path: str | Path) -> str:
    """The local folder of a checkpoint: ``shipped:NAME``, a folder, or a hub id, which is downloaded.

    Raises:
        UserError: a shipped checkpoint that does not exist, a folder without ``config.json``, or a failed download.
    """
    text = str(path)
    if text.startswith("shipped:"):
        folder = SHIPPED / text.removeprefix("shipped:")
        if not folder.is_dir():
            available = sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()) if SHIPPED.is_dir() else []
            raise UserError(f"no checkpoint {text!r} ships with dlmrl_kit; available: {', '.join(available) or 'none'}")
        return str(folder)
    if Path(text).is_dir():
        if not any((Path(text) / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UserError(f"{text} holds no config.json: it is not a checkpoint written by save_pretrained")
        return text
    return _download(text)


def _download(name: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(name, allow_patterns=list(DOWNLOADED))
    except HFValidationError:
        raise UserError(f"cannot load a denoiser from {name}: no such folder, and no hub id either") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"cannot load a denoiser from {name}: no such folder here, and the hub says: {reason}"
        ) from None


def read_config(folder: str) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint folder.

    Raises:
        UserError: it is missing or no JSON object.
    """
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError("config.json is no JSON object")
    return config


def without_remote_code(config: dict[str, Any]) -> bool:
    """Whether a configuration names no Python file of its own for its model."""
    auto_map = config.get("auto_map") or {}
    return not any(key.startswith("AutoModel") for key in auto_map)


def load_tokenizer(folder: str, config: dict[str, Any], cls: Any = None) -> Any:
    """The tokenizer of a checkpoint folder; end of text and padding are ``config.json``'s where it names none.

    Args:
        folder: of the checkpoint.
        config: its ``config.json``.
        cls: the tokenizer's class in transformers; None leaves it to ``AutoTokenizer``.

    Raises:
        UserError: there is none, or it needs code of its own.
    """
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = (cls or AutoTokenizer).from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the tokenizer cannot be loaded: {error}") from error
    for name in ("eos_token", "pad_token"):
        index = config.get(f"{name}_id")
        index = index[0] if isinstance(index, list) and index else index
        if getattr(tokenizer, name) is None and isinstance(index, int):
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(index))
    return tokenizer


def load_model(
    cls: Any,
    folder: str,
    options: LoadOptions,
    *,
    config: Any,
    key_mapping: dict[str, str] | None = None,
    strict: bool = False,
) -> Any:
    """A transformers model with the weights of a checkpoint folder, read shard by shard, in their own precision.

    Args:
        cls: with ``from_pretrained``.
        folder: of the checkpoint.
        options: precision, attention, quantisation.
        config: of the model; its ``dtype`` is ignored.
        key_mapping: regular expressions of tensor names -> the model's names.
        strict: refuse tensors that the model does not have.

    Raises:
        UserError: weights that are missing, of the wrong shape or, with ``strict``, left over.
    """
    config.dtype = None  # "auto" then means the precision of the tensors
    arguments: dict[str, Any] = {"key_mapping": key_mapping} if key_mapping else {}
    with quiet():
        model, found = cls.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **arguments,
            **options.model_arguments(),
        )
    problems = {"missing": found["missing_keys"], "of another shape": found["mismatched_keys"]}
    if strict:
        problems["left over"] = found["unexpected_keys"]
    for what, names in problems.items():
        if names:
            some = ", ".join(sorted(str(name) for name in names)[:3])
            raise UserError(f"{len(names)} tensors are {what}, among them {some}")
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turns transformers' progress bars and warnings off: the kit has its own, and checks what it loads."""
    from transformers.utils import logging

    enabled, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # old keys in published configurations
            yield
    finally:
        logging.set_verbosity(verbosity)
        if enabled:
            logging.enable_progress_bar()


def end_of_turn(folder: str, tokenizer: Any) -> int | None:
    """The token that ends the assistant's answer: an end of generation that the chat template writes; None if none.

    Args:
        folder: of the checkpoint, whose ``generation_config.json`` lists the ends.
        tokenizer: with the template.
    """
    file = Path(folder) / "generation_config.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    template = str(getattr(tokenizer, "chat_template", None) or "")
    for index in found if isinstance(found, list) else [found]:
        if isinstance(index, int) and tokenizer.convert_ids_to_tokens(index) in template:
            return index
    return None
