"""What the methods of an interface return, beyond their annotations: ``@promises`` says it, ``core.interface`` checks.

A base class says once what its methods return. The kit's own components are held to that by tests, those of plugins
whenever they run, so that a tensor of another shape fails where it is made and not far from there, or nowhere.
Shapes, dtypes and devices are looked at, numbers in tensors are not: nothing here waits for an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from dlmrl_kit.core.validate import clipped

if TYPE_CHECKING:
    import torch
    from tensordict import TensorDictBase

F = TypeVar("F", bound=Callable[..., object])

Given: TypeAlias = Mapping[str, Any]
"""The arguments of a call by their names in the base class, ``self`` among them."""
Check: TypeAlias = Callable[[Any, Given], str]
"""Says what is wrong with a result, as the end of a sentence after "returned"; "" if nothing is."""

_CHECKS: dict[Callable[..., object], Check] = {}


def promises(check: Check) -> Callable[[F], F]:
    """Decorates a method of a base class with the check of what overrides of it return."""

    def decorate(method: F) -> F:
        _CHECKS[method] = check
        return method

    return decorate


def promise_of(method: object) -> Check | None:
    """Returns the check of a method that ``promises`` decorates; None of any other."""
    return _CHECKS.get(method) if callable(method) else None


def shown(value: object) -> str:
    """Returns a value as messages show it: a tensor by dtype, shape and device, anything long by its beginning."""
    import torch

    if isinstance(value, torch.Tensor):
        return f"a tensor of {_dtype(value.dtype)} {list(value.shape)} on {value.device}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return clipped(repr(value))
    return f"a {type(value).__name__}"


def tensor_fault(
    value: object, dtype: str, *shapes: Sequence[int], device: torch.device, name: str = "", gradient: bool = False
) -> str:
    """Says what is wrong with a tensor, as ``Check``.

    Args:
        value: should be a tensor.
        dtype: ``bool``, ``int64``, ``integer`` for any, ``real`` for float32 and float64, or ``number`` for
            any of these.
        shapes: what its shape may be.
        device: what it should be on.
        name: of the part of a result that it is.
        gradient: whether it must have one.
    """
    import torch

    allowed = {
        "bool": (torch.bool,),
        "int64": (torch.int64,),
        "integer": (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64),
        "real": (torch.float32, torch.float64),
        "number": (torch.bool, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64),
    }[dtype]
    got = f"{shown(value)} as {name}" if name else shown(value)
    words = {"real": "float32 or float64", "integer": "integers", "number": "numbers"}.get(dtype, dtype)
    wanted = f"a tensor of {words} {' or '.join(str(list(shape)) for shape in shapes)} on {device}"
    if (
        not isinstance(value, torch.Tensor)
        or value.dtype not in allowed
        or tuple(value.shape) not in map(tuple, shapes)
        or value.device != device
    ):
        return f"{got}; it should be {wanted}"
    if gradient and not value.requires_grad:
        return f"{got} without gradient; it should be {wanted} with one"
    return ""


def device_of(tensordict: TensorDictBase) -> torch.device:
    """Returns the device of the tensors in a TensorDict."""
    return next(iter(tensordict.values(include_nested=True, leaves_only=True))).device


def like(dtype: str, argument: str) -> Check:
    """Returns the check of a tensor that has the shape and the device of an argument."""

    def check(result: Any, given: Given) -> str:
        model = given[argument]
        return tensor_fault(result, dtype, model.shape, device=model.device)

    return check


def per_row(dtype: str, argument: str) -> Check:
    """Returns the check of a tensor with one entry for each row of an argument, [B]."""

    def check(result: Any, given: Given) -> str:
        model = given[argument]
        return tensor_fault(result, dtype, model.shape[:1], device=model.device)

    return check


def scalar(dtype: str, argument: str) -> Check:
    """Returns the check of a tensor without dimensions on the device of an argument."""

    def check(result: Any, given: Given) -> str:
        return tensor_fault(result, dtype, (), device=given[argument].device)

    return check


def parts_fault(value: object, *names: str) -> str:
    """Says what is wrong with what should be a tuple of as many parts as ``names``, as ``Check``."""
    if isinstance(value, tuple) and len(value) == len(names):
        return ""
    got = f"a tuple of {len(value)}" if isinstance(value, tuple) else shown(value)
    return f"{got}; it should be a tuple of {' and '.join(names)}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
