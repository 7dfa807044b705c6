"""Tiny random SDAR and DiffusionGemma checkpoints in the files that are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from support.checkpoints import DREAM_TEMPLATE, fast_tokenizer, qwen_tokenizer, stored
from torch import Tensor

from dlmrl_kit.policies.checkpoint_files import quiet

BLOCK = 4
CANVAS = 4


def sdar_config(**changes: Any) -> dict[str, Any]:
    """``config.json`` of SDAR, tiny; the one of DiRL's release names the block size, JetLM's first ones do not."""
    config = {
        "architectures": ["SDARForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_sdar.SDARConfig",
            "AutoModel": "modeling_sdar.SDARModel",
            "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
        },
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_implementation": "flex_attention",
        "block_size": BLOCK,
        "bos_token_id": 256,
        "debug": False,
        "eos_token_id": 256,
        "ep_size": 1,
        "fuse_cross_entropy": True,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "mask_token_id": 261,
        "max_position_embeddings": 32768,
        "max_window_layers": 2,
        "micro_forward": False,
        "model_type": "sdar",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "skip_checkpoint": False,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.4",
        "use_cache": False,
        "use_deepep": False,
        "use_sliding_window": False,
        "vocab_size": 264,
        **changes,
    }
    return {name: value for name, value in config.items() if value != "absent"}


def sdar_checkpoint(folder: Path, seed: int = 0, **changes: Any) -> Any:
    """Writes a tiny SDAR; returns a ``Qwen3ForCausalLM`` of eager attention with its weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config = sdar_config(**changes)
    torch.manual_seed(seed)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    names += ("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings")
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    settings = Qwen3Config(**{name: config[name] for name in names}, rope_parameters=rope)
    settings._attn_implementation = "eager"
    model = Qwen3ForCausalLM(settings)
    spread(model)
    save_torch_state_dict(stored(model), folder, max_shard_size="40KB", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "modeling_sdar.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 258], "pad_token_id": 256}))
    qwen_tokenizer(folder, "Qwen2Tokenizer")
    about = json.loads((folder / "tokenizer_config.json").read_text().replace("<|mask|>", "<|MASK|>"))
    about |= {"eos_token": "<|im_end|>", "bos_token": None, "chat_template": DREAM_TEMPLATE}
    del about["auto_map"]
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return model.eval()


def block_causal_logits(model: Any, ids: Tensor, block_size: int = BLOCK) -> Tensor:
    """Logits [S, V] of one row: every position sees its own block and earlier ones, counted from the first token."""
    block = [position // block_size for position in range(len(ids))]
    bias = torch.tensor([[0.0 if key <= query else torch.finfo(torch.float32).min for key in block] for query in block])
    position = torch.arange(len(ids))[None]
    return model(input_ids=ids[None], attention_mask=bias[None, None], position_ids=position, use_cache=False).logits[0]


GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|turn>' + message['role'] + '\n' + message['content'] + '<turn|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)


def diffusion_gemma_checkpoint(folder: Path, seed: int = 0, canvas: int = CANVAS, **changes: Any) -> Any:
    """Writes a tiny DiffusionGemma with sliding and full attention, experts, a vision tower; returns the model."""
    from transformers import (
        DiffusionGemmaConfig,
        DiffusionGemmaForBlockDiffusion,
        DiffusionGemmaTextConfig,
        Gemma4VisionConfig,
    )

    names = ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>"]
    tokenizer = fast_tokenizer(names, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    tokenizer.chat_template = GEMMA_TEMPLATE
    pad, eos, bos, _, turn = tokenizer.convert_tokens_to_ids(names)
    sizes = {"vocab_size": len(tokenizer) + 1, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "global_head_dim": 16}
    experts = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 8}
    text = DiffusionGemmaTextConfig(
        **{**sizes, **heads, **experts, **changes},
        num_global_key_value_heads=1,
        sliding_window=6,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        use_bidirectional_attention="vision",
        pad_token_id=pad,
        eos_token_id=eos,
        bos_token_id=bos,
    )
    vision = Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        position_embedding_size=32,
    )
    torch.manual_seed(seed)
    model = DiffusionGemmaForBlockDiffusion(
        DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=canvas)
    ).eval()
    spread(model)
    model.generation_config.eos_token_id = [eos, turn]
    model.generation_config.pad_token_id = pad
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def spread(model: torch.nn.Module) -> None:
    """Makes logits far from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=1.2 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.2 * torch.randn(parameter.shape))


def padded_batch(vocab: int, lengths: tuple[int, ...], completion: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random rows with left-padded prompts of these lengths and a completion: ids int64 [B, P + L] and mask."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(vocab, (len(lengths), width + completion), generator=generator)
    mask = torch.arange(width + completion) >= width - torch.tensor(lengths)[:, None]
    return ids, mask
