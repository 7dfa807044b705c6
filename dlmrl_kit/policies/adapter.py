"""LoRA: which modules are adapted, and what a model's weights are with its adapter merged into them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.foreign import delta_weight, quantisation_of

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the transformer blocks of a model by name.

    These are the layers for which transformers has gradient checkpointing. Of a model without such layers they are the
    members of its outermost lists of modules.

    Raises:
        UserError: there are none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)
    }
    if not found:
        lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
        outer = {name: module for name, module in lists.items() if not any(_within(name, other) for other in lists)}
        found = {f"{name}.{index}": block for name, module in outer.items() for index, block in enumerate(module)}
    if not found:
        raise UserError(f"{type(model).__name__} has no transformer blocks that the kit can find")
    return found


def _within(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")


def linear_names(model: nn.Module) -> list[str]:
    """Returns the full names of the linear projections in a model's blocks (attention and MLP).

    The head and the embeddings are never among them. Of a mixture of experts only the projections of attention are:
    transformers keeps the experts in one tensor, which no LoRA layer of peft adapts.

    Raises:
        UserError: the model has no blocks, or they have no linear projections.
    """
    found = blocks(model)
    experts = any(parameter.dim() > 2 for module in found.values() for parameter in module.parameters())
    names = [
        f"{block}.{name}"
        for block, module in found.items()
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and (not experts or "attn" in name)
    ]
    if not names:
        raise UserError(f"the blocks of {type(model).__name__} have no linear projections for LoRA to adapt")
    return names


def pattern(names: Iterable[str]) -> str:
    """Returns a regular expression that matches whole names of modules, with any number for the number of a block."""
    forms = {re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in names}
    return "|".join(sorted(forms))


def lora_config(model: nn.Module, rank: int, alpha: int) -> LoraConfig:
    """Returns a LoRA (arXiv 2106.09685) for all linear projections of a model's blocks, without dropout.

    Dropout would make the policy that is updated another one than the policy that sampled.

    Raises:
        UserError: as ``linear_names``.
    """
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=pattern(linear_names(model)))


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns a model's tensors on the CPU, with its adapter merged, by the names that they have without an adapter.

    Sums are formed in float32 and rounded to the weight's precision; weights in 4 bits are expanded. Tied weights stay
    one tensor.
    """
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    kept = model.state_dict().keys()
    tensors: dict[str, Tensor] = {name: p for name, p in model.named_parameters(remove_duplicate=False)}
    tensors |= {name: b for name, b in model.named_buffers(remove_duplicate=False) if name in kept}
    done: dict[int, Tensor] = {}
    state = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            owner, _, leaf = name.rpartition(".")
            if owner.partition(".lora_")[0] in layers and ".lora_" in owner:
                continue  # the adapter's own
            home = owner.removesuffix(".base_layer")
            if id(tensor) not in done:  # tied weights occur under several names
                value = expanded(tensor)
                if home in layers and leaf == "weight":
                    value = _merged(layers[home], value)
                done[id(tensor)] = value.detach().cpu().contiguous()
            state[f"{home}.{leaf}" if home else leaf] = done[id(tensor)]
    return state


def _merged(layer: LoraLayer, weight: Tensor) -> Tensor:
    for adapter in layer.active_adapters:
        weight = (weight.float() + delta_weight(layer, adapter).float()).to(weight.dtype)
    return weight


def expanded(tensor: Tensor) -> Tensor:
    """Returns a weight in 4 bits in the precision it is computed with, and any other as it is."""
    state = quantisation_of(tensor)
    if state is None:
        return tensor
    from bitsandbytes.functional import dequantize_4bit

    value: Tensor = dequantize_4bit(tensor.data, state)
    return value
