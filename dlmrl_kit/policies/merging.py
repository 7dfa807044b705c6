"""LoRA weights added to the base for a while, and taken out again to the last bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlmrl_kit.policies.shared_lora import shared

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora.layer import Linear


@contextlib.contextmanager
def merged(adapter: PeftModel) -> Iterator[None]:
    """Within the context, a peft model computes with its LoRA weights added to those of its linear layers.

    It is for forwards without gradients, and the adapter cannot be switched off within the context. Layers that cannot
    be merged exactly (see ``mergeable``) compute as in ``shared_lora``. So do all in mixed precision, which would round
    the sum: what a small adapter adds to weights that were published in half precision would be gone, all of it.

    The base weights are set aside and put back. peft's own ``unmerge`` subtracts what was added, which would leave
    rounding errors in the weights after every rollout.

    Args:
        adapter: the model with the adapter.
    """
    layers = list(mergeable(adapter))
    if layers and torch.is_autocast_enabled(layers[0][1].device.type):
        layers = []
    kept: list[tuple[Linear, Tensor, Tensor]] = []
    data: dict[int, Tensor] = {}
    with torch.no_grad():
        for layer, weight in layers:
            first = id(weight) not in data  # layers of tied weights share their adapter, which is added once
            kept.append((layer, weight, data.setdefault(id(weight), weight.data)))
            if first:
                for name in layer.active_adapters:
                    weight.data = weight.data + layer.get_delta_weight(name)
            layer.merged_adapters.extend(layer.active_adapters)  # peft's mark, by which forward leaves the adapter out
    try:
        with shared(adapter):
            yield
    finally:
        for layer, weight, before in kept:
            weight.data = before
            layer.merged_adapters.clear()


def mergeable(adapter: nn.Module) -> Iterator[tuple[Linear, Tensor]]:
    """Yields the LoRA layers whose adapter can be added to their weight exactly, and the weights.

    Layers of another kind (quantised, DoRA, sharded) are left out, and so are those in half precision, where a sum
    would be rounded.

    Args:
        adapter: the model with the adapter.
    """
    from peft.tuners.lora.layer import Linear

    for layer in adapter.modules():
        if not isinstance(layer, Linear) or layer.merged or layer.disable_adapters or layer.lora_variant:
            continue
        if any(name not in layer.lora_A or layer.lora_bias.get(name) for name in layer.active_adapters):
            continue
        weight = layer.get_base_layer().get_parameter("weight")
        # Of a subclass of Tensor (sharded or quantised by another library) nobody knows how to add to it.
        if type(weight.data) is Tensor and weight.dtype in (torch.float32, torch.float64):
            yield layer, weight
