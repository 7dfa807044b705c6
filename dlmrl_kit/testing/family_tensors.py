"""The tensors of a checkpoint folder, and the same folder with others."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Returns all weights of a folder, by name."""
    from safetensors.torch import load_file

    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns tensors in another precision; those that hold whole numbers stay as they are."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def rewritten(folder: Path, target: Path, state: Mapping[str, Tensor], shard: str = "5GB") -> Path:
    """Copies a checkpoint folder with other weights, in files of at most ``shard``; returns the copy's path."""
    from huggingface_hub import save_torch_state_dict

    weights = ("*.safetensors", "*.index.json")
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*weights), dirs_exist_ok=True)
    for old in (path for pattern in weights for path in target.glob(pattern)):
        old.unlink()
    save_torch_state_dict(dict(state), target, max_shard_size=shard, metadata={"format": "pt"})
    return target


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    """Returns the first name under which two sets of tensors differ, in precision or any bit; None: they do not."""
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            return name
        if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name]):
            return name
    return None
