"""Adapters of families: names of their own, and adapters that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from support.checkpoints import MASKED
from support.families import FAMILIES, PUBLISHED, ROW, Made, tensors
from support.llada import Llada

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.saving import save_adapter, save_own_layout


@pytest.mark.parametrize("family", PUBLISHED)
def test_adapters_are_in_the_familys_own_names(family: str, made: Made, tmp_path: Path) -> None:
    """peft loads them onto the published model: for LLaDA a module in plain torch with the published names."""
    folder, _ = made(family)
    policy = Pretrained(str(folder), lora_rank=3, lora_alpha=6).load()
    with torch.no_grad():
        for _, p in policy.trainable():
            p.normal_(std=0.2)
    full = torch.ones(1, len(ROW), dtype=torch.bool)
    trained = policy(ROW[None], full, full).detach()
    with policy.reference():
        assert (policy(ROW[None], full, full) - trained).abs().max() > 0.1
    save_adapter(policy, tmp_path / "adapter")
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(folder)

    again = load_policy(tmp_path / "adapter")  # merged into its base
    torch.testing.assert_close(again(ROW[None], full, full), trained, rtol=0, atol=2e-5)
    assert not any("lora" in name for name, _ in again.named_parameters())
    assert all(p.requires_grad for p in again.parameters())
    save_own_layout(policy, tmp_path / "merged")
    save_own_layout(again, tmp_path / "merged again")
    for name, tensor in tensors(tmp_path / "merged").items():
        torch.testing.assert_close(tensors(tmp_path / "merged again")[name], tensor, rtol=0, atol=1e-6)

    if family.startswith("llada") and family != "llada_moe":
        plain = Llada(json.loads((folder / "config.json").read_text()))
        plain.load_state_dict(tensors(folder))
        adapted = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
        assert isinstance(adapted.peft_config["default"], LoraConfig)
        torch.testing.assert_close(adapted(ROW), trained, rtol=0, atol=2e-5)
        names = {name.partition(".lora_")[0] for name in tensors(tmp_path / "adapter")}
        assert len(names) == 7 * 2  # every projection of both blocks, and not the head, which is called ff_out as well


def trained_leaves(value: torch.Tensor) -> list[torch.Tensor]:
    """The leaves that the graph of ``value`` reaches."""
    nodes, seen, leaves = [value.grad_fn], set(), []
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        nodes += [parent for parent, _ in node.next_functions]
    return leaves


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank", [0, 3])
def test_a_head_that_is_trained_says_so(family: str, rank: int, made: Made) -> None:
    """Where it says that it is not, its graph reaches no weight; where all is trained, it does reach one."""
    policy = Pretrained(str(made(family)[0]), lora_rank=rank, lora_alpha=6).load()
    features = torch.randn(3, policy.feature_size, requires_grad=True)
    weights = [leaf for leaf in trained_leaves(policy.head(features)) if leaf is not features]
    assert policy.trains_head or not weights
    assert policy.trains_head == bool(weights) or family in MASKED


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def test_adapters_that_do_not_fit_are_refused(made: Made, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    policy = Pretrained(str(made("llada")[0]), lora_rank=2).load()
    with pytest.raises(UserError, match="no adapter to save"):
        save_adapter(load_policy(made("llada")[0]), tmp_path)
    save_adapter(policy, tmp_path)
    about = tmp_path / "adapter_config.json"
    stored = about.read_text()
    with pytest.raises(UserError, match=r"cannot be merged into weights in 4 bits|needs a GPU"):
        load_policy(tmp_path, quantisation="nf4")
    change(about, lambda config: {**config, "base_model_name_or_path": None})
    with pytest.raises(UserError, match="names no base model"):
        load_policy(tmp_path)
    change(about, lambda config: {**config, "base_model_name_or_path": str(made("dream")[0])})
    with pytest.raises(UserError, match="the adapter does not fit its base"):
        load_policy(tmp_path)
    about.write_text(stored)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({**weights, "base_model.model.lm_head.weight": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"trains more than LoRA, for example base_model\.model\.lm_head"):
        load_policy(tmp_path)
