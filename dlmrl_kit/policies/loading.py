"""Loading policies. A checkpoint's ``config.json`` decides which family reads it, never the name of its path."""

from __future__ import annotations

from pathlib import Path

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.adapter_files import holds_adapter, merge_adapter
from dlmrl_kit.policies.adapter_settings import base_of, read_settings
from dlmrl_kit.policies.added_families import added_families
from dlmrl_kit.policies.checkpoint_files import (
    ConfigJson,
    architectures,
    check_unchanged,
    checkpoint_folder,
    read_config,
)
from dlmrl_kit.policies.families.a2d import A2D
from dlmrl_kit.policies.families.base import Family
from dlmrl_kit.policies.families.bidirectional import Bidirectional
from dlmrl_kit.policies.families.block_decoders import FastDLLM, StableDiffCoder
from dlmrl_kit.policies.families.diffusion_gemma import DiffusionGemma
from dlmrl_kit.policies.families.dream import Dream
from dlmrl_kit.policies.families.llada import LLaDA
from dlmrl_kit.policies.families.llada2 import LLaDA2
from dlmrl_kit.policies.families.llada_moe import LLaDAMoE
from dlmrl_kit.policies.families.masked_lm import MaskedLM
from dlmrl_kit.policies.families.refused import reason_against
from dlmrl_kit.policies.families.sdar import SDAR
from dlmrl_kit.policies.families.sdar_moe import SDARMoE
from dlmrl_kit.policies.options import Attention, Dtype, LoadOptions, Quantisation, read_told
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

FAMILIES: tuple[Family, ...] = (
    *(
        LLaDAMoE(),
        LLaDA2(),
        LLaDA(),
        Dream(),
        SDAR(),
        SDARMoE(),
        FastDLLM(),
        StableDiffCoder(),
        DiffusionGemma(),
        A2D(),
    ),
    *(Bidirectional(), MaskedLM()),
)
"""The families in the order in which they are asked: the first that recognises a checkpoint loads it."""


def family_of(config: ConfigJson) -> Family:
    """Returns the first family that recognises a ``config.json``.

    Raises:
        UserError: none does, or it is known not to be supported.
    """
    reason = None if any(family.recognises(config) for family in added_families()) else reason_against(config)
    if reason is not None:
        raise UserError(f"{reason}: it is not supported (docs/real-models.md)")
    for family in (*added_families(), *FAMILIES):
        if family.recognises(config):
            return family
    classes = ", ".join(architectures(config) or ["no architecture named"])
    raise UserError(
        f"no denoiser for model type {config.get('model_type')!r} ({classes}); the kit knows these families: "
        + "; ".join(family.supported for family in (*added_families(), *FAMILIES))
    )


def load_policy(
    path: str | Path,
    *,
    mask_id: int | None = None,
    shift_logits: bool | None = None,
    forbidden_ids: tuple[int, ...] = (),
    eos_ids: tuple[int, ...] = (),
    chat_template: bool | None = None,
    block_size: int | None = None,
    dtype: Dtype = "auto",
    attention: Attention = "auto",
    quantisation: Quantisation = "none",
) -> TransformersPolicy:
    """Loads a denoiser from a checkpoint, onto the CPU and in eval mode.

    Its ``config.json`` decides the family (``FAMILIES``). No code of the checkpoint is run. What was said of the
    checkpoint when it was saved (``dlmrl_kit.json``) counts where the arguments say nothing.

    Args:
        path: a folder in transformers' layout or in its family's own, a peft adapter's folder (the adapter is merged
            into its base), ``shipped:NAME`` for a denoiser inside the package, or an id of the Hugging Face hub, which
            is downloaded.
        mask_id: id of the mask token, where the checkpoint does not say.
        shift_logits: whether the logits at position i - 1 predict token i; None: as the checkpoint says.
        forbidden_ids: ids that are never committed, besides those that the checkpoint rules out.
        eos_ids: ids that end a text, besides those that its tokenizer, chat template and configuration say.
        chat_template: whether plain prompts are formatted with the tokenizer's chat template, as conversations always
            are; None: as was saved with the checkpoint, else no.
        block_size: positions of a block of a block-causal model, where the checkpoint does not say.
        dtype: of the weights: ``auto`` (the checkpoint's), ``float32`` or ``bfloat16``.
        attention: implementation in transformers: ``auto`` (its choice), ``sdpa``, ``eager``, ``flash_attention_2`` or
            ``flex_attention``.
        quantisation: ``nf4`` loads the weights in 4 bits, onto a GPU, through bitsandbytes (arXiv 2305.14314).

    Raises:
        UserError: no such checkpoint, a family the kit does not know, or an option that cannot be had here.
    """
    options = LoadOptions(
        mask_id,
        shift_logits,
        tuple(forbidden_ids),
        tuple(eos_ids),
        chat_template,
        block_size,
        dtype,
        attention,
        quantisation,
    )
    folder = checkpoint_folder(path)
    try:
        check_unchanged(folder)
        return _load_merged(folder, options) if holds_adapter(folder) else _load_folder(folder, options, str(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load a denoiser from {path}: {error}") from error


def _load_folder(folder: str, options: LoadOptions, name: str) -> TransformersPolicy:
    """Loads a checkpoint folder; ``name`` is what the user called it."""
    config = read_config(folder)
    return family_of(config).load(folder, config, options.over(read_told(folder)), name)


def _load_merged(folder: str, options: LoadOptions) -> TransformersPolicy:
    """Loads the base of a saved adapter, and merges the adapter into it."""
    if options.quantisation != "none":
        raise UserError("an adapter cannot be merged into weights in 4 bits: load the merged model, or the base")
    base = base_of(folder)
    read_settings(folder)  # refuses what it does not understand before the base, which is larger, is fetched and read
    policy = _load_folder(checkpoint_folder(base), options.over(read_told(folder)), folder)
    merge_adapter(policy, folder)
    return policy
