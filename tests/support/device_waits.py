"""Counts how often a GPU is waited for, on the stand-in for one (``other_device``).

A result whose size depends on values (``nonzero``, a mask as an index, ``unique`` ...), a value that Python reads, a
copy between devices that is not asked to be asynchronous: for each, CUDA waits until all that it was given is done.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from support import other_device
from support.other_device import CPU, DEVICE, INDEXED, Elsewhere
from torch import Tensor

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default: 1,
    aten.is_nonzero.default: 1,
    aten.item.default: 1,
    aten.equal.default: 1,
    aten.nonzero.default: 1,
    aten.nonzero_numpy.default: 1,
    aten.argwhere.default: 1,
    aten.where.default: 1,
    aten.masked_select.default: 1,
    aten._unique2.default: 1,
    aten.unique_dim.default: 1,
    aten.unique_consecutive.default: 1,
    aten.repeat_interleave.Tensor: 1,
    aten.bincount.default: 2,  # looks at the least value, then at the greatest
}
"""Operations that wait, and how often."""


def waits_of(func: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> int:
    """How often CUDA's ``func`` waits; ``given``: the tensors among its arguments."""
    there = any(isinstance(value, Elsewhere) for value in given[:1])
    if given and given[0].numel() == 0 and func not in INDEXED:
        return 0  # nothing is moved
    if func._schema.name in ("aten::to", "aten::_to_copy"):
        named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        other = named.get("other")
        wanted = DEVICE if isinstance(other, Elsewhere) else CPU if other is not None else named.get("device")
        moves = wanted is not None and (torch.device(wanted) == DEVICE) != there
        return int(moves and not (named.get("non_blocking") and not there))
    if func is aten.copy_.default:
        moves = isinstance(args[0], Elsewhere) != isinstance(args[1], Elsewhere)
        return int(moves and not (len(args) > 2 and args[2] and isinstance(args[0], Elsewhere)))
    if not there:
        return 0
    if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None:
        return 0
    if func in INDEXED:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        masks = sum(index.dtype in (torch.bool, torch.uint8) for index in indices)
        filled = func is not aten.index.Tensor and len(args) > 2 and args[2].numel() == 1
        uploads = sum(not isinstance(value, Elsewhere) for value in (*indices, *args[2:3]))
        return 0 if masks and filled else masks + uploads
    return WAITING.get(func, 0)


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """Within the context, the list grows by one line of the kit's code for each wait."""
    found: list[str] = []

    def note(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = [v for v in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        times = waits_of(func, args, kwargs, given)
        if times:
            found.extend([f"{place()}: {func}"] * times)

    other_device.LISTENERS.append(note)
    try:
        yield found
    finally:
        other_device.LISTENERS.remove(note)


def place() -> str:
    """The innermost line that is not torch's."""
    frames = traceback.extract_stack()
    own = [f for f in frames if "dlmrl_kit" in f.filename or "transformers" in f.filename]
    frame = (own or frames)[-1]
    return f"{frame.filename.rpartition('dlmrl_kit/')[2]}:{frame.lineno} {frame.line}"
