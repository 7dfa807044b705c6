"""LoRA on every family: what is adapted, what learns, memory options, and options that cannot be had here."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import dream_checkpoint, llada_checkpoint, llada_moe_checkpoint, masked_checkpoint
from support.policies import tiny_policy
from torch import Tensor, nn

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.adapter import linear_names, lora_config, merged_state, pattern
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.recompute import Recomputed
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

IDS = torch.tensor([[1, 2, 3, 4, 14, 5, 2, 9], [3, 3, 1, 0, 7, 5, 2, 2]])
MASK = torch.tensor([[True] * 8, [False] * 3 + [True] * 5])
LLAMA = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
BERT = {f"attention.self.{name}" for name in ("query", "key", "value")}
BERT |= {"attention.output.dense", "intermediate.dense", "output.dense"}
TARGETS = {
    "llada": ("model.layers.", LLAMA),
    "dream": ("model.layers.", LLAMA),
    "llada_moe": ("model.layers.", {name for name in LLAMA if "attn" in name}),
    "bert": ("bert.encoder.layer.", BERT),
    "distilbert": (
        "distilbert.transformer.layer.",
        {f"attention.{name}_lin" for name in ("q", "k", "v", "out")} | {"ffn.lin1", "ffn.lin2"},
    ),
    "modernbert": ("model.layers.", {"attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"}),
    "mpnet": (
        "mpnet.encoder.layer.",
        {f"attention.attn.{name}" for name in "qkvo"} | {"intermediate.dense", "output.dense"},
    ),
}


def checkpoint(family: str, folder: Path) -> str:
    makers = {"llada": llada_checkpoint, "dream": dream_checkpoint, "llada_moe": llada_moe_checkpoint}
    if family in makers:
        makers[family](folder)  # type: ignore[operator]
    else:
        masked_checkpoint(folder, family)
    return str(folder)


def logits(policy: TransformersPolicy) -> Tensor:
    return policy(IDS, MASK, MASK)


@pytest.mark.parametrize("family", TARGETS)
def test_every_projection_of_the_blocks_is_adapted_and_nothing_else(family: str, tmp_path: Path) -> None:
    """That nothing else learns is among the checks of every family."""
    policy = Pretrained(checkpoint(family, tmp_path), lora_rank=2, lora_alpha=8).load()
    prefix, expected = TARGETS[family]
    adapted = {name.partition(".lora_")[0] for name, _ in policy.trainable()}
    assert adapted
    assert all(".lora_" in name for name, _ in policy.trainable())
    assert {re.sub(rf"{re.escape(prefix)}\d+\.", "", name) for name in adapted} == expected
    layers = {name.removeprefix(prefix).split(".")[0] for name in adapted}
    assert len(layers) == policy.model.config.num_hidden_layers


def test_merging_rounds_once_and_keeps_the_precision(tmp_path: Path) -> None:
    llada_checkpoint(tmp_path)
    policy = Pretrained(str(tmp_path), lora_rank=2, lora_alpha=4, dtype="bfloat16").load()
    assert {p.dtype for _, p in policy.trainable()} == {torch.float32}  # what is trained
    name = "model.layers.1.mlp.down_proj"
    layer: Any = policy.model.get_submodule(name)
    with torch.no_grad():
        for _, p in policy.trainable():
            p.normal_(std=0.3)
        a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        expected = layer.base_layer.weight.double() + 4 / 2 * (b @ a)
    state = merged_state(policy.model)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    torch.testing.assert_close(state[f"{name}.weight"].double(), expected, rtol=2**-8, atol=1e-6)


def test_tied_weights_stay_one_tensor() -> None:
    state = merged_state(tiny_policy(tie_word_embeddings=True).model)
    assert state["lm_head.weight"] is state["model.embed_tokens.weight"]


def test_patterns_match_names_whole() -> None:
    names = ["model.transformer.blocks.0.ff_out", "model.transformer.blocks.11.ff_out", "a.b"]
    found = pattern(names)
    assert all(re.fullmatch(found, name) for name in [*names, "model.transformer.blocks.7.ff_out"])
    for name in ("model.transformer.ff_out", "model.transformer.blocks.x.ff_out", "a.b.c", "axb", "x.a.b"):
        assert not re.fullmatch(found, name)


def test_models_without_blocks_or_projections() -> None:
    with pytest.raises(UserError, match="Linear has no transformer blocks"):
        linear_names(nn.Linear(2, 2))
    with pytest.raises(UserError, match="no linear projections"):
        linear_names(nn.Sequential(nn.ModuleList([nn.LayerNorm(2)])))
    model = nn.Sequential(nn.ModuleList([nn.ModuleDict({"x": nn.ModuleList([nn.Linear(2, 2)])}), nn.ReLU()]))
    assert linear_names(model) == ["0.0.x.0"]


@pytest.mark.parametrize("family", ["llada", "dream", "bert"])
@pytest.mark.parametrize("rank", [0, 2])
def test_gradient_checkpointing_changes_no_number(family: str, rank: int, tmp_path: Path) -> None:
    """Blocks run twice in an update, once in a rollout; gradients are bit for bit the same; copies are their own."""
    path = checkpoint(family, tmp_path)
    gradients, counts = [], []
    for recompute in (False, True):
        policy = Pretrained(path, lora_rank=rank, gradient_checkpointing=recompute).load()
        with torch.no_grad():
            for name, p in policy.trainable():
                if ".lora_" in name:
                    p.copy_(torch.arange(p.numel()).view_as(p).cos() / 10)
        calls: list[int] = []
        first = next(m for m in policy.model.modules() if isinstance(m, nn.ModuleList))[0]
        norm = next(m for name, m in first.named_modules() if "norm" in name.lower())
        norm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        policy.freeze_reference()
        with torch.no_grad():
            logits(policy)
        rollout = len(calls)
        (logits(policy).log_softmax(-1)[:, 3] * torch.linspace(-1, 1, int(MASK.sum()))).sum().backward()
        counts.append((rollout, len(calls) - rollout))
        gradients.append({name: p.grad for name, p in policy.trainable()})
    assert counts == [(1, 1), (1, 2)]
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient is None) == (other is None)
        if gradient is not None and other is not None:
            assert torch.equal(other, gradient), name


def test_copies_of_a_checkpointed_model_are_their_own() -> None:
    from dlmrl_kit.policies.recompute import recompute_blocks

    policy = tiny_policy()
    recompute_blocks(policy.model)
    other = copy.deepcopy(policy.model)
    layer = other.model.layers[0]
    assert isinstance(layer.forward, Recomputed)
    assert layer.forward.forward.__self__ is layer
    policy.freeze_reference()
    ids, mask = IDS % 8, torch.ones_like(MASK)
    with torch.no_grad():
        before = policy(ids, mask, mask)
        for _, p in policy.trainable():
            p.add_(0.1)
        assert (policy(ids, mask, mask) - before).abs().max() > 0.1
        with policy.reference():
            assert torch.equal(policy(ids, mask, mask), before)


@pytest.mark.parametrize(
    "attention",
    ["sdpa", "eager", pytest.param("flex_attention", marks=pytest.mark.slow)],  # compiled: 2 minutes on a CPU
)
def test_attention_implementations_agree(attention: Any, tmp_path: Path) -> None:
    path = checkpoint("llada", tmp_path)
    with torch.no_grad():
        expected = logits(load_policy(path, attention="eager"))
        policy = Pretrained(path, attention=attention).load()
        assert policy.model.config._attn_implementation == attention
        torch.testing.assert_close(logits(policy), expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "flash_attention_2"}, "Pretrained: attention = 'flash_attention_2' needs a GPU.*'sdpa'"),
        ({"quantisation": "nf4", "lora_rank": 2}, "Pretrained: quantisation = 'nf4' needs a GPU"),
    ],
)
def test_what_needs_a_gpu_says_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pretrained("shipped:sudoku4x4", **options).load()


@pytest.mark.parametrize(
    ("options", "package"),
    [({"attention": "flash_attention_2"}, "flash-attn"), ({"quantisation": "nf4"}, "bitsandbytes")],
)
def test_missing_packages_are_named(options: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(UserError, match=f"needs the package {package}; install it"):
        load_policy("shipped:sudoku4x4", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype must be one of auto, float32, bfloat16, got 'float8'"),
        ({"attention": "paged"}, "attention must be one of auto, sdpa, eager, flash_attention_2, flex_attention"),
        ({"quantisation": "int8", "lora_rank": 1}, "quantisation must be one of none, nf4, got 'int8'"),
    ],
)
def test_unknown_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pretrained("shipped:sudoku4x4", **options).load()
    if "quantisation" in options:
        with pytest.raises(ValueError, match=r"Pretrained\.quantisation must be 'none' without LoRA"):
            Pretrained("shipped:sudoku4x4", quantisation="nf4")


def test_there_is_no_dropout(tmp_path: Path) -> None:
    """Neither the checkpoint's, here 0.4, nor LoRA's: two passes agree, with gradients or without."""
    masked_checkpoint(tmp_path, "bert", hidden_dropout_prob=0.4, attention_probs_dropout_prob=0.4)
    policy = Pretrained(str(tmp_path), lora_rank=2).load()
    assert policy.model.config.hidden_dropout_prob == 0.4
    assert torch.equal(logits(policy), logits(policy))
    assert lora_config(policy.model, 2, 4).lora_dropout == 0.0
    with pytest.raises(TypeError, match="lora_dropout"):
        Pretrained(str(tmp_path), lora_rank=2, lora_dropout=0.1)  # type: ignore[call-arg]
