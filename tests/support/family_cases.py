"""The kit's families, as ``dlmrl_kit.testing.families`` takes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from support.block_checkpoints import BLOCK, CANVAS, block_causal_logits, diffusion_gemma_checkpoint, sdar_checkpoint
from support.checkpoints import (
    MASKED,
    dream_checkpoint,
    fast_tokenizer,
    llada_checkpoint,
    llada_moe_checkpoint,
    llada_moe_config,
    masked_checkpoint,
    spread,
)
from support.llada import llada_moe_logits
from support.llada2 import llada2_checkpoint, sdar_moe_checkpoint
from torch import Tensor

from dlmrl_kit.policies.checkpoint_files import quiet
from dlmrl_kit.policies.families.bidirectional import Bidirectional
from dlmrl_kit.policies.families.diffusion_gemma import DiffusionGemma
from dlmrl_kit.policies.families.dream import Dream
from dlmrl_kit.policies.families.llada import LLaDA
from dlmrl_kit.policies.families.llada2 import LLaDA2
from dlmrl_kit.policies.families.llada_moe import LLaDAMoE
from dlmrl_kit.policies.families.masked_lm import MaskedLM
from dlmrl_kit.policies.families.sdar import SDAR
from dlmrl_kit.policies.families.sdar_moe import SDARMoE
from dlmrl_kit.testing.family_case import FamilyCase, Logits, Write

BLOCKS: dict[str, Any] = {"options": {"block_size": BLOCK}, "block_size": BLOCK}


def llada_moe(folder: Path) -> Logits:
    state = llada_moe_checkpoint(folder)
    return lambda ids: llada_moe_logits(state, llada_moe_config(), ids)


def both_ways(model: Any, ids: Tensor) -> Tensor:
    """Logits [S, V] under an explicit mask that lets every position see every other."""
    everything = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
    position = torch.arange(len(ids))[None]
    found: Tensor = model(input_ids=ids[None], attention_mask=everything, position_ids=position).logits[0]
    return found


def dream(folder: Path, **changes: Any) -> Logits:
    """Qwen2's blocks both ways; then the shift."""
    model = dream_checkpoint(folder, **changes)

    def logits(ids: Tensor) -> Tensor:
        found = both_ways(model, ids)
        return torch.cat([found[:1], found[:-1]])

    return logits


def sdar(folder: Path, **changes: Any) -> Logits:
    return partial(block_causal_logits, sdar_checkpoint(folder, **changes))


def masked(kind: str) -> Write:
    def write(folder: Path) -> Logits:
        model = masked_checkpoint(folder, kind)
        return lambda ids: model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).logits[0]

    return write


def native(kind: str, **changes: Any) -> Write:
    """A causal decoder as transformers saves it, which attends both ways once it is loaded."""

    def write(folder: Path) -> Logits:
        from transformers import AutoConfig, AutoModelForCausalLM

        tokenizer = fast_tokenizer(["<|end|>", "<|mask|>"], eos_token="<|end|>", mask_token="<|mask|>")
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        more = experts if kind == "qwen3_moe" else {}
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer) + 2, **sizes, **heads, **more, **changes)
        config.update(dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")))
        model = AutoModelForCausalLM.from_config(config).eval()
        spread(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 3:
                    parameter.normal_(std=1.2 * parameter.shape[-1] ** -0.5)
        with quiet():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return partial(both_ways, model)

    return write


def diffusion_gemma(folder: Path) -> Logits:
    """Transformers' own forward on the last two canvases; nothing is predicted before them."""
    model = diffusion_gemma_checkpoint(folder)

    def logits(ids: Tensor) -> Tensor:
        found = torch.full((len(ids), model.config.get_text_config().vocab_size), torch.nan)
        for start in (len(ids) - 2 * CANVAS, len(ids) - CANVAS):
            given = {"input_ids": ids[None, :start], "decoder_input_ids": ids[None, start : start + CANVAS]}
            found[start : start + CANVAS] = model(**given).logits[0]
        return found

    return logits


def llada2(**changes: Any) -> Callable[[Path], Logits]:
    return partial(llada2_checkpoint, block=BLOCK, **changes)


OTHER_EXPERTS = {"num_hidden_layers": 3, "first_k_dense_replace": 2, "num_shared_experts": 2, "num_experts_per_tok": 1}
OTHER_ATTENTION = {"use_qkv_bias": True, "use_qk_norm": False, "n_group": 1, "topk_group": 1}

CASES = [
    FamilyCase("llada", LLaDA, llada_checkpoint, 22, (18, 21), tied=partial(llada_checkpoint, weight_tying=True)),
    FamilyCase("llada grouped", LLaDA, partial(llada_checkpoint, n_kv_heads=2), 22, (18, 21)),
    FamilyCase("llada_moe", LLaDAMoE, llada_moe, 18, (17,)),
    FamilyCase("llada2", LLaDA2, llada2(), 21, (18,), tied=llada2(tie_word_embeddings=True), **BLOCKS),
    FamilyCase("llada2 variant", LLaDA2, llada2(**OTHER_EXPERTS, **OTHER_ATTENTION), 21, (18,), **BLOCKS),
    FamilyCase("dream", Dream, dream, 261, (256, 258), tied=partial(dream, tie_word_embeddings=True)),
    FamilyCase("sdar", SDAR, sdar, 261, (258, 256), tied=partial(sdar, tie_word_embeddings=True), block_size=BLOCK),
    FamilyCase(
        "sdar_moe",
        SDARMoE,
        sdar_moe_checkpoint,
        261,
        (258, 256),
        tied=partial(sdar_moe_checkpoint, tie_word_embeddings=True),
        **BLOCKS,
    ),
    FamilyCase("diffusion_gemma", DiffusionGemma, diffusion_gemma, None, (21, 18), canvas=CANVAS),
    *(
        FamilyCase(
            kind, Bidirectional, native(kind), 18, (17,), tied=native(kind, tie_word_embeddings=True), own_layout=False
        )
        for kind in ("llama", "qwen2", "qwen3", "qwen3_moe")
    ),
    *(FamilyCase(kind, MaskedLM, masked(kind), 20, (19,), own_layout=False) for kind in MASKED),
]
