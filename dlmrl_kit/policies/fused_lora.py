"""LoRA in the update with one matrix product forward and one back to the input, instead of three each.

With W' = W + s B A, computed once for many states,

    y = x W'^T,    dx = g W',    dA = s (g B)^T x,    dB = s g^T (x A^T)

which is what peft's layers compute, up to rounding. Gradients of the frozen W are not needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from dlmrl_kit.policies.merging import mergeable
from dlmrl_kit.policies.shared_lora import forward as shared_forward
from dlmrl_kit.policies.shared_lora import shared

if TYPE_CHECKING:
    from peft import PeftModel


class _Product(torch.autograd.Function):
    """y from x [..., in], W' [out, in], A [r, in], B [out, r], s and a bias; gradients of x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Tensor, a: Tensor, b: Tensor, scale: float, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, whole, a, b)
        ctx.scale = scale
        return linear(x, whole, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, whole, a, b = ctx.saved_tensors
        g = gradients[0]
        dx = g @ whole if ctx.needs_input_grad[0] else None
        x, g = x.flatten(0, -2), g.flatten(0, -2)
        da = ((g @ b).mT @ x).mul_(ctx.scale)
        db = (g.mT @ (x @ a.mT)).mul_(ctx.scale)
        return dx, None, da, db, None, None


@contextlib.contextmanager
def fused(adapter: PeftModel) -> Iterator[None]:
    """Within the context, LoRA layers of a peft model compute as above; the weights must not change meanwhile.

    Layers that cannot be merged (see ``merging``), and all in mixed precision, compute as in ``shared_lora``; as before
    do those with several adapters, and all while the adapter is switched off.

    Args:
        adapter: the model with the adapter.
    """
    changed: list[tuple[Any, Any]] = []
    with shared(adapter):
        for layer, weight in mergeable(adapter):
            if len(layer.active_adapters) == 1:
                with torch.no_grad():
                    whole = weight + layer.get_delta_weight(layer.active_adapters[0])
                # peft's layer stays in its place, and its parameters keep their names, which optimiser and checkpoints
                # know. A method and an attribute, no closure: torch.compile would compile each closure for itself.
                one: Any = layer
                changed.append((one, one.forward))
                one.whole, one.forward = whole, MethodType(_forward, layer)
        try:
            yield
        finally:
            for layer, before in changed:
                layer.forward = before
                del layer.whole


def _forward(layer: Any, x: Tensor, *given: Any, **named: Any) -> Tensor:
    """Returns the forward of a LoRA layer with ``whole``, its W'."""
    if layer.disable_adapters or layer.merged:
        usual: Tensor = type(layer).forward(layer, x, *given, **named)
        return usual
    if torch.is_autocast_enabled(x.device.type):
        return shared_forward(layer, x, *given, **named)
    name = layer.active_adapters[0]
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    product: Callable[..., Tensor] = _Product.apply
    return product(x, layer.whole, a, b, layer.scaling[name], layer.get_base_layer().bias)
