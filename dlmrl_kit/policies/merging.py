"""LoRA weights added to the base for a while, and taken out again to the last bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def merged(adapter: Any) -> Iterator[None]:
    """Within the context, a peft model computes with its LoRA weights added to those of its linear layers.

    The base weights are set aside, not computed back, so that afterwards they are what they were. Layers of another
    kind (quantised, DoRA, sharded) or in half precision, where adding would round, compute as before. For forwards
    without gradients; the adapter cannot be switched off within the context.

    Args:
        adapter: the ``PeftModel``.
    """
    kept = []
    data: dict[int, Tensor] = {}
    with torch.no_grad():
        for layer in adapter.modules():
            weight = mergeable(layer)
            if weight is not None:
                first = id(weight) not in data  # layers of tied weights share their adapter, which is added once
                kept.append((layer, weight, data.setdefault(id(weight), weight.data)))
                if first:
                    weight.data = sum((layer.get_delta_weight(name) for name in layer.active_adapters), weight.data)
                layer.merged_adapters.extend(layer.active_adapters)
    try:
        yield
    finally:
        for layer, weight, before in kept:
            weight.data = before
            layer.merged_adapters.clear()


def mergeable(layer: Any) -> Tensor | None:
    """The base weight of a LoRA layer that can be merged; else None."""
    from peft.tuners.lora.layer import Linear

    if type(layer) is not Linear or layer.merged or layer.disable_adapters or layer.lora_variant:
        return None
    if any(name not in layer.lora_A or layer.lora_bias.get(name) for name in layer.active_adapters):
        return None
    weight: Any = layer.get_base_layer().weight
    plain = type(weight.data) is Tensor and weight.dtype in (torch.float32, torch.float64)
    return weight if plain else None
