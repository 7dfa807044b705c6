"""Counts what goes through the model of a policy: states, each a row of a batch, and their tokens, padding included."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from dlmrl_kit.core.phases import listening
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.policies.transformers_policy import TransformersPolicy


class ModelWork:
    """Counts the states that go through a policy's model, by phase of the update.

    The checks of a rollout count nowhere, as they are no part of an algorithm. What a collector samples in other
    processes is not seen here.

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
        """Within the context every forward pass is counted, by hooks on the embeddings."""
        models = [policy.model] if policy.frozen is None else [policy.model, policy.frozen]
        with contextlib.ExitStack() as stack:
            for model in models:
                stack.callback(model.get_input_embeddings().register_forward_pre_hook(self._count).remove)
            stack.enter_context(listening(self._within))
            yield

    def clear(self) -> None:
        """Begins to count at 0."""
        self.rollout = self.update = self.tokens = 0

    def metrics(self, processes: Processes = ALONE) -> dict[str, float]:
        """Returns the counts of all processes together, by their names in ``metrics.csv``."""
        everywhere = processes.gather((self.rollout, self.update, self.tokens))
        names = ("forwards/rollout", "forwards/update", "forwards/tokens")
        return {name: float(sum(counts)) for name, counts in zip(names, zip(*everywhere, strict=True), strict=True)}

    @contextlib.contextmanager
    def _within(self, phase: str) -> Iterator[None]:
        self._phases.append(phase)
        try:
            yield
        finally:
            self._phases.pop()

    def _count(self, embedding: nn.Module, inputs: tuple[Tensor]) -> None:
        """Counts a batch; a forward pre-hook of torch, for a module that takes token ids int64 [B, S]."""
        if "check" in self._phases:
            return
        rows = len(inputs[0])
        self.tokens += inputs[0].numel()
        if {"old and reference", "update"} & {*self._phases}:
            self.update += rows
        else:
            self.rollout += rows
