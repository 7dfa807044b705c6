"""How a checkpoint is to be loaded: what ``load_policy`` takes besides the path."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

import torch

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.validate import clipped
from dlmrl_kit.policies.layout import Layout
from dlmrl_kit.policies.model_files import AGAIN, read_json

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

Dtype = Literal["auto", "float32", "bfloat16"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"]
Quantisation = Literal["none", "nf4"]
Checkpointing = bool | Literal["auto"]
"""Which blocks compute their activations again in the backward pass: all, none, or as many as memory asks for."""

_DTYPES: dict[Dtype, torch.dtype | Literal["auto"]] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}

TOLD = "dlmrl_kit.json"
"""File beside the weights with what the caller had to say of a checkpoint, and how the kit decoded from it."""


class Told(TypedDict, total=False):
    """What the caller had to say of a checkpoint; saved beside the weights, and read when they are loaded again."""

    mask_id: int | None
    shift_logits: bool | None
    forbidden_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    chat_template: bool | None
    block_size: int | None


class PolicyArguments(TypedDict, total=False):
    """The keyword arguments of ``TransformersPolicy``."""

    mask_id: int | None
    shift_logits: bool | None
    forbidden_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    chat_template: bool | None
    listed_ends: tuple[int, ...]
    layout: Layout | None
    name: str


class ModelArguments(TypedDict, total=False):
    """What ``from_pretrained`` of a transformers model is given."""

    dtype: torch.dtype | Literal["auto"]
    attn_implementation: str
    quantization_config: BitsAndBytesConfig
    device_map: dict[str, str]
    key_mapping: dict[str, str]


@dataclass(frozen=True)
class LoadOptions:
    """Options of every family.

    Args:
        mask_id: id of the mask token, where the checkpoint does not say.
        shift_logits: True where the logits at position i - 1 predict token i; None leaves it to the checkpoint.
        forbidden_ids: ids that are never committed, besides those that the checkpoint rules out.
        eos_ids: ids that end a text, besides those that the checkpoint says.
        chat_template: whether plain prompts are formatted with the tokenizer's chat template; None leaves it to what
            was saved with the checkpoint, else they are not. Conversations always are.
        block_size: positions of a block of a block-causal model, where the checkpoint does not say.
        dtype: of the weights; ``auto`` keeps the checkpoint's.
        attention: implementation in transformers; ``auto`` leaves the choice to it.
        quantisation: ``nf4`` loads the weights in 4 bits through bitsandbytes (arXiv 2305.14314); needs a GPU.

    Raises:
        UserError: a value that is none of the above, or an implementation that is not installed.
    """

    mask_id: int | None = None
    shift_logits: bool | None = None
    forbidden_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()
    chat_template: bool | None = None
    block_size: int | None = None
    dtype: Dtype = "auto"
    attention: Attention = "auto"
    quantisation: Quantisation = "none"

    def __post_init__(self) -> None:
        _check_one_of("dtype", self.dtype, get_args(Dtype))
        _check_one_of("attention", self.attention, get_args(Attention))
        _check_one_of("quantisation", self.quantisation, get_args(Quantisation))
        if self.attention == "flash_attention_2":
            _check_flash_attention()
        if self.quantisation != "none":
            _check_quantisation(self.quantisation)

    def over(self, told: Told) -> LoadOptions:
        """Fills the options that are None with those that were saved with the checkpoint.

        Forbidden ids and ends of text are those of both.
        """
        return replace(
            self,
            mask_id=told.get("mask_id") if self.mask_id is None else self.mask_id,
            shift_logits=told.get("shift_logits") if self.shift_logits is None else self.shift_logits,
            forbidden_ids=tuple(sorted({*self.forbidden_ids, *told.get("forbidden_ids", ())})),
            eos_ids=tuple(dict.fromkeys([*self.eos_ids, *told.get("eos_ids", ())])),
            chat_template=told.get("chat_template") if self.chat_template is None else self.chat_template,
            block_size=told.get("block_size") if self.block_size is None else self.block_size,
        )

    def model_arguments(self) -> ModelArguments:
        """Returns what ``from_pretrained`` of a model is given for ``dtype``, ``attention`` and ``quantisation``."""
        arguments: ModelArguments = {"dtype": _DTYPES[self.dtype]}
        if self.attention != "auto":
            arguments["attn_implementation"] = self.attention
        if self.quantisation == "nf4":
            from transformers import BitsAndBytesConfig

            # The settings of QLoRA: normal-float weights, their scales quantised again, products in bfloat16.
            arguments["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
            arguments["device_map"] = {"": "cuda"}
        return arguments

    def policy_arguments(self) -> PolicyArguments:
        """Returns what the constructor of ``TransformersPolicy`` is given."""
        return {
            "mask_id": self.mask_id,
            "shift_logits": self.shift_logits,
            "forbidden_ids": self.forbidden_ids,
            "eos_ids": self.eos_ids,
            "chat_template": self.chat_template,
        }


def _check_one_of(name: str, value: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise UserError(f"{name} must be one of {', '.join(values)}, got {value!r}")


def _check_flash_attention() -> None:
    from transformers.utils import is_flash_attn_2_available  # type: ignore[attr-defined]  # re-exported, unlisted

    if not torch.cuda.is_available():
        raise UserError("attention = 'flash_attention_2' needs a GPU, and there is none here; take 'sdpa'")
    if not is_flash_attn_2_available():
        raise UserError("attention = 'flash_attention_2' needs the package flash-attn; install it, or take 'sdpa'")


def _check_quantisation(name: str) -> None:
    from transformers.utils import is_bitsandbytes_available  # type: ignore[attr-defined]  # re-exported, unlisted

    if not torch.cuda.is_available():
        raise UserError(f"quantisation = {name!r} needs a GPU, and there is none here; leave it at 'none'")
    if not is_bitsandbytes_available():
        raise UserError(f"quantisation = {name!r} needs the package bitsandbytes; install it, or leave it at 'none'")


def read_told(folder: str) -> Told:
    """Returns what ``write_told`` wrote beside a checkpoint; empty where it did not.

    Raises:
        UserError: the file cannot be read, or has values of other types.
    """
    path = Path(folder) / TOLD
    told = read_json(path).get("policy", {}) if path.is_file() else {}
    if not isinstance(told, dict):
        raise UserError(f"{path} cannot be used: 'policy' is no object: {AGAIN}")
    for name, value in told.items():
        if name in _TOLD_FORMS and not _TOLD_FORMS[name](value):
            raise UserError(
                f"{path} cannot be used: {name} = {clipped(repr(value))} is not what the kit writes: {AGAIN}"
            )
    found: Told = {**told}  # type: ignore[typeddict-item]  # what the kit wrote
    return found


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(_is_id(item) for item in value)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


_TOLD_FORMS: dict[str, Callable[[object], bool]] = {
    "mask_id": _is_id,
    "shift_logits": _is_flag,
    "forbidden_ids": _are_ids,
    "eos_ids": _are_ids,
    "chat_template": _is_flag,
    "block_size": _is_id,
}


def write_told(folder: Path, told: Told, decoding: Mapping[str, object] | None = None) -> None:
    """Writes beside a checkpoint what its caller had to say, so that it loads without being told again.

    Args:
        folder: of the checkpoint.
        told: options of a policy; those that say nothing are left out.
        decoding: how completions were generated from it, for readers.
    """
    content: dict[str, object] = {}
    if spoken := {name: value for name, value in told.items() if value not in (None, ())}:
        content["policy"] = spoken
    if decoding:
        content["decoding"] = decoding
    if content:
        (folder / TOLD).write_text(json.dumps(content, indent=2), encoding="utf-8")
