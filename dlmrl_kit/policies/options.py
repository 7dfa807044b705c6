"""How a checkpoint is to be loaded: what ``load_policy`` takes besides the path."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from dlmrl_kit.core.errors import UserError

Dtype = Literal["auto", "float32", "bfloat16"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"]
Quantisation = Literal["none", "nf4"]


TOLD = "dlmrl_kit.json"
"""File beside the weights with what the caller had to say of a checkpoint, and how the kit decoded from it."""


@dataclass(frozen=True)
class LoadOptions:
    """Options of every family.

    Args:
        mask_id: id of the mask token, where the checkpoint does not say.
        shift_logits: True where the logits at position i - 1 predict token i; None leaves it to the checkpoint.
        forbidden_ids: ids that are never committed, besides those that the checkpoint rules out.
        chat_template: whether prompts are formatted with the tokenizer's chat template; None: conversations are, plain
            texts are not, unless the checkpoint says otherwise.
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
    chat_template: bool | None = None
    block_size: int | None = None
    dtype: Dtype = "auto"
    attention: Attention = "auto"
    quantisation: Quantisation = "none"

    def __post_init__(self) -> None:
        for name, values in (("dtype", Dtype), ("attention", Attention), ("quantisation", Quantisation)):
            value = getattr(self, name)
            if value not in get_args(values):
                raise UserError(f"{name} must be one of {', '.join(get_args(values))}, got {value!r}")
        check_attention(self.attention)
        check_quantisation(self.quantisation)

    def over(self, told: dict[str, Any]) -> LoadOptions:
        """These options, with what was saved with the checkpoint where they say nothing; forbidden ids are united."""
        forbidden = tuple(sorted({*self.forbidden_ids, *told.get("forbidden_ids", ())}))
        saved: dict[str, Any] = {
            name: told.get(name)
            for name in ("mask_id", "shift_logits", "chat_template", "block_size")
            if getattr(self, name) is None
        }
        return replace(self, forbidden_ids=forbidden, **saved)

    def model_arguments(self) -> dict[str, Any]:
        """What ``from_pretrained`` of a transformers model is given for ``dtype``, ``attention``, ``quantisation``."""
        arguments: dict[str, Any] = {"dtype": "auto" if self.dtype == "auto" else getattr(torch, self.dtype)}
        if self.attention != "auto":
            arguments["attn_implementation"] = self.attention
        if self.quantisation == "nf4":
            from transformers import BitsAndBytesConfig

            arguments["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
            arguments["device_map"] = {"": "cuda"}
        return arguments

    def policy_arguments(self) -> dict[str, Any]:
        """What the constructor of ``TransformersPolicy`` is given."""
        return {
            "mask_id": self.mask_id,
            "shift_logits": self.shift_logits,
            "forbidden_ids": self.forbidden_ids,
            "chat_template": self.chat_template,
        }


def check_attention(name: str) -> None:
    """Refuses an attention implementation that cannot run here.

    Raises:
        UserError: its package is not installed, or there is no GPU for it.
    """
    if name != "flash_attention_2":
        return
    from transformers.utils import is_flash_attn_2_available

    if not torch.cuda.is_available():
        raise UserError("attention = 'flash_attention_2' needs a GPU, and there is none here; take 'sdpa'")
    if not is_flash_attn_2_available():
        raise UserError("attention = 'flash_attention_2' needs the package flash-attn; install it, or take 'sdpa'")


def check_quantisation(name: str) -> None:
    """Refuses 4-bit weights where they cannot be had.

    Raises:
        UserError: no GPU, or bitsandbytes is not installed.
    """
    if name == "none":
        return
    from transformers.utils import is_bitsandbytes_available

    if not torch.cuda.is_available():
        raise UserError(f"quantisation = {name!r} needs a GPU, and there is none here; leave it at 'none'")
    if not is_bitsandbytes_available():
        raise UserError(f"quantisation = {name!r} needs the package bitsandbytes; install it, or leave it at 'none'")


def read_told(folder: str) -> dict[str, Any]:
    """What ``write_told`` wrote beside a checkpoint; empty where it did not.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(folder) / TOLD
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).get("policy", {}))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{TOLD} cannot be read: {error!r}") from error


def write_told(folder: Path, told: dict[str, Any], decoding: dict[str, Any] | None = None) -> None:
    """Writes beside a checkpoint what its caller had to say, so that it loads without being told again.

    Args:
        folder: of the checkpoint.
        told: options of a policy; those that say nothing are left out.
        decoding: how completions were generated from it, for readers.
    """
    content: dict[str, Any] = {}
    if spoken := {name: value for name, value in told.items() if value not in (None, ())}:
        content["policy"] = spoken
    if decoding:
        content["decoding"] = decoding
    if content:
        (folder / TOLD).write_text(json.dumps(content, indent=2), encoding="utf-8")
