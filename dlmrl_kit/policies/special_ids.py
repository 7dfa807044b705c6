"""Special tokens in the files of a checkpoint: held to the model, to each other and to what the caller says.

For the mask, the ends of text, padding and the beginning of text one rule holds. An id must be one of the model's
tokens. Of several ends all count. Of masks that differ, the caller's counts; if he says nothing they are refused, as a
model that is given another mask than in its training sees noise. Of padding and beginning, on which no logit depends
(where one does, the family refuses it), the tokenizer's counts. A warning names what says otherwise than what counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.validate import clipped
from dlmrl_kit.policies.checkpoint_files import ConfigJson, token_ids
from dlmrl_kit.policies.foreign import setting
from dlmrl_kit.policies.model_files import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_ROLES = ("mask", "eos", "pad", "bos")
_BY_THE_TOKENIZER = {"pad": "padding", "bos": "beginning of text"}
_NONE = {"pad": -1, "bos": -1}
"""What stands for "there is none" in some published configurations."""


def stated(folder: str, config: ConfigJson) -> dict[str, ConfigJson]:
    """Returns the settings of a checkpoint folder that say which ids special tokens have, by where they are.

    Those that are named first count first. Raises ``UserError`` if ``generation_config.json`` cannot be read.
    """
    path, found = Path(folder) / "generation_config.json", {}
    if path.is_file():
        found[str(path)] = read_json(path)
    found[str(Path(folder) / "config.json")] = config
    if isinstance(config.get("text_config"), dict):
        found[f"{Path(folder) / 'config.json'}: text_config"] = config["text_config"]
    return found


def check_ids(folder: str, config: ConfigJson, vocab_size: int) -> None:
    """Checks that the ids of special tokens in the files of a checkpoint are tokens of its model.

    Raises:
        UserError: names the file, the setting and the ids that are not.
    """
    for where, settings in stated(folder, config).items():
        for role in _ROLES:
            value = settings.get(f"{role}_token_id")
            ids = value if isinstance(value, list) and role != "mask" else [] if value is None else [value]
            if not all(type(index) is int for index in ids):
                raise UserError(f"{where}: {role}_token_id = {clipped(repr(value))} is no id of a token")
            outside = [str(i) for i in ids if not 0 <= i < vocab_size and i != _NONE.get(role)]
            if outside:
                raise UserError(
                    f"{where}: {role}_token_id names {', '.join(outside)}, and the model has the tokens 0 to "
                    f"{vocab_size - 1}: correct it, or remove it"
                )


def check_agreement(folder: str, config: ConfigJson, tokenizer: PreTrainedTokenizerBase, mask_id: int | None) -> None:
    """Checks that what is said of special tokens is the same everywhere; warns of what does not count.

    Args:
        folder: of the checkpoint.
        config: its ``config.json``.
        tokenizer: its tokenizer.
        mask_id: what the caller says of the mask; None: nothing.

    Raises:
        UserError: masks that differ and none of the caller's, or an end that is the mask or that the tokenizer does not
            have.
    """
    sources = stated(folder, config)
    masks = {where: mask for where, settings in sources.items() for mask in token_ids(settings, "mask")}
    masks |= {} if tokenizer.mask_token_id is None else {"the tokenizer": tokenizer.mask_token_id}
    said = ", ".join(f"{mask} ({where})" for where, mask in masks.items())
    if mask_id is None and len(set(masks.values())) > 1:
        raise UserError(f"the mask of the checkpoint is {said}: say with mask_id which one it was trained with")
    if mask_id is not None and set(masks.values()) - {mask_id}:
        _warn(f"mask_id = {mask_id} counts, but the mask of the checkpoint is {said}")
    _check_ends(sources, tokenizer, next(iter(masks.values()), None) if mask_id is None else mask_id)
    for role, what in _BY_THE_TOKENIZER.items():
        own = tokenizer.pad_token_id if role == "pad" else tokenizer.bos_token_id
        for where, settings in sources.items():
            for index in token_ids(settings, role):
                if own not in (None, index):
                    _warn(f"the tokenizer's {what} {own} counts, but {where}: {role}_token_id = {index}")


def _check_ends(sources: Mapping[str, ConfigJson], tokenizer: PreTrainedTokenizerBase, mask: int | None) -> None:
    known = {*tokenizer.get_vocab().values()}
    for where, settings in sources.items():
        for end in token_ids(settings, "eos"):
            if end == mask or end not in known:
                problem = "the mask" if end == mask else "a token that the tokenizer does not have"
                raise UserError(f"{where}: eos_token_id names {end}, which is {problem}: correct it, or remove it")


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)


def mask_of(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, given: int | None) -> int:
    """Returns the id of a model's mask token: the one that was given, or else what config or tokenizer say.

    Raises:
        UserError: none of them says, or it is no token of the model.
    """
    stated = (given, setting(config, "mask_token_id"), tokenizer.mask_token_id)
    found = next((index for index in stated if isinstance(index, int) and not isinstance(index, bool)), None)
    if found is None:
        raise UserError("the checkpoint names no mask token: give one with mask_id, or set the tokenizer's mask_token")
    if not 0 <= found < config.vocab_size:
        raise UserError(f"mask_id {found} is no token of the model, which has {config.vocab_size}")
    return found
