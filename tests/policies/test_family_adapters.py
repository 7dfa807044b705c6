"""Adapters of families: names of their own, and adapters that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import MASKED
from support.families import FAMILIES, Made

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.saving import save_adapter


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
