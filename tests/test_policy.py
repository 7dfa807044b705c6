"""Policies: logits at asked positions, padding, both directions, saving, adapters and the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from core import prompts, tiny_policy

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.policies.pretrained import Pretrained


def full_logits(policy: Policy, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
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
    shifted = Policy(base.model, base.tokenizer, shift_logits=True)
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
    policy.save_pretrained(tmp_path)
    again = Policy.from_pretrained(tmp_path)
    for (name, a), (_, b) in zip(policy.trainable(), again.trainable(), strict=True):
        assert torch.equal(a, b), name
    assert (again.mask_id, again.eos_id, again.forbidden_ids) == (policy.mask_id, policy.eos_id, policy.forbidden_ids)
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
    tiny_policy().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    if "mask_token_id" in change:
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "mask_token"}))
    with pytest.raises(UserError, match=message):
        Policy.from_pretrained(tmp_path)


def test_missing_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint 'shipped:nothing'.*available: sudoku4x4"):
        Policy.from_pretrained("shipped:nothing")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        Policy.from_pretrained(tmp_path)


def test_an_adapter_trains_alone_and_the_reference_is_the_base_without_a_copy(tmp_path: Path) -> None:
    tiny_policy().save_pretrained(tmp_path / "base")
    policy = Pretrained(str(tmp_path / "base"), lora_rank=2).load()
    policy.freeze_reference()
    assert policy._reference is None
    assert all("lora_" in name for name, _ in policy.trainable())
    ids, mask = torch.tensor([[4, 5, 6, 7]]), torch.ones(1, 4, dtype=torch.bool)
    base = policy(ids, mask, mask).detach()
    with torch.no_grad():
        for _, p in policy.trainable():
            p.normal_()
    trained = policy(ids, mask, mask).detach()
    assert (trained - base).abs().max() > 1e-3
    with policy.reference(), torch.no_grad():
        assert torch.equal(policy(ids, mask, mask), base)
    assert torch.equal(policy(ids, mask, mask).detach(), trained)
    policy.save_pretrained(tmp_path / "merged")
    merged = Policy.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(ids, mask, mask).detach(), trained, rtol=1e-4, atol=1e-4)


def test_the_reference_without_an_adapter_is_a_frozen_copy() -> None:
    policy = tiny_policy()
    with pytest.raises(RuntimeError, match="freeze_reference"), policy.reference():
        pass
    policy.freeze_reference()
    ids, mask = torch.tensor([[4, 5, 6, 7]]), torch.ones(1, 4, dtype=torch.bool)
    before = policy(ids, mask, mask).detach()
    with torch.no_grad():
        for _, p in policy.trainable():
            p.add_(0.1)
    with policy.reference():
        reference = policy(ids, mask, mask)
    assert torch.equal(reference, before)
    assert not reference.requires_grad
    assert policy(ids, mask, mask).requires_grad
