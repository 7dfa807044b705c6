"""LLaDA2 and SDAR's mixture of experts in plain torch, one row at a time, with the published names of tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from support.checkpoints import fast_tokenizer, qwen_tokenizer
from support.llada import RMSNorm
from torch import Tensor, nn
from torch.nn import functional

BLOCK = 4


def published_llada2(**changes: Any) -> dict[str, Any]:
    """``config.json`` of LLaDA2.0-mini, tiny; like the published one it names no mask, end or block size."""
    config = {
        "architectures": ["LLaDA2MoeModelLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig",
            "AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM",
        },
        "dtype": "bfloat16",
        "embedding_dropout": 0.0,
        "first_k_dense_replace": 1,
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 40,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "model_type": "llada2_moe",
        "moe_intermediate_size": 16,
        "moe_router_enable_expert_bias": True,
        "n_group": 4,
        "norm_head": False,
        "norm_softmax": False,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_shared_experts": 1,
        "output_dropout": 0.0,
        "output_router_logits": False,
        "pad_token_id": 18,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 600000,
        "rotary_dim": 4,
        "routed_scaling_factor": 2.5,
        "router_dtype": "fp32",
        "score_function": "sigmoid",
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "topk_group": 2,
        "transformers_version": "4.57.1",
        "use_bias": False,
        "use_cache": False,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_rmsnorm": True,
        "use_sliding_window": False,
        "using_split_qkv_in_self_attention": False,
        "vocab_size": 24,
        **changes,
    }
    return {name: value for name, value in config.items() if value != "absent"}


def published_sdar_moe(**changes: Any) -> dict[str, Any]:
    """``config.json`` of SDAR-30B-A3B, tiny; like the published one it names no mask and no block size."""
    config = {
        "architectures": ["SDARMoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_sdar_moe.SDARMoeConfig",
            "AutoModelForCausalLM": "modeling_sdar_moe.SDARMoeForCausalLM",
        },
        "bos_token_id": 256,
        "decoder_sparse_step": 1,
        "eos_token_id": 256,
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 40,
        "max_position_embeddings": 32768,
        "max_window_layers": 2,
        "mlp_only_layers": [],
        "model_type": "sdar_moe",
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.4",
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": 264,
        **changes,
    }
    return {name: value for name, value in config.items() if value != "absent"}


def rotated(x: Tensor, theta: float, size: int) -> Tensor:
    """Rotary positions 0, 1, ... on the first ``size`` numbers of each head of [H, S, D]; the rest stays."""
    angle = torch.arange(x.shape[1])[:, None] / theta ** (torch.arange(0, size, 2) / size)
    first, second, rest = x[..., : size // 2], x[..., size // 2 : size], x[..., size:]
    turned = (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin(), rest)
    return torch.cat(turned, dim=-1)


def mixed(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Attention of [H, S, D] to [G, S, D] under a mask bool [S, S]; [S, H * D]."""
    k, v = (x.repeat_interleave(len(q) // len(k), dim=0) for x in (k, v))
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    def __init__(self, config: dict[str, Any], biased: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config["num_experts"], config["hidden_size"]))
        if biased:
            self.register_buffer("expert_bias", 0.1 * torch.randn(config["num_experts"]))

    def sigmoid_choice(self, x: Tensor, config: dict[str, Any]) -> dict[int, Tensor]:
        """LLaDA2: experts of the best groups by score plus bias; their weights are the scores without it."""
        scores = (self.weight.float() @ x.float()).sigmoid()
        biased = scores + self.expert_bias
        groups = biased.view(config["n_group"], -1)
        best = groups.sort(descending=True).values[:, :2].sum(-1).topk(config["topk_group"]).indices.tolist()
        size = groups.shape[1]
        able = [group * size + i for group in best for i in range(size)]
        chosen = sorted(able, key=lambda e: -float(biased[e]))[: config["num_experts_per_tok"]]
        total = sum(scores[e] for e in chosen) if len(chosen) > 1 else 1
        return {e: config["routed_scaling_factor"] * scores[e] / total for e in chosen}

    def softmax_choice(self, x: Tensor, config: dict[str, Any]) -> dict[int, Tensor]:
        """SDAR: the most probable experts, with their probabilities, which sum to one if the configuration says so."""
        probabilities = (self.weight.float() @ x.float()).softmax(-1)
        chosen = probabilities.topk(config["num_experts_per_tok"]).indices.tolist()
        total = sum(probabilities[e] for e in chosen) if config["norm_topk_prob"] else 1
        return {e: probabilities[e] / total for e in chosen}


class Experts(nn.Module):
    def __init__(self, config: dict[str, Any], shared: int) -> None:
        super().__init__()
        width, inner = config["hidden_size"], config["moe_intermediate_size"]
        self.config = config
        self.experts = nn.ModuleList(Mlp(width, inner) for _ in range(config["num_experts"]))
        self.gate = Gate(config, biased=shared > 0)
        if shared:
            self.shared_experts = Mlp(width, inner * shared)

    def forward(self, x: Tensor) -> Tensor:
        choice = self.gate.sigmoid_choice if hasattr(self, "shared_experts") else self.gate.softmax_choice
        rows = [sum(weight * self.experts[e](row) for e, weight in choice(row, self.config).items()) for row in x]
        out = torch.stack(rows)
        return out + self.shared_experts(x) if hasattr(self, "shared_experts") else out


class FusedAttention(nn.Module):
    """LLaDA2's: one projection for queries, keys and values."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config, size = config, config["head_dim"]
        heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
        self.query_key_value = nn.Linear(
            config["hidden_size"], (heads + 2 * groups) * size, bias=config["use_qkv_bias"]
        )
        self.dense = nn.Linear(heads * size, config["hidden_size"], bias=False)
        if config["use_qk_norm"]:
            self.query_layernorm, self.key_layernorm = (RMSNorm(size, config["rms_norm_eps"]) for _ in range(2))

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        config, size = self.config, self.config["head_dim"]
        sizes = [config["num_attention_heads"], config["num_key_value_heads"], config["num_key_value_heads"]]
        q, k, v = self.query_key_value(x).unflatten(-1, (-1, size)).split(sizes, dim=1)
        if config["use_qk_norm"]:
            q, k = self.query_layernorm(q), self.key_layernorm(k)
        turned = int(size * config["partial_rotary_factor"])
        q, k = (rotated(y.transpose(0, 1), config["rope_theta"], turned) for y in (q, k))
        return self.dense(mixed(q, k, v.transpose(0, 1), allowed))


class SplitAttention(nn.Module):
    """SDAR's: Qwen3's."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config, size, width = config, config["head_dim"], config["hidden_size"]
        heads, groups = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
        self.q_proj, self.o_proj = nn.Linear(width, heads, bias=False), nn.Linear(heads, width, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(width, groups, bias=False) for _ in range(2))
        self.q_norm, self.k_norm = (RMSNorm(size, config["rms_norm_eps"]) for _ in range(2))

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        size, theta = self.config["head_dim"], self.config["rope_theta"]
        q, k, v = (part(x).unflatten(-1, (-1, size)) for part in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (rotated(norm(y).transpose(0, 1), theta, size) for norm, y in ((self.q_norm, q), (self.k_norm, k)))
        return self.o_proj(mixed(q, k, v.transpose(0, 1), allowed))


class Layer(nn.Module):
    def __init__(self, config: dict[str, Any], sparse: bool) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm, self.post_attention_layernorm = (RMSNorm(width, eps) for _ in range(2))
        if config["model_type"] == "llada2_moe":
            self.attention: nn.Module = FusedAttention(config)
        else:
            self.self_attn: nn.Module = SplitAttention(config)
        shared = config.get("num_shared_experts", 0)
        self.mlp = Experts(config, shared) if sparse else Mlp(width, config["intermediate_size"])

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        attention = self.attention if hasattr(self, "attention") else self.self_attn
        x = x + attention(self.input_layernorm(x), allowed)
        return x + self.mlp(self.post_attention_layernorm(x))


class Published(nn.Module):
    """Either of the two, after the published description: a position sees its own block and earlier ones."""

    def __init__(self, config: dict[str, Any], block: int = BLOCK) -> None:
        super().__init__()
        self.config, self.block, width = config, block, config["hidden_size"]
        dense = config.get("first_k_dense_replace", 0)
        self.model = nn.Module()
        self.embeddings = "word_embeddings" if config["model_type"] == "llada2_moe" else "embed_tokens"
        setattr(self.model, self.embeddings, nn.Embedding(config["vocab_size"], width))
        self.model.layers = nn.ModuleList(
            Layer(config, sparse=layer >= dense and layer not in config.get("mlp_only_layers", []))
            for layer in range(config["num_hidden_layers"])
        )
        self.model.norm = RMSNorm(width, config["rms_norm_eps"])
        if not config["tie_word_embeddings"]:
            self.lm_head = nn.Linear(width, config["vocab_size"], bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [S, V] of one row, int64 [S]."""
        table = getattr(self.model, self.embeddings)
        number = torch.arange(len(ids)) // self.block
        x = table(ids)
        for layer in self.model.layers:
            x = layer(x, number[:, None] >= number)
        x = self.model.norm(x)
        return x @ table.weight.T if self.config["tie_word_embeddings"] else self.lm_head(x)


def write(
    folder: Path, config: dict[str, Any], seed: int, dtype: torch.dtype, block: int, shard: str = "20KB"
) -> Published:
    """Writes a random model in shards with an index, in a precision; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = Published(config, block)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=1.2 * parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    save_torch_state_dict(state, folder, max_shard_size=shard, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "modeling_own.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    return model.eval()


LLADA2_TEMPLATE = (
    "{% for message in messages %}{{ '<role>' + message['role'] + '</role>' + message['content'] + '<|role_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<role>assistant</role>' }}{% endif %}"
)


def llada2_checkpoint(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, block: int = 32, **changes: Any
) -> Published:
    """Writes a tiny LLaDA2; returns it in plain torch. Its end of text is 18, its mask 21."""
    model = write(folder, published_llada2(**changes), seed, dtype, block)
    names = ["<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|mask|>"]
    tokenizer = fast_tokenizer(names, bos_token=names[0], eos_token=names[1], pad_token=names[1], cls_token=names[2])
    tokenizer.chat_template = LLADA2_TEMPLATE
    tokenizer.save_pretrained(folder)
    return model


def sdar_moe_checkpoint(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, block: int = BLOCK, **changes: Any
) -> Published:
    """Writes a tiny SDAR with experts; returns it in plain torch. Its ends are 258 and 256, its mask 261."""
    model = write(folder, published_sdar_moe(**changes), seed, dtype, block)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 258], "pad_token_id": 256}))
    qwen_tokenizer(folder, "Qwen2Tokenizer")
    about = json.loads((folder / "tokenizer_config.json").read_text().replace("<|mask|>", "<|MASK|>"))
    about |= {"eos_token": "<|im_end|>", "bos_token": None, "mask_token": None}
    del about["auto_map"]
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return model
