"""Tiny random checkpoints in the layouts that their families publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from support.llada import Llada
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from dlmrl_kit.policies.checkpoint_files import quiet

CHARACTERS = "0123456789_:abc \n"
LLADA_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def fast_tokenizer(specials: list[str], characters: str = CHARACTERS, **roles: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters; ``specials`` come last, as in the published vocabularies."""
    vocabulary = {token: index for index, token in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="_"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **roles)


def llada_config(**changes: Any) -> dict[str, Any]:
    """``config.json`` of LLaDA-8B, tiny."""
    return {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
            "AutoModel": "modeling_llada.LLaDAModelLM",
        },
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": 32,
        "embedding_dropout": 0.0,
        "embedding_size": 32,
        "eos_token_id": 18,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": 22,
        "max_sequence_length": 4096,
        "mlp_hidden_size": 48,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": 4,
        "n_kv_heads": 4,
        "n_layers": 2,
        "pad_token_id": 18,
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "transformers_version": "4.46.3",
        "use_cache": False,
        "vocab_size": 32,
        "weight_tying": False,
        **changes,
    }


def llada_checkpoint(folder: Path, seed: int = 0, shard: str = "20KB", **changes: Any) -> Llada:
    """Writes a tiny LLaDA in several shards with an index; returns the model in plain torch."""
    folder.mkdir(parents=True, exist_ok=True)
    config = llada_config(**changes)
    torch.manual_seed(seed)
    model = Llada(config)
    spread(model)
    save_torch_state_dict(model.state_dict(), folder, max_shard_size=shard, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "modeling_llada.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    (folder / "configuration_llada.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 18, "transformers_version": "4.46.3"}))
    names = ("<|startoftext|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = fast_tokenizer([*names, "<|mdm_mask|>"], bos_token=names[0], eos_token=names[1], pad_token=names[1])
    tokenizer.chat_template = LLADA_TEMPLATE
    tokenizer.save_pretrained(folder)
    return model.eval()


def llada_moe_config(**changes: Any) -> dict[str, Any]:
    """``config.json`` of LLaDA-MoE-7B-A1B, tiny; like the published one it names no mask."""
    return {
        "architectures": ["LLaDAMoEModelLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_lladamoe.LLaDAConfig",
            "AutoModel": "modeling_lladamoe.LLaDAMoEModelLM",
            "AutoModelForCausalLM": "modeling_lladamoe.LLaDAMoEModelLM",
        },
        "clip_qkv": None,
        "dense_intermediate_size": 40,
        "eos_token_id": 17,
        "expert_intermediate_size": 24,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "max_position_embeddings": 8192,
        "model_type": "llada",
        "moe_layer_freq": [1, 0],
        "moe_router_enable_expert_bias": False,
        "moe_router_score_function": "softmax",
        "norm_topk_prob": None,
        "num_attention_heads": 4,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 17,
        "partial_rotary_factor": 1,
        "qk_layernorm": True,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 50000,
        "routed_scaling_factor": 1,
        "shared_expert_intermediate_size": None,
        "tie_word_embeddings": False,
        "vocab_size": 24,
        **changes,
    }


def llada_moe_checkpoint(folder: Path, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """Writes a tiny LLaDA-MoE; returns its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = llada_moe_config(**changes)
    generator = torch.Generator().manual_seed(seed)
    width, head = config["hidden_size"], config["hidden_size"] // config["num_attention_heads"]
    kv_width = head * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (config["vocab_size"], width),
        "model.norm": (width,),
        "lm_head": (config["vocab_size"], width),
    }
    for layer, sparse in enumerate(config["moe_layer_freq"]):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.input_layernorm": (width,), f"{block}.post_attention_layernorm": (width,)}
        shapes |= {f"{block}.self_attn.{name}_proj": (kv_width, width) for name in "kv"}
        shapes |= {f"{block}.self_attn.{name}_proj": (width, width) for name in "qo"}
        shapes |= {f"{block}.self_attn.{name}_norm": (head,) for name in "qk"}
        inner = config["expert_intermediate_size" if sparse else "dense_intermediate_size"]
        for mlp in [f"{block}.mlp.experts.{e}" for e in range(config["num_experts"])] if sparse else [f"{block}.mlp"]:
            shapes |= {f"{mlp}.{name}_proj": (inner, width) for name in ("gate", "up")}
            shapes[f"{mlp}.down_proj"] = (width, inner)
        if sparse:
            shapes[f"{block}.mlp.gate"] = (config["num_experts"], width)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        state[f"{name}.weight"] = 1 + 0.2 * noise if len(shape) == 1 else noise * 1.2 * shape[-1] ** -0.5
    save_torch_state_dict(state, folder, max_shard_size="20KB", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer = fast_tokenizer(["<|endoftext|>", "<|mask|>"], eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    return state


DREAM_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def dream_config(**changes: Any) -> dict[str, Any]:
    """``config.json`` of Dream 7B, tiny."""
    return {
        "architectures": ["DreamModel"],
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
        "bos_token_id": 260,
        "eos_token_id": 256,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "mask_token_id": 261,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "model_type": "Dream",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 256,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 264,
        **changes,
    }


def dream_checkpoint(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Writes a tiny Dream with its own kind of tokenizer files; returns a ``Qwen2ForCausalLM`` with its weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config = dream_config(**changes)
    torch.manual_seed(seed)
    sizes = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings"),
    )
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    model = Qwen2ForCausalLM(Qwen2Config(**{name: config[name] for name in sizes}, rope_parameters=rope))
    spread(model)
    model.to(dtype)
    save_torch_state_dict(stored(model), folder, max_shard_size="40KB", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenization_dream.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    (folder / "generation_config.json").write_text(json.dumps({"mask_token_id": 261, "alg": "entropy", "steps": 512}))
    qwen_tokenizer(folder, "DreamTokenizer")
    return model.eval()


def qwen_tokenizer(folder: Path, name: str) -> None:
    """``vocab.json``, ``merges.txt`` and ``tokenizer_config.json`` of a byte-level vocabulary without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>", "<|beginoftext|>", "<|mask|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(alphabet)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    about = {
        "added_tokens_decoder": {
            str(len(alphabet) + index): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for index, token in enumerate(specials)
        },
        "additional_special_tokens": specials[1:],
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "bos_token": "<|beginoftext|>",
        "chat_template": DREAM_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "mask_token": "<|mask|>",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": name,
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2))


MASKED = ("bert", "roberta", "distilbert", "modernbert", "electra", "deberta-v2", "albert", "mpnet", "eurobert")


def masked_checkpoint(folder: Path, kind: str, seed: int = 0, **changes: Any) -> Any:
    """Writes a tiny masked language model; returns transformers' model."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    names = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    roles = dict(zip(("pad_token", "cls_token", "sep_token", "mask_token"), names, strict=True))
    tokenizer = fast_tokenizer(names, **roles)
    ids = {name: tokenizer.convert_tokens_to_ids(roles[name]) for name in roles}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "distilbert":
        sizes = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
    special: dict[str, Any] = {
        "deberta-v2": {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "max_relative_positions": 16,
        },
        "albert": {"embedding_size": 16, "num_hidden_groups": 1},
        "electra": {"embedding_size": 16},
        "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2, "num_hidden_layers": 3},
        "eurobert": {"num_key_value_heads": 2, "mask_token_id": ids["mask_token"]},
    }.get(kind, {})
    settings = {"vocab_size": len(tokenizer) + 2, "initializer_range": 0.3, "max_position_embeddings": 64}
    tokens = {name.replace("token", "token_id"): index for name, index in ids.items() if name != "mask_token"}
    tokens |= {"bos_token_id": ids["cls_token"], "eos_token_id": ids["sep_token"]}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**settings, **sizes, **tokens, **special, **changes})
    model = AutoModelForMaskedLM.from_config(config)
    spread(model)
    with quiet():
        model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def stored(model: Any) -> dict[str, Tensor]:
    """What a file holds of a model: tied weights once, as the embeddings."""
    tied = model.config.tie_word_embeddings
    return {name: tensor for name, tensor in model.state_dict().items() if not tied or name != "lm_head.weight"}


def spread(model: nn.Module) -> None:
    """Makes logits far from uniform and every bias count."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=1.2 * parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
