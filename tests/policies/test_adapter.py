"""Adapters: what learns, what is saved, and the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support.policies import tiny_policy

from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.saving import save_transformers
from dlmrl_kit.policies.transformers_policy import TransformersPolicy


def test_an_adapter_trains_alone_and_the_reference_is_the_base_without_a_copy(tmp_path: Path) -> None:
    save_transformers(tiny_policy(), tmp_path / "base")
    policy = Pretrained(str(tmp_path / "base"), lora_rank=2).load()
    policy.freeze_reference()
    assert policy.frozen is None
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
    save_transformers(policy, tmp_path / "merged")
    merged = load_policy(tmp_path / "merged")
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


IDS = torch.tensor([[4, 5, 6, 7, 8], [9, 4, 4, 6, 5]])
FULL = torch.ones_like(IDS, dtype=torch.bool)


def adapted(path: Path) -> TransformersPolicy:
    save_transformers(tiny_policy(characters="abcdef"), path)
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
    save_transformers(policy, tmp_path / "merged")
    merged = load_policy(tmp_path / "merged")
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
    for policy in (adapted(tmp_path / "base"), load_policy(tmp_path / "base"), tiny_policy()):
        assert not any(module.training for module in policy.modules())
