"""The files of a checkpoint: where they are, its configuration, its tokenizer, its weights.

Code in a checkpoint is never run.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from dlmrl_kit.core.checksums import CHECKSUMS, damage, read_checksums
from dlmrl_kit.core.errors import NotFiniteError, UserError
from dlmrl_kit.core.files import reason_of
from dlmrl_kit.core.finite import require_finite, weights_of
from dlmrl_kit.core.validate import clipped
from dlmrl_kit.policies.adapter import expanded
from dlmrl_kit.policies.config_numbers import check_numbers
from dlmrl_kit.policies.layout import Layout
from dlmrl_kit.policies.model_files import foreign, read_bytes, read_json, read_text
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.weight_files import check_weights, require_finite_files

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

JSON_FILES = (
    *("generation_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "chat_template.json"),
)
"""Files besides ``config.json`` that transformers reads as JSON objects."""

TEXT_FILES = ("vocab.txt", "merges.txt", "chat_template.jinja")
"""Files that transformers reads as text."""


def checkpoint_folder(path: str | Path) -> str:
    """Returns the local folder of a checkpoint: ``shipped:NAME``, a folder, or a hub id, which is downloaded.

    Raises:
        UserError: a shipped checkpoint that does not exist, a folder without ``config.json`` or permission to read it,
            or a failed download.
    """
    text = str(path)
    try:
        local = _local_folder(text)
    except OSError as error:
        raise UserError(f"{text} cannot be read ({reason_of(error)}): check its permissions") from error
    return _download(text) if local is None else local


def _local_folder(text: str) -> str | None:
    """Returns the folder of a checkpoint on this machine; None for what is no folder. Raises as checkpoint_folder."""
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
    return None


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
        UserError: it is missing, damaged, or has numbers that are not finite or that no model can have.
    """
    path = Path(folder) / "config.json"
    config = read_json(path, finite=True)
    for name, kind in _FORMS.items():
        if config.get(name) is not None and not isinstance(config[name], kind):
            raise UserError(f"{path}: {name} must be {_WORDS[kind]}, got {clipped(repr(config[name]))}")
    check_numbers(str(path), config)
    return config


_FORMS: dict[str, type] = {
    "model_type": str,
    "architectures": list,
    "auto_map": dict,
    **dict.fromkeys(("text_config", "vision_config"), dict),
}
_WORDS: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}


def check_files(folder: str) -> None:
    """Refuses a checkpoint folder with a damaged file, before a library stumbles over it; reads no weights.

    Raises:
        UserError: names the file, and says what to do.
    """
    for path in sorted(Path(folder).iterdir()):
        if path.name in JSON_FILES:
            read_json(path)
        elif path.name in TEXT_FILES:
            read_text(path)
        elif path.suffix == ".model":
            read_bytes(path, 64)
    check_weights(Path(folder))


def check_unchanged(folder: str) -> None:
    """Refuses a model of a run, which has checksums beside it, with a file that is not as the run wrote it.

    Raises:
        UserError: names the file.
    """
    if not (Path(folder) / CHECKSUMS).is_file():
        return
    try:
        sums = read_checksums(Path(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{Path(folder) / CHECKSUMS} cannot be read ({error}): {_RESTORE}") from error
    for name, checksum in sums.items():
        path = Path(folder) / name
        if path.is_file() and (problem := damage(path, checksum)):
            raise UserError(f"{path}: {problem}; {_RESTORE}")


_RESTORE = f"copy the folder again, or remove {CHECKSUMS} if it was changed on purpose"


VOCABULARIES = ("tokenizer.json", "*.model", "*vocab*", "*.tiktoken")
"""Patterns of files one of which a tokenizer has, unless it is one of bytes."""


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

    tokenizer: PreTrainedTokenizerBase | None = None
    try:
        with quiet(), foreign(f"the tokenizer in {folder} cannot be loaded; is one of its files damaged?"):
            tokenizer = (cls or AutoTokenizer).from_pretrained(folder, trust_remote_code=False)
    except UserError:
        if any(any(Path(folder).glob(pattern)) for pattern in VOCABULARIES):
            raise  # else transformers speaks of its own ways to make one
    # transformers makes one without a vocabulary, too
    if tokenizer is None or len(tokenizer) == len(tokenizer.added_tokens_decoder):
        files = "tokenizer.json, or vocab.json and merges.txt"
        raise UserError(f"{folder} holds no vocabulary for its tokenizer ({files} ...): copy these files there, too")
    ends, padding = token_ids(config, "eos"), token_ids(config, "pad")
    if tokenizer.eos_token is None and ends:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    if tokenizer.pad_token is None and padding:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding[0])
    return tokenizer


def token_ids(config: ConfigJson, role: str) -> list[int]:
    """Returns the ids that a configuration gives a role (``eos``, ``pad``): one, a list of them, or none.

    Some published ones say -1 where there is none.
    """
    value = config.get(f"{role}_token_id")
    given = value if isinstance(value, list) else [value]
    return [index for index in given if isinstance(index, int) and not isinstance(index, bool) and index >= 0]


def load_model(
    cls: ModelClass,
    folder: str,
    options: LoadOptions,
    *,
    config: PretrainedConfig,
    layout: Layout | None = None,
    unused: tuple[str, ...] = (),
) -> PreTrainedModel:
    """Loads a transformers model with the weights of a checkpoint folder, read shard by shard.

    Args:
        cls: of the model.
        folder: of the checkpoint.
        options: precision, attention, quantisation. With ``dtype = "auto"`` weights keep the precision of the files,
            whatever the configuration says.
        config: of the model.
        layout: how tensors are called in the files; None: as in the model.
        unused: regular expressions of names of tensors that may be left out, as no logit depends on them.

    Raises:
        UserError: files that cannot be read; weights that are missing, of the wrong shape, left over, NaN or infinite.
    """
    config.dtype = None  # "auto" then means the precision of the tensors
    arguments = options.model_arguments()
    if layout is not None and layout.renames:
        arguments["key_mapping"] = layout.key_mapping()
    with quiet(), foreign(f"the weights in {folder} cannot be loaded"):
        loaded = cls.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **arguments,
        )
    model, found = cast("tuple[PreTrainedModel, dict[str, list[Any]]]", loaded)
    problems = {
        "missing": found["missing_keys"],
        "of another shape": [name for name, *_ in found["mismatched_keys"]],
        "left over": [name for name in found["unexpected_keys"] if not _matches(name, unused)],
    }
    for what, names in problems.items():
        if names:
            some = ", ".join(sorted(name if layout is None else layout.both(name) for name in names)[:3])
            raise UserError(f"{len(names)} tensors are {what}, among them {some}")
    for name, weight in model.named_parameters():
        if weight.dtype == torch.float64 and ".experts." in name:
            raise UserError(
                f"{name} has weights in float64, in which torch has no product for experts: load them with dtype = "
                "'float32', or convert the checkpoint"
            )
    try:
        require_finite(((name, expanded(weight)) for name, weight in weights_of(model)), folder)
    except NotFiniteError:
        require_finite_files(Path(folder))  # by the names and files that the user knows
        raise
    return model


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


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
