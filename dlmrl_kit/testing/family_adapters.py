"""Checks of training a family: what learns, adapters in the published names, and what training leaves alone."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import torch
from torch import nn

from dlmrl_kit.policies.adapter import lora_config
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.saving import save_adapter, save_own_layout
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.testing.core import fail
from dlmrl_kit.testing.family_case import FamilyCase
from dlmrl_kit.testing.family_files import same_logits
from dlmrl_kit.testing.family_numbers import expected, near, rows
from dlmrl_kit.testing.family_tensors import tensors_of

RANK, ALPHA = 3, 6


def train(case: FamilyCase, policy: TransformersPolicy, steps: int = 2) -> None:
    """Takes some steps of an optimiser on the logits of random rows."""
    ids, mask = rows(case, policy)
    able, _ = expected(case, ids, mask)
    parameters = [p for _, p in policy.trainable()]
    optimiser = torch.optim.Adam(parameters, lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        policy(ids, mask, able).log_softmax(-1)[:, 4].mean().backward()
        optimiser.step()


def adapted(case: FamilyCase) -> TransformersPolicy:
    """Returns a policy of the case with a LoRA adapter."""
    policy = case.load()
    policy.add_adapter(lora_config(policy.model, RANK, ALPHA))
    return policy


def check_training(name: str, case: FamilyCase) -> None:
    """Every weight can learn, buffers stay (such as biases that balance experts), and what was trained is saved."""
    policy = case.load()
    before = {path: buffer.clone() for path, buffer in policy.model.named_buffers()}
    train(case, policy)
    for path, parameter in policy.trainable():
        if parameter.grad is None and "vision" not in path:
            fail(name, f"gives {path} no gradient", "compute with every weight, or do not list it as trainable")
    for path, buffer in policy.model.named_buffers():
        if not torch.equal(buffer, before[path]):
            fail(name, f"changes the buffer {path} in training", "leave buffers alone")
    with tempfile.TemporaryDirectory() as holder:
        save_own_layout(policy, Path(holder))
        same_logits(name, case, load_policy(holder), policy, "of what was trained and saved")


def check_adapter(name: str, case: FamilyCase) -> None:
    """LoRA trains the adapter alone; saved, it is loaded onto its base as what was trained, in the family's names."""
    policy = adapted(case)
    frozen = {path: p.detach().clone() for path, p in policy.model.named_parameters() if ".lora_" not in path}
    base = case.load()
    same_logits(name, case, policy, base, "with an adapter that has learnt nothing")
    train(case, policy)
    fix = "train the adapter alone, and merge it as it computes"
    for path, p in policy.model.named_parameters():
        if path in frozen and not torch.equal(p, frozen[path]):
            fail(name, f"changes {path} beside the adapter", fix)
    ids, mask = rows(case, policy)
    able, before = expected(case, ids, mask)
    with torch.no_grad():
        trained = policy(ids, mask, able)
    if (trained - before).abs().max() < 1e-2:
        fail(name, "has an adapter that changes nothing", fix)
    with policy.reference(), torch.no_grad():
        near(name, policy(ids, mask, able), before, case.tolerance, "logits of the reference", fix)
    with tempfile.TemporaryDirectory() as holder:
        folder = Path(holder)
        save_own_layout(policy, folder / "merged")
        changed = {
            p for p, t in tensors_of(folder / "merged").items() if not torch.equal(t, tensors_of(case.folder)[p])
        }
        if not changed:
            fail(name, "saves a model without what was learnt", fix)
        same_logits(name, case, load_policy(folder / "merged"), policy, "of the merged model", 1e-4)
        save_adapter(policy, folder / "adapter")
        again = load_policy(folder / "adapter")
        same_logits(name, case, again, policy, "of the saved adapter", 1e-4)
        if not all(p.requires_grad for p in again.parameters()):
            fail(name, "freezes weights when an adapter is merged", fix)
        modules = {
            path.removeprefix("base_model.model.").partition(".lora_")[0] for path in tensors_of(folder / "adapter")
        }
        known = {path.rpartition(".")[0] for path in tensors_of(case.folder)}
        if unknown := sorted(modules - known):
            fail(name, f"saves an adapter of {unknown[0]}, which the files do not have", "use the family's names")


def check_adapter_elsewhere(name: str, case: FamilyCase) -> None:
    """peft loads the kit's adapter onto the published model, and the kit one that peft trained there."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if not isinstance(case.logits, nn.Module):
        return  # the independent model is transformers' own, or a function
    policy = adapted(case)
    train(case, policy, steps=1)
    ids, mask = rows(case, policy)
    row, full = ids[0][mask[0]], torch.ones(1, int(mask[0].sum()), dtype=torch.bool)
    fix = "translate names, ranks and scales of modules that are called or cut otherwise"
    with tempfile.TemporaryDirectory() as holder:
        ours, theirs = Path(holder) / "ours", Path(holder) / "theirs"
        save_adapter(policy, ours)
        with torch.no_grad():
            there = PeftModel.from_pretrained(copy.deepcopy(case.logits), str(ours))(row)
            near(
                name, there, policy(row[None], full, full), 1e-4, "logits with its adapter on the published model", fix
            )
        targets = json.loads((ours / "adapter_config.json").read_text())["target_modules"]
        model = get_peft_model(copy.deepcopy(case.logits), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
        for path, parameter in model.named_parameters():
            if ".lora_" in path:
                nn.init.normal_(parameter, std=0.2)
        model.peft_config["default"].base_model_name_or_path = str(case.folder)
        model.save_pretrained(str(theirs))
        back = case.load(theirs)
        with torch.no_grad():
            near(
                name,
                back(row[None], full, full),
                model(row),
                1e-4,
                "logits with an adapter of the published model",
                fix,
            )


CHECKS = (check_training, check_adapter, check_adapter_elsewhere)
