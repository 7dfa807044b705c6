"""Policies: logits at asked positions, padding, both directions, saving and loading, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policies import tiny_policy
from support.rollouts import prompts
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.characters import character_tokenizer
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.saving import save_transformers
from dlmrl_kit.policies.transformers_policy import TransformersPolicy


def full_logits(policy: TransformersPolicy, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Independent reference: transformers' own forward pass."""
    position_ids = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return policy.model(input_ids=ids, attention_mask=mask, position_ids=position_ids, use_cache=False).logits


def test_asked_positions_equal_the_full_forward() -> None:
    policy, batch = tiny_policy(), prompts(tiny_policy(), rows=5, width=6)
    ids, mask = batch["prompt_ids"], batch["prompt_mask"]
    expected = full_logits(policy, ids, mask)
    asked = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    torch.testing.assert_close(policy(ids, mask, asked), expected[asked], rtol=1e-5, atol=1e-5)
    index = torch.tensor([[5, 0], [1, 2], [3, 3], [4, 5], [2, 1]])
    picked = torch.stack([expected[b, i] for b, i in enumerate(index)])
    torch.testing.assert_close(policy(ids, mask, index), picked, rtol=1e-5, atol=1e-5)


def test_shifted_logits_come_from_the_position_before() -> None:
    base = tiny_policy()
    shifted = TransformersPolicy(base.model, base.tokenizer, shift_logits=True)
    ids, mask = torch.tensor([[4, 5, 6, 7]]), torch.ones(1, 4, dtype=torch.bool)
    expected = full_logits(base, ids, mask)
    expected = torch.cat([expected[:, :1], expected[:, :-1]], dim=1)
    torch.testing.assert_close(shifted(ids, mask, mask), expected[0], rtol=1e-5, atol=1e-5)


def test_left_padding_changes_nothing() -> None:
    policy = tiny_policy()
    row = torch.tensor([[4, 6, 5, 7]])
    alone = policy(row, torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), row], dim=1)
    mask = torch.arange(7)[None] >= 3
    torch.testing.assert_close(policy(padded, mask, mask), alone, rtol=1e-5, atol=1e-5)


def test_attention_goes_both_ways() -> None:
    policy = tiny_policy()
    mask, first = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[True, False, False, False]])
    one = policy(torch.tensor([[4, 5, 6, 7]]), mask, first)
    other = policy(torch.tensor([[4, 5, 6, 8]]), mask, first)
    assert (one - other).abs().max() > 1e-3


def test_forbidden_ids_are_special_tokens_and_padding_rows() -> None:
    policy = tiny_policy()
    size = len(policy.tokenizer)
    assert policy.forbidden_ids == (0, 1, 3, size, size + 1)  # padding, mask, unknown, two rows without a token


def test_saved_checkpoints_load_to_the_same_policy(tmp_path: Path) -> None:
    policy = tiny_policy()
    save_transformers(policy, tmp_path)
    again = load_policy(tmp_path)
    for (name, a), (_, b) in zip(policy.trainable(), again.trainable(), strict=True):
        assert torch.equal(a, b), name
    assert (again.mask_id, again.eos_ids, again.forbidden_ids) == (policy.mask_id, policy.eos_ids, policy.forbidden_ids)
    mask = torch.ones(1, 4, dtype=torch.bool)
    ids = torch.tensor([[4, 5, 6, 7]])
    assert torch.equal(policy(ids, mask, mask), again(ids, mask, mask))
    assert again.tokenizer.decode(again.tokenizer("abc")["input_ids"]) == "abc"


def test_the_shipped_denoiser_loads() -> None:
    policy = Pretrained("shipped:sudoku4x4").load()
    ids = policy.tokenizer("1_3__4_22_4__3_1:")["input_ids"]
    assert len(ids) == 17
    assert policy.tokenizer.decode(ids) == "1_3__4_22_4__3_1:"
    assert policy.mask_id in policy.forbidden_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "no denoiser for model type 'gpt2'"),
        ({"mask_token_id": None}, "names no mask token"),
    ],
)
def test_checkpoints_that_are_no_denoisers_are_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    save_transformers(tiny_policy(), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    if "mask_token_id" in change:
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "mask_token"}))
    with pytest.raises(UserError, match=message):
        load_policy(tmp_path)


