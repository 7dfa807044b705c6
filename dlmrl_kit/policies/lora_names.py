"""LoRA weights under other names of modules, where one model has in one module what another has in several.

Of a module that is split row-wise into parts 1, ..., n,

    [W_1; ...; W_n] + s [B_1; ...; B_n] A

is an adapter of each part with the same A, and adapters of the parts are one of the whole of n times the rank:

    A = [A_1; ...; A_n],    B = diag(B_1, ..., B_n)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

PREFIX = "base_model.model."
"""What peft writes in front of the names of modules."""


def module_of(name: str) -> str:
    """Returns the name of the module that a weight of an adapter is for."""
    return name.removeprefix(PREFIX).partition(".lora_")[0]


def joined_lora(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Returns an adapter's weights on the CPU under other names of modules; those of one name become one module's.

    Args:
        state: weights by name, of all parts of a module or of none of them, in their order.
        rename: gives the other name of a module.

    Returns:
        The weights, and of how many parts a module consists, by the last part of its name; only those of several.
    """
    found: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        leaf = name.removeprefix(PREFIX).partition(".lora_")[2]
        found.setdefault(f"{PREFIX}{rename(module_of(name))}.lora_{leaf}", []).append(tensor.detach().cpu())
    joined = {name: _joined(name, parts).contiguous() for name, parts in found.items()}
    return joined, {module_of(name).rpartition(".")[2]: len(parts) for name, parts in found.items() if len(parts) > 1}


def split_lora(state: Mapping[str, Tensor], names: Mapping[str, str], model: nn.Module) -> dict[str, Tensor]:
    """Returns an adapter's weights under the names of a model, whose modules may be parts of the adapter's.

    Args:
        state: weights by name.
        names: the adapter's name of each adapted module by the model's; those of one name in the order of the parts.
        model: has the modules.
    """
    parts: dict[str, list[str]] = {}
    for ours, name in names.items():
        parts.setdefault(name, []).append(ours)
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        native, leaf = parts[module_of(name)], name.removeprefix(PREFIX).partition(".lora_")[2]
        pieces = [tensor] * len(native)
        if leaf.startswith("B") and len(native) > 1:
            pieces = list(tensor.split([len(model.get_submodule(part).get_parameter("weight")) for part in native]))
        found |= {f"{PREFIX}{part}.lora_{leaf}": piece for part, piece in zip(native, pieces, strict=True)}
    return found


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if ".lora_A" in name else torch.block_diag(*parts)
