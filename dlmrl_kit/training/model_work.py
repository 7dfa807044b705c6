"""Counts what goes through the model of a policy: states, each a row of a batch, and their tokens, padding included."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

from dlmrl_kit.core.phases import listening
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def watched(policy: TransformersPolicy, seen: Callable[[Tensor], None]) -> Iterator[list[str]]:
    """Within the context every forward pass through a policy's model, or its frozen reference, is seen.

    Args:
        policy: whose embeddings are hooked; what a collector samples in other processes is not seen.
        seen: is called with the token ids of a pass, int64 [B, S].

    Yields:
        The phases that are open, the innermost last, while the context goes on.
    """
    phases: list[str] = []

    @contextlib.contextmanager
    def within(phase: str) -> Iterator[None]:
        phases.append(phase)
        try:
            yield
        finally:
            phases.pop()

    def embedded(embedding: nn.Module, inputs: tuple[Tensor]) -> None:
        seen(inputs[0])

    with contextlib.ExitStack() as stack:
        for model in models_of(policy):
            stack.callback(model.get_input_embeddings().register_forward_pre_hook(embedded).remove)
        stack.enter_context(listening(within))
        yield phases


def models_of(policy: TransformersPolicy) -> list[PreTrainedModel]:
    """Returns the model of a policy and, where it has one, its frozen reference."""
    return [policy.model] if policy.frozen is None else [policy.model, policy.frozen]


class ModelWork:
    """Counts the states that go through a policy's model, by phase of the update.

    The checks of a rollout count nowhere, as they are no part of an algorithm.

    Attributes:
        rollout: states outside of the phases that count for ``update``.
        update: states in the phases ``old and reference`` and ``update``; those of the reference model, too.
        tokens: that were embedded for all of them. With cached keys that is fewer than the states have.
    """

    def __init__(self) -> None:
        self.rollout = self.update = self.tokens = 0
        self._phases: list[str] = []

    @contextlib.contextmanager
    def watching(self, policy: TransformersPolicy) -> Iterator[None]:
        """Within the context every forward pass is counted that ``watched`` sees."""
        with watched(policy, self._count) as self._phases:
            yield

    def clear(self) -> None:
        """Begins to count at 0."""
        self.rollout = self.update = self.tokens = 0

    def metrics(self, processes: Processes = ALONE) -> dict[str, float]:
        """Returns the counts of all processes together, by their names in ``metrics.csv``."""
        everywhere = processes.gather((self.rollout, self.update, self.tokens))
        names = ("forwards/rollout", "forwards/update", "forwards/tokens")
        return {name: float(sum(counts)) for name, counts in zip(names, zip(*everywhere, strict=True), strict=True)}

    def _count(self, ids: Tensor) -> None:
        if "check" in self._phases:
            return
        rows = len(ids)
        self.tokens += ids.numel()
        if {"old and reference", "update"} & {*self._phases}:
            self.update += rows
        else:
            self.rollout += rows
