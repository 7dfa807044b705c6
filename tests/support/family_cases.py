"""The kit's families, as ``dlmrl_kit.testing.families`` takes them."""

from __future__ import annotations

from functools import partial

from support.llada2 import BLOCK, llada2_checkpoint, sdar_moe_checkpoint

from dlmrl_kit.policies.families.llada2 import LLaDA2
from dlmrl_kit.policies.families.sdar_moe import SDARMoE
from dlmrl_kit.testing.family_case import FamilyCase

VARIANT = {"num_hidden_layers": 3, "first_k_dense_replace": 2, "use_qkv_bias": True, "num_shared_experts": 2}

CASES = [
    FamilyCase(
        "llada2",
        LLaDA2,
        partial(llada2_checkpoint, block=BLOCK),
        mask_id=21,
        eos_ids=(18,),
        options={"block_size": BLOCK},
        block_size=BLOCK,
        tied=partial(llada2_checkpoint, block=BLOCK, tie_word_embeddings=True),
    ),
    FamilyCase(
        "llada2 variant",
        LLaDA2,
        partial(
            llada2_checkpoint, block=BLOCK, num_experts_per_tok=1, use_qk_norm=False, n_group=1, topk_group=1, **VARIANT
        ),
        mask_id=21,
        eos_ids=(18,),
        options={"block_size": BLOCK},
        block_size=BLOCK,
    ),
    FamilyCase(
        "sdar_moe",
        SDARMoE,
        sdar_moe_checkpoint,
        mask_id=261,
        eos_ids=(258, 256),
        options={"block_size": BLOCK},
        block_size=BLOCK,
        tied=partial(sdar_moe_checkpoint, tie_word_embeddings=True),
    ),
]
