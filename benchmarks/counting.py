"""Counts the work of an update instead of its seconds: what goes through the model, and what processes send.

On a machine that others use, and with more processes than cores, seconds would measure the machine.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.training.model_work import models_of, watched

PHASES = {"sampling": "rollout", "old and reference": "scoring", "update": "update", "check": "check"}
"""The phases of an update that work is counted for, as the kit calls them and as the paper model does."""

KINDS: Mapping[str, tuple[str, int]] = {
    "c10d::allreduce_": ("all-reduce", 0),
    "c10d::_allgather_base_": ("all-gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce-scatter", 1),
    "c10d::allgather_": ("objects", 0),
    "c10d::broadcast_": ("objects", 0),
}
"""Collectives: what they are called, and which of their arguments has the payload of all processes."""


class Collectives(TorchDispatchMode):
    """Adds up the payloads of the collectives that run within it, in bytes, by their kind.

    Python objects, such as counts and metrics, travel as integers; they are counted as ``objects`` and nothing else is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.payloads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and counts it if it is a collective."""
        kind = KINDS.get(func._schema.name)
        if kind is not None:
            name, index = kind
            for tensor in _flat(args[index]):
                self.payloads[name if tensor.is_floating_point() else "objects"] += (
                    tensor.numel() * tensor.element_size()
                )
        return func(*args, **(kwargs or {}))


def _flat(tensors: Any) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else [one for several in tensors for one in _flat(several)]


@contextlib.contextmanager
def counted(policy: TransformersPolicy) -> Iterator[dict[str, Counter[str]]]:
    """Within the context, counts what goes through a policy and its frozen reference.

    Yields:
        By phase, for the phases that occur: ``forwards``, calls of the body; ``states``, the rows of these calls;
        ``tokens``, their prompt and completion positions; ``predictions``, the positions that went through the head.
    """
    counts: dict[str, Counter[str]] = {}

    def here() -> Counter[str]:
        known = (PHASES[phase] for phase in reversed(phases) if phase in PHASES)
        return counts.setdefault(next(known, "other"), Counter())

    def embedded(ids: Tensor) -> None:
        here().update(forwards=1, states=len(ids), tokens=ids.numel())

    def predicted(module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        here().update(predictions=result.numel() // result.shape[-1])

    with contextlib.ExitStack() as stack:
        phases = stack.enter_context(watched(policy, embedded))
        for model in models_of(policy):
            stack.callback(model.get_output_embeddings().register_forward_hook(predicted).remove)
        yield counts
