"""A second device on a machine that has none: what is wrong there is wrong on a GPU.

Tensors on ``meta`` that keep values, on the CPU. Like CUDA tensors they cannot be mixed with CPU tensors, but for
scalars and indices, and NumPy cannot read them. Noise is that of the CPU, so that results are those of the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
aten = torch.ops.aten
MOVES = {aten.copy_.default, aten._has_compatible_shallow_copy_type.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}


LISTENERS: list[Callable[[Any, Any, dict[str, Any]], None]] = []
"""Called with each operation and its arguments."""


class Elsewhere(Tensor):
    """A tensor on the other device; ``inner`` holds its values."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        """On ``DEVICE``, of the shape of ``inner``."""
        made: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made  # type: ignore[no-any-return]

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.inner!r})"

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(of_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        index = of_tensors(index)
        parts = index if isinstance(index, tuple) else (index,)
        if isinstance(value, (bool, int, float)) and any(isinstance(part, Tensor) for part in parts):
            value = torch.tensor(value, dtype=self.dtype)  # as CUDA does, and copies it
        super().__setitem__(index, value)

    def new_tensor(self, *given: Any, **options: Any) -> Tensor:
        """On this device."""
        return self.inner.new_tensor(*given, **options).to(DEVICE)

    def tolist(self) -> Any:
        """As of any device: a copy to the CPU."""
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        """As on a GPU."""
        raise TypeError("can't convert a tensor of another device to numpy; use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class OtherDevice(TorchDispatchMode):
    """Within it, tensors can be made on ``DEVICE`` and moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def of_tensors(index: Any) -> Any:
    """An index in which lists are tensors: torch would make these on ``meta``, without values."""
    if isinstance(index, tuple):
        return tuple(of_tensors(part) for part in index)
    return torch.tensor(index, dtype=None if index else torch.int64) if isinstance(index, list) else index


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the CPU, with its result on the device where it belongs."""
    for listener in LISTENERS:
        listener(func, args, kwargs)
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [value for value in given if isinstance(value, Elsewhere)]
    assert all(isinstance(value, Elsewhere) or value.device != DEVICE for value in given), f"{func}: without values"
    args, kwargs, wanted = without_device(func, args, kwargs)
    if wanted != DEVICE and not there:
        return func(*args, **kwargs)
    if func not in MOVES and wanted is None:
        check(func, args, given)
    if func is aten.histc.default and not args[0].is_floating_point():  # which only GPUs know
        return Elsewhere(func(args[0].inner.float(), *args[1:], **kwargs).to(args[0].dtype))
    out = func(*real(args), **real(kwargs))
    if func is aten.copy_.default:
        return args[0]
    if wanted == CPU:
        return out
    wrappers = {id(value.inner): value for value in there}
    views = any(output.alias_info is not None for output in func._schema.returns)
    if views and not all(value.is_inference() for value in there):  # views of usual tensors are usual tensors
        with torch.inference_mode(False):
            return tree_map(lambda value: back(value, wrappers), out)
    return tree_map(lambda value: back(value, wrappers), out)


def without_device(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any], torch.device | None]:
    """The arguments with the CPU for the other device, and the device that they name; None: none."""
    names = [argument.name for argument in func._schema.arguments]
    if "device" in names[: len(args)]:
        at = names.index("device")
        wanted, args = args[at], (*args[:at], CPU, *args[at + 1 :])
    else:
        wanted = kwargs.get("device")
        kwargs = kwargs if wanted is None else {**kwargs, "device": CPU}
    return args, kwargs, None if wanted is None else torch.device(wanted)


def real(values: Any) -> Any:
    """The same with values on the CPU."""
    return tree_map(lambda value: value.inner if isinstance(value, Elsewhere) else value, values)


def back(value: Any, wrappers: dict[int, Elsewhere]) -> Any:
    """A result on the other device: the tensor that was changed in place, or a new one."""
    if not isinstance(value, Tensor):
        return value
    return wrappers[id(value)] if id(value) in wrappers else Elsewhere(value)


def check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Refuses what CUDA refuses.

    Raises:
        RuntimeError: tensors of two devices.
    """
    if func in INDEXED:
        if not isinstance(args[0], Elsewhere):
            raise RuntimeError(f"{func}: indices should be on the cpu, as the indexed tensor is")
        tensors = [value for value in tree_flatten((args[0], args[2:]))[0] if isinstance(value, Tensor)]
    mixed = [value for value in tensors if not isinstance(value, Elsewhere) and value.dim() > 0]
    if mixed:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device; one is on the cpu: {mixed[0]}")


class Generator(torch.Generator):
    """Of noise for the other device."""

    def __new__(cls, device: Any = CPU) -> Generator:
        """On the CPU."""
        return super().__new__(cls, CPU)  # type: ignore[call-arg]


def moved(make: Any) -> Any:
    """``torch.tensor`` or ``torch.as_tensor``, which make a tensor on the CPU and move it."""

    def moving(data: Any, device: Any = None, **options: Any) -> Tensor:
        made: Tensor = data if isinstance(data, Elsewhere) else make(data, **options)
        return made if device is None else made.to(device)

    return moving


@contextlib.contextmanager
def other_device() -> Iterator[torch.device]:
    """The device, within the context."""
    autocast = torch.autocast
    _device_constructors()  # remembers what it sees first: with the functions below ``torch.device(...)`` fails later
    with pytest.MonkeyPatch.context() as patch, OtherDevice():
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch, "autocast", lambda device_type, *a, **k: autocast("cpu", *a, **k))
        for name in ("tensor", "as_tensor"):  # which ask no mode
            patch.setattr(torch, name, moved(getattr(torch, name)))
        yield DEVICE


def context(device: str) -> contextlib.AbstractContextManager[Any]:
    """Where ``device`` is known: ``meta`` within ``other_device``."""
    return other_device() if device == "meta" else contextlib.nullcontext()
