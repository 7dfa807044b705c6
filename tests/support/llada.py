"""LLaDA and its mixture of experts in plain torch, to compare with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.2 * torch.randn(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary positions 0, 1, ... on [..., S, D]: pairs (i, i + D/2) turn by position / theta^(2i/D)."""
    length, width = x.shape[-2:]
    angle = torch.arange(length)[:, None] / theta ** (torch.arange(0, width, 2) / width)
    first, second = x[..., : width // 2], x[..., width // 2 :]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, theta: float) -> Tensor:
    """Bidirectional attention of [S, heads * D], [S, kv_heads * D], [S, kv_heads * D]."""
    q, k, v = (x.unflatten(-1, (n, -1)).transpose(0, 1) for x, n in ((q, heads), (k, kv_heads), (v, kv_heads)))
    k, v = (x.repeat_interleave(heads // kv_heads, dim=0) for x in (k, v))
    scores = rotate(q, theta) @ rotate(k, theta).mT / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


class LladaBlock(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, inner = config["d_model"], config["mlp_hidden_size"]
        kv_width = width // config["n_heads"] * config["n_kv_heads"]
        self.config = config
        self.attn_norm, self.ff_norm = (RMSNorm(width, config["rms_norm_eps"]) for _ in range(2))
        self.q_proj, self.attn_out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(width, kv_width, bias=False) for _ in range(2))
        self.ff_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.ff_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads, theta = (self.config["n_heads"], self.config["n_kv_heads"]), self.config["rope_theta"]
        y = self.attn_norm(x)
        x = x + self.attn_out(attend(self.q_proj(y), self.k_proj(y), self.v_proj(y), *heads, theta))
        y = self.ff_norm(x)
        return x + self.ff_out(functional.silu(self.ff_proj(y)) * self.up_proj(y))


class Llada(nn.Module):
    """LLaDA in plain torch, one row at a time, with the published names of tensors."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        rows = config["embedding_size"]
        self.model = nn.Module()
        self.model.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(rows, config["d_model"]),
                "blocks": nn.ModuleList(LladaBlock(config) for _ in range(config["n_layers"])),
                "ln_f": RMSNorm(config["d_model"], config["rms_norm_eps"]),
            }
        )
        if not config["weight_tying"]:
            self.model.transformer["ff_out"] = nn.Linear(config["d_model"], rows, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        parts = self.model.transformer
        x = parts["wte"](ids)
        for block in parts["blocks"]:
            x = block(x)
        x = parts["ln_f"](x)
        return parts["ff_out"](x) if "ff_out" in parts else x @ parts["wte"].weight.T


def llada_moe_logits(state: dict[str, Tensor], config: dict[str, Any], ids: Tensor) -> Tensor:
    """Logits of one row, expert by expert and token by token."""

    def norm(x: Tensor, name: str) -> Tensor:
        return state[f"{name}.weight"] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"])

    def mlp(x: Tensor, name: str) -> Tensor:
        gate, up, down = (state[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def experts(x: Tensor, name: str) -> Tensor:
        weights = (x @ state[f"{name}.gate.weight"].T).softmax(-1)
        best = weights.topk(config["num_experts_per_tok"]).indices.tolist()
        return sum((weights[e] * mlp(x, f"{name}.experts.{e}") for e in best), torch.zeros_like(x))

    heads = (config["num_attention_heads"], config["num_key_value_heads"])
    x = state["model.embed_tokens.weight"][ids]
    for layer, sparse in enumerate(config["moe_layer_freq"]):
        block = f"model.layers.{layer}"
        y = norm(x, f"{block}.input_layernorm")
        q, k, v = (y @ state[f"{block}.self_attn.{name}_proj.weight"].T for name in "qkv")
        q, k = (
            norm(z.unflatten(-1, (n, -1)), f"{block}.self_attn.{name}_norm").flatten(1)
            for z, n, name in ((q, heads[0], "q"), (k, heads[1], "k"))
        )
        x = x + attend(q, k, v, *heads, config["rope_theta"]) @ state[f"{block}.self_attn.o_proj.weight"].T
        y = norm(x, f"{block}.post_attention_layernorm")
        name = f"{block}.mlp"
        x = x + (torch.stack([experts(row, name) for row in y]) if sparse else mlp(y, name))
    return norm(x, "model.norm") @ state["lm_head.weight"].T
