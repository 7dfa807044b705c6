"""Policies beyond the basics: all families, adapters in training, what a checkpoint keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from core import tiny_policy
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.policies.characters import character_tokenizer
from dlmrl_kit.policies.families.bidirectional import BIDIRECTIONAL
from dlmrl_kit.policies.pretrained import Pretrained

IDS = torch.tensor([[4, 5, 6, 7, 8], [9, 4, 4, 6, 5]])
FULL = torch.ones_like(IDS, dtype=torch.bool)


def family_policy(family: str, causal: bool = False, tokenizer: Any = None, **options: Any) -> Policy:
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
    return Policy(AutoModelForCausalLM.from_config(config), tokenizer, **options)


@pytest.mark.parametrize("family", BIDIRECTIONAL)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_family_attends_both_ways_once_loaded(family: str, attention: str, tmp_path: Path) -> None:
    """Also without any padding, where attention masks are skipped, and from a checkpoint that was causal."""
    family_policy(family, causal=True).save_pretrained(tmp_path)
    policy = Policy.from_pretrained(tmp_path)
    policy.model.set_attn_implementation(attention)
    assert policy.model.config.model_type == family
    with torch.no_grad():
        first = policy(IDS, FULL, FULL).unflatten(0, IDS.shape)
        for changed in range(5):
            other = IDS.clone()
            other[:, changed] = torch.where(IDS[:, changed] == 8, 9, 8)
            moved = (policy(other, FULL, FULL).unflatten(0, IDS.shape) - first).abs().amax(-1)
            assert (moved > 1e-3).all()  # every position sees every other

        # left padding: any length and any content
        width = 3
        padded = torch.cat([torch.randint(4, 9, (2, width)), IDS], dim=1)
        mask = torch.cat([torch.zeros(2, width, dtype=torch.bool), FULL], dim=1)
        torch.testing.assert_close(policy(padded, mask, mask).unflatten(0, IDS.shape), first, rtol=0, atol=1e-5)
        padded[:, :width] = policy.pad_id
        torch.testing.assert_close(policy(padded, mask, mask).unflatten(0, IDS.shape), first, rtol=0, atol=1e-5)
        # rows of different lengths in one batch
        mask[1, width] = False
        alone = policy(IDS[1:, 1:], FULL[1:, 1:], FULL[1:, 1:])
        torch.testing.assert_close(policy(padded, mask, mask)[5:], alone, rtol=0, atol=1e-5)


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
        for slot, i in enumerate(row_positions):
            torch.testing.assert_close(by_index[b, slot], wanted(b, i), rtol=0, atol=1e-5)


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
    policy.save_pretrained(tmp_path)
    again = Policy.from_pretrained(tmp_path)
    assert (again.mask_id, again.shift_logits) == (mask_id, True)
    with torch.no_grad():
        assert torch.equal(again(IDS, FULL, FULL), policy(IDS, FULL, FULL))
    assert Policy.from_pretrained(tmp_path, mask_id=5).mask_id == 5  # the caller still has the last word


def test_a_checkpoint_keeps_its_precision(tmp_path: Path) -> None:
    policy = family_policy("llama").to(torch.bfloat16)
    policy.save_pretrained(tmp_path)
    again = Policy.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    for (name, saved), (_, loaded) in zip(policy.trainable(), again.trainable(), strict=True):
        assert torch.equal(saved, loaded), name


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
    assert policy.eos_id == policy.pad_id == 2
    assert policy.forbidden_ids == (1, 3, 8, 9)


def adapted(path: Path) -> Policy:
    tiny_policy(characters="abcdef").save_pretrained(path)
    return Pretrained(str(path), lora_rank=2, lora_alpha=16).load()


def test_the_adapter_learns_and_the_base_stays(tmp_path: Path) -> None:
    """Updates with the reference used between forward and backward, as a KL term does."""
    policy = adapted(tmp_path / "base")
    policy.freeze_reference()
    trainable = policy.trainable()
    assert trainable
    assert all("lora_" in name for name, _ in trainable)
    frozen = {name: p.detach().clone() for name, p in policy.model.named_parameters() if "lora_" not in name}
    with torch.no_grad():
        base = policy(IDS, FULL, FULL)
    optimiser = torch.optim.Adam([p for _, p in trainable], lr=0.05)
    for _ in range(2):
        log_probs = policy(IDS, FULL, FULL).log_softmax(-1)
        with policy.reference(), torch.no_grad():
            assert torch.equal(policy(IDS, FULL, FULL), base)
        optimiser.zero_grad()
        log_probs[:, 4].sum().backward()
        assert [name for name, p in policy.model.named_parameters() if p.grad is not None] == [n for n, _ in trainable]
        optimiser.step()
    assert [name for name, _ in policy.trainable()] == [name for name, _ in trainable]
    assert all(p.grad is not None and p.grad.any() for _, p in trainable)
    for name, p in policy.model.named_parameters():
        if name in frozen:
            assert torch.equal(p, frozen[name]), name
    with torch.no_grad():
        assert (policy(IDS, FULL, FULL) - base).abs().max() > 1e-2


def test_saving_an_adapter_merges_a_copy(tmp_path: Path) -> None:
    policy = adapted(tmp_path / "base")
    with torch.no_grad():
        for _, p in policy.trainable():
            p.normal_(std=0.3)
        trained = policy(IDS, FULL, FULL)
    names = [name for name, _ in policy.trainable()]
    policy.save_pretrained(tmp_path / "merged")
    merged = Policy.from_pretrained(tmp_path / "merged")
    assert not any(isinstance(module, PeftModel) for module in merged.modules())
    assert not any("lora" in name for name, _ in merged.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS, FULL, FULL), trained, rtol=1e-4, atol=1e-4)
        assert torch.equal(policy(IDS, FULL, FULL), trained)  # the policy itself goes on with its adapter
    assert [name for name, _ in policy.trainable()] == names


def test_the_reference_is_restored_after_an_error() -> None:
    policy = tiny_policy()
    policy.freeze_reference()
    model = policy.model
    with policy.reference():
        assert policy.model is not model
    with pytest.raises(ZeroDivisionError), policy.reference():
        raise ZeroDivisionError
    assert policy.model is model


def test_policies_are_in_evaluation_mode_with_and_without_adapter(tmp_path: Path) -> None:
    """Dropout would make the old/new ratio differ from 1."""
    for policy in (adapted(tmp_path / "base"), Policy.from_pretrained(tmp_path / "base"), tiny_policy()):
        assert not any(module.training for module in policy.modules())


@pytest.mark.parametrize(("name", "value"), [("lora_rank", -1), ("lora_alpha", 0)])
def test_refuses(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"Pretrained\.{name} must be .*, got {value}"):
        Pretrained("anywhere", **{name: value})  # type: ignore[arg-type]
