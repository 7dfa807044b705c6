"""LoRA where it cannot be merged, in fewer kernels: layers that read the same states share one product.

The projections of queries, keys and values read the same states x, and so do gate and up. With their A in one matrix,

    [z_q, z_k, z_v] = x [A_q; A_k; A_v]^T,    y = (x W^T) + s z B^T

where the sum, the factor and the product with B are one operation. These are peft's numbers up to rounding: in half
precision they are rounded once where peft's are three times. Rollouts and updates compute alike, so that ratios begin
at 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

if TYPE_CHECKING:
    from peft.tuners.lora.layer import Linear

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"))
"""Names of layers beside each other that read the same states; it is looked at whether they do."""


class Group:
    """LoRA layers beside each other.

    Args:
        layers: in order.
    """

    def __init__(self, layers: list[Linear]) -> None:
        self.layers = layers
        self.ranks = [layer.r[layer.active_adapters[0]] for layer in layers]
        self._ready: dict[tuple[torch.dtype, int], Tensor] = {}
        self._x: Tensor | None = None
        self._z: list[Tensor | None] = []

    def product(self, number: int, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns x A^T of the layer with this number: [..., rank]. The others' are kept until they are asked for."""
        if self._x is not x or self._z[number] is None:
            self._x = x
            self._z = [*linear(x.to(dtype), self._weights(dtype)).split(self.ranks, dim=-1)]
        found, self._z[number] = self._z[number], None
        if all(part is None for part in self._z):
            self._x = None
        assert found is not None
        return found

    def _weights(self, dtype: torch.dtype) -> Tensor:
        """Returns the A of all layers below each other, [ranks, in]."""
        return self._kept(-1, dtype, [layer.lora_A[layer.active_adapters[0]].weight for layer in self.layers])

    def out(self, number: int, dtype: torch.dtype) -> Tensor:
        """Returns the B of a layer, [out, rank]."""
        layer = self.layers[number]
        return self._kept(number, dtype, [layer.lora_B[layer.active_adapters[0]].weight])

    def _kept(self, number: int, dtype: torch.dtype, parts: list[Any]) -> Tensor:
        """Returns weights below each other; without gradients they are put together once."""
        if torch.is_grad_enabled():
            return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(dtype)
        if (dtype, number) not in self._ready:
            self._ready[dtype, number] = torch.cat(parts).to(dtype)
        return self._ready[dtype, number]


@contextlib.contextmanager
def shared(adapter: nn.Module) -> Iterator[None]:
    """Within the context, LoRA layers of a peft model compute as above; the weights must not change meanwhile.

    Layers that are merged, quantised or sharded, of other kinds (DoRA) or with several adapters compute as before, and
    so do all while the adapter is switched off, and in compiled blocks.

    Args:
        adapter: the model with the adapter.
    """
    changed = []
    for layers in _groups(adapter):
        group = Group(layers)
        for number, layer in enumerate(layers):
            one: Any = layer
            one.group, one.forward = (group, number), MethodType(forward, layer)
            changed.append(one)
    try:
        yield
    finally:
        for one in changed:
            del one.forward, one.group


def _groups(adapter: nn.Module) -> Iterator[list[Linear]]:
    for parent in adapter.modules():
        own: dict[str, Any] = {name: child for name, child in parent.named_children() if _plain(child)}
        for names in TOGETHER:
            if len(found := [own.pop(name) for name in names if name in own]) > 1:
                yield found
            else:
                own |= {name: layer for name, layer in zip(names, found, strict=False)}
        yield from ([layer] for layer in own.values())


def _plain(layer: nn.Module) -> bool:
    from peft.tuners.lora.layer import Linear

    if not isinstance(layer, Linear) or layer.merged or layer.disable_adapters or layer.lora_variant:
        return False
    if len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    weights = (layer.lora_A[name].weight, layer.lora_B[name].weight) if name in layer.lora_A else ()
    return bool(weights) and not layer.lora_bias.get(name) and all(type(part.data) is Tensor for part in weights)


def forward(layer: Any, x: Tensor, *given: Any, **named: Any) -> Tensor:
    """Returns the forward of a LoRA layer that has a ``group``."""
    if layer.disable_adapters or layer.merged or torch.compiler.is_compiling():
        usual: Tensor = type(layer).forward(layer, x, *given, **named)
        return usual
    (group, number), name, device = layer.group, layer.active_adapters[0], x.device.type
    mixed = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if mixed else layer.lora_A[name].weight.dtype
    base = layer.base_layer(x, *given, **named)
    z = group.product(number, x, dtype)
    whole = torch.addmm(
        base.flatten(0, -2).to(dtype), z.flatten(0, -2), group.out(number, dtype).mT, alpha=layer.scaling[name]
    )
    found: Tensor = whole.view_as(base).to(base.dtype)
    return found
