"""Whether tensors hold finite numbers: weights that do not are refused by name, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dlmrl_kit.core.errors import NotFiniteError


def all_finite(tensor: Tensor) -> bool:
    """Tells whether a tensor has neither NaN nor infinite entries; integers have none. Makes no copy of it.

    Of a tensor whose parts lie with several processes all of them must call this.
    """
    if isinstance(tensor, DTensor):
        finite = torch.tensor(all_finite(tensor.to_local()), dtype=torch.int32, device=tensor.device)
        dist.all_reduce(finite, dist.ReduceOp.MIN, group=tensor.device_mesh.get_group())
        return bool(finite)
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return True
    values = tensor.detach()
    if values.element_size() == 1:  # 8-bit floats have no arithmetic of their own
        values = values.float()
    least, largest = values.aminmax()  # NaN if any entry is
    return bool(torch.isfinite(least) & torch.isfinite(largest))


def distance(values: Tensor, others: Tensor) -> Tensor:
    """Returns |values - others|, infinite where that is not a number, so that no bound holds there."""
    return (values - others).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)


def weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a module that a checkpoint of it holds, each once, with their names."""
    yield from module.named_parameters()
    kept = module.state_dict().keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in kept)


def require_finite(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Refuses tensors with NaN or infinite entries.

    Args:
        tensors: with their names.
        where: what they belong to, the beginning of a sentence: ``the policy``, ``weights.safetensors``.

    Raises:
        NotFiniteError: names the first such tensor, and says how many there are.
    """
    found = [name for name, tensor in tensors if not all_finite(tensor)]
    if found:
        more = f" and {len(found) - 1} more tensors have" if len(found) > 1 else " has"
        raise NotFiniteError(f"{where}: {found[0]}{more} NaN or infinite values")
