"""The files of a checkpoint: where they are, its configuration, its tokenizer, its weights.

Code in a checkpoint is never run.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.options import LoadOptions

if TYPE_CHECKING:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

    ModelClass: TypeAlias = type[PreTrainedModel | AutoModelForCausalLM | AutoModelForMaskedLM]

ConfigJson: TypeAlias = dict[str, Any]
"""A checkpoint's ``config.json`` as it is."""

SHIPPED = Path(__file__).resolve().parent.parent / "assets"
"""Folder of the checkpoints inside the package; a path ``shipped:NAME`` means ``SHIPPED / NAME``."""

DOWNLOADED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py")
"""Files that are fetched of a hub id. Python files are kept as data, so that they can be written beside the weights."""


def checkpoint_folder(path: str | Path) -> str:
    """Returns the local folder of a checkpoint: ``shipped:NAME``, a folder, or a hub id, which is downloaded.

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


def read_config(folder: str) -> ConfigJson:
    """Reads the ``config.json`` of a checkpoint folder.

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


def architectures(config: ConfigJson) -> list[str]:
    """Returns the names of the model classes that a configuration is for."""
    return list(config.get("architectures") or [])


def without_remote_code(config: ConfigJson) -> bool:
    """Tells whether a configuration names no Python file of its own for its model."""
    auto_map = config.get("auto_map") or {}
    return not any(key.startswith("AutoModel") for key in auto_map)


def load_tokenizer(
    folder: str, config: ConfigJson, cls: type[PreTrainedTokenizerBase] | None = None
) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a checkpoint folder. Where it names no end of text or padding, ``config.json``'s count.

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
            tokenizer: PreTrainedTokenizerBase = (cls or AutoTokenizer).from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the tokenizer cannot be loaded: {error}") from error
    ends, padding = _ids(config.get("eos_token_id")), _ids(config.get("pad_token_id"))
    if tokenizer.eos_token is None and ends:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    if tokenizer.pad_token is None and padding:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding[0])
    return tokenizer


def _ids(value: object) -> list[int]:
    """Returns the ids in a setting, which may be one, a list of them, or none."""
    return [index for index in (value if isinstance(value, list) else [value]) if isinstance(index, int)]


def load_model(
    cls: ModelClass,
    folder: str,
    options: LoadOptions,
    *,
    config: PretrainedConfig,
    key_mapping: dict[str, str] | None = None,
    strict: bool = False,
) -> PreTrainedModel:
    """Loads a transformers model with the weights of a checkpoint folder, read shard by shard.

    Args:
        cls: of the model.
        folder: of the checkpoint.
        options: precision, attention, quantisation. With ``dtype = "auto"`` weights keep the precision of the files,
            whatever the configuration says.
        config: of the model.
        key_mapping: the model's names of tensors by regular expressions of the names in the files.
        strict: refuse tensors that the model does not have.

    Raises:
        UserError: weights that are missing, of the wrong shape or, with ``strict``, left over.
    """
    config.dtype = None  # "auto" then means the precision of the tensors
    arguments = options.model_arguments()
    if key_mapping:
        arguments["key_mapping"] = key_mapping
    with quiet():
        loaded = cls.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **arguments,
        )
    model, found = cast("tuple[PreTrainedModel, dict[str, list[object]]]", loaded)
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
    """Within the context, transformers shows no progress bars and warnings: the kit checks what it loads by itself."""
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


def end_of_turn(folder: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the token that ends the assistant's answer, None if it is not known.

    Checkpoints may list several ends of generation, of which one ends a turn and others whole texts. A turn ends with
    the one that the chat template writes.

    Args:
        folder: of the checkpoint, whose ``generation_config.json`` lists the ends.
        tokenizer: with the template.
    """
    file = Path(folder) / "generation_config.json"
    ends = _ids(json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")) if file.is_file() else []
    template = str(tokenizer.chat_template or "")
    return next((index for index in ends if str(tokenizer.convert_ids_to_tokens(index)) in template), None)