def test_missing_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint 'shipped:nothing'.*available: sudoku4x4"):
        load_policy("shipped:nothing")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load_policy(tmp_path)


IDS = torch.tensor([[4, 5, 6, 7, 8], [9, 4, 4, 6, 5]])
FULL = torch.ones_like(IDS, dtype=torch.bool)


def family_policy(family: str, causal: bool = False, tokenizer: Any = None, **options: Any) -> TransformersPolicy:
    tokenizer = tokenizer or character_tokenizer("abcdef")
    config = AutoConfig.for_model(
        family,
        vocab_size=10,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        is_causal=causal,
    )
    torch.manual_seed(0)
    return TransformersPolicy(AutoModelForCausalLM.from_config(config), tokenizer, **options)


@pytest.mark.parametrize("shift", [False, True])
def test_the_head_runs_at_the_asked_positions_only(shift: bool) -> None:
    policy = family_policy("llama", shift_logits=shift)
    asked = torch.tensor([[False, True, False, True, True], [True, False, False, False, False]])
    seen: list[Tensor] = []
    handle = policy.model.get_output_embeddings().register_forward_hook(lambda _, args, out: seen.append(args[0]))
    with torch.no_grad():
        by_mask = policy(IDS, FULL, asked)
        by_index = policy(IDS, FULL, torch.tensor([[4, 1], [0, 0]]))
        handle.remove()
        full = policy.model(input_ids=IDS, attention_mask=FULL).logits
    assert [x.shape for x in seen] == [(4, 32), (2, 2, 32)]

    def wanted(b: int, i: int) -> Tensor:
        return full[b, max(i - 1, 0) if shift else i]

    for row, (b, i) in enumerate(asked.nonzero().tolist()):
        torch.testing.assert_close(by_mask[row], wanted(b, i), rtol=0, atol=1e-5)
    for b, row_positions in enumerate([[4, 1], [0, 0]]):
        for number, i in enumerate(row_positions):
            torch.testing.assert_close(by_index[b, number], wanted(b, i), rtol=0, atol=1e-5)


def test_an_empty_batch_gives_no_logits() -> None:
    policy = family_policy("llama")
    assert policy(IDS[:0], FULL[:0], FULL[:0]).shape == (0, 10)
    assert policy(IDS[:0], FULL[:0], IDS[:0, :2]).shape == (0, 2, 10)


def test_a_checkpoint_keeps_what_the_caller_had_to_say(tmp_path: Path) -> None:
    """The mask id and the shift are needed to read the model: a saved policy loads without being told again."""
    tokenizer = character_tokenizer("abcdef")
    mask_id, tokenizer.mask_token = tokenizer.mask_token_id, None
    with pytest.raises(UserError, match="names no mask token"):
        family_policy("qwen2", tokenizer=tokenizer)
    policy = family_policy("qwen2", tokenizer=tokenizer, mask_id=mask_id, shift_logits=True)
    save_transformers(policy, tmp_path)
    again = load_policy(tmp_path)
    assert (again.mask_id, again.shift_logits) == (mask_id, True)
    with torch.no_grad():
        assert torch.equal(again(IDS, FULL, FULL), policy(IDS, FULL, FULL))
    assert load_policy(tmp_path, mask_id=5).mask_id == 5  # the caller still has the last word


def test_no_mask_token(tmp_path: Path) -> None:
    tokenizer = character_tokenizer("abcdef")
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="mask_id"):
        family_policy("llama", tokenizer=tokenizer)


def test_forbidden_ids() -> None:
    """Mask, padding, unknown, rows beyond the tokenizer, and what the caller adds; never the end of text."""
    tokenizer = character_tokenizer("abcd")  # 4 special tokens and 4 characters; the model has 10 rows
    assert family_policy("llama", tokenizer=tokenizer, forbidden_ids=(6,)).forbidden_ids == (0, 1, 3, 6, 8, 9)
    tokenizer.pad_token = tokenizer.eos_token
    policy = family_policy("llama", tokenizer=tokenizer)
    assert policy.eos_ids == (policy.pad_id,) == (2,)
    assert policy.forbidden_ids == (1, 3, 8, 9)


@pytest.mark.parametrize(("name", "value"), [("lora_rank", -1), ("lora_alpha", 0)])
def test_refuses(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"Pretrained\.{name} must be .*, got {value}"):
        Pretrained("anywhere", **{name: value})  # type: ignore[arg-type]
