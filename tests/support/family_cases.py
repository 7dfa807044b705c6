"""The kit's families, as ``dlmrl_kit.testing.families`` takes them."""

from __future__ import annotations

import json
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
from dlmrl_kit.policies.families.a2d import A2D
from dlmrl_kit.policies.families.bidirectional import Bidirectional
from dlmrl_kit.policies.families.block_decoders import FastDLLM, StableDiffCoder
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


def released(kind: str, config: dict[str, Any], mask_token: str, reference: Any) -> Callable[..., Logits]:
    """A decoder of transformers under a ``config.json`` of its own; ``reference`` computes logits of one row."""

    def write(folder: Path, **changes: Any) -> Logits:
        logits = native(kind, **changes)(folder)
        model = logits.args[0]
        own = {name: value for name, value in model.config.to_dict().items() if name in RELEASED}
        own |= {"rope_theta": 10000.0, "rope_scaling": None, **config}
        model.config.rope_parameters["rope_theta"] = 10000.0
        (folder / "config.json").write_text(json.dumps(own, indent=2))
        (folder / "modeling_own.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
        tokenizer = fast_tokenizer(["<|end|>", mask_token], eos_token="<|end|>", pad_token="<|end|>")
        tokenizer.save_pretrained(folder)
        return partial(reference, model)

    return write


RELEASED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "hidden_act", "max_position_embeddings"),
)


def in_blocks(model: Any, ids: Tensor) -> Tensor:
    return block_causal_logits(model, ids)


def in_shifted_blocks(model: Any, ids: Tensor) -> Tensor:
    found = block_causal_logits(model, ids)
    return torch.cat([found[:1], found[:-1]])


FAST = {"model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": BLOCK}
FAST |= {"auto_map": {"AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM"}}
DIFFCODER = {"model_type": "llama", "architectures": ["StableDiffcoderForCausalLM"], "attention_bias": False}
DIFFCODER |= {"auto_map": {"AutoModelForCausalLM": "modeling_stable_diffcoder.StableDiffcoderForCausalLM"}}
A2D_QWEN3 = {"model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"], "mask_token_id": 18}
fast_dllm = released("qwen2", FAST, "|<MASK>|", in_shifted_blocks)
diffcoder = released("llama", DIFFCODER, "<[MASK_TOKEN]>", in_blocks)
a2d = released("qwen3", A2D_QWEN3, "<|mask|>", both_ways)
MMADA = {"model_type": "mmada", "architectures": ["MMadaModelLM"], "codebook_size": 4, "llm_vocab_size": 24}


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
    FamilyCase("fast_dllm", FastDLLM, fast_dllm, 18, (17,), block_size=BLOCK),
    FamilyCase("stable_diffcoder", StableDiffCoder, diffcoder, 18, (17,), block_size=BLOCK),
    FamilyCase("a2d_qwen3", A2D, a2d, 18, (17,), tied=partial(a2d, tie_word_embeddings=True)),
    FamilyCase("mmada", LLaDA, partial(llada_checkpoint, **MMADA), 22, (18, 21)),
    FamilyCase("diffusion_gemma", DiffusionGemma, diffusion_gemma, None, (21, 18), canvas=CANVAS),
    *(
        FamilyCase(
            kind, Bidirectional, native(kind), 18, (17,), tied=native(kind, tie_word_embeddings=True), own_layout=False
        )
        for kind in ("llama", "qwen2", "qwen3", "qwen3_moe")
    ),
    *(FamilyCase(kind, MaskedLM, masked(kind), 20, (19,), own_layout=False) for kind in MASKED),
]
