"""A checkpoint of each family with the logits that it must give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from support.checkpoints import (
    MASKED,
    dream_checkpoint,
    llada_checkpoint,
    llada_moe_checkpoint,
    llada_moe_config,
    masked_checkpoint,
)
from support.llada import llada_moe_logits
from torch import Tensor

Reference = Callable[[Tensor], Tensor]


def make_llada(folder: Path) -> Reference:
    return llada_checkpoint(folder)


def make_llada_tied(folder: Path) -> Reference:
    """Grouped keys and values and one matrix for both ends, which the format allows too."""
    return llada_checkpoint(folder, weight_tying=True, n_kv_heads=2)


def make_llada_moe(folder: Path) -> Reference:
    state = llada_moe_checkpoint(folder)
    return lambda ids: llada_moe_logits(state, llada_moe_config(), ids)


def make_dream(folder: Path) -> Reference:
    """Qwen2's blocks under an explicit mask that lets every position see every other; then the shift."""
    model = dream_checkpoint(folder)

    def logits(ids: Tensor) -> Tensor:
        everything = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
        found = model(input_ids=ids[None], attention_mask=everything).logits[0]
        return torch.cat([found[:1], found[:-1]])

    return logits


def make_masked(kind: str) -> Callable[[Path], Reference]:
    def make(folder: Path) -> Reference:
        model = masked_checkpoint(folder, kind)
        return lambda ids: model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).logits[0]

    return make


FAMILIES: dict[str, Callable[[Path], Reference]] = {
    "llada": make_llada,
    "llada tied": make_llada_tied,
    "llada_moe": make_llada_moe,
    "dream": make_dream,
    **{kind: make_masked(kind) for kind in MASKED},
}
PUBLISHED = ("llada", "llada tied", "llada_moe", "dream")
ROW = torch.tensor([1, 2, 3, 4, 14, 5, 2, 9])
Made = Callable[[str], tuple[Path, Reference]]


def tensors(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder, by name."""
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
