"""Counts how many states go through the model per sample, while one update of a recipe runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.phases import listening
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training.start import start_training
from dlmrl_kit.training.update import Update


@dataclass(frozen=True)
class ForwardsPerSample:
    """How many states go through the model for each sample.

    Attributes:
        rollout: in the rollout, restarts included.
        update: in the update, forwards under the old and the reference policy included.
    """

    rollout: float
    update: float


def count_forwards(recipe: str, sets: Sequence[str] = ()) -> ForwardsPerSample:
    """Runs one update of a recipe, without its filters, and counts the rows of every forward pass.

    Args:
        recipe: name or path of a training recipe.
        sets: bindings that change it, as ``load_recipe``.

    Raises:
        UserError: the recipe is broken or not for training.
    """
    small = ["Trainer.prompts_per_update = 4", "Trainer.device = 'cpu'"]
    algorithm = load_recipe(recipe, sets=[*small, *sets], uses=["logger=none", "filter=none"]).build()
    if not isinstance(algorithm, Algorithm):
        raise RecipeError(f"{recipe} is not a recipe for training: it has no updates")
    started = start_training(algorithm)
    update, counter = Update(algorithm, *started), RowCounter()
    with counter.watching(started.policy):
        update(0)
    samples = algorithm.trainer.prompts_per_update * algorithm.trainer.group_size
    return ForwardsPerSample(counter.rollout / samples, counter.update / samples)


class RowCounter:
    """Counts the rows of all batches that go through a policy's model, by phase of the update.

    Attributes:
        rollout: rows outside of the phases that count for ``update``.
        update: rows in the phases ``old and reference`` and ``update``. Those of the check before the first update
            count for neither, as the check is not part of the algorithm.
    """

    def __init__(self) -> None:
        self.rollout = self.update = 0
        self._phases: list[str] = []

    @contextlib.contextmanager
    def watching(self, policy: TransformersPolicy) -> Iterator[None]:
        """Within the context, the rows of each forward pass are counted, by hooks on the embeddings."""
        models = [policy.model] if policy.frozen is None else [policy.model, policy.frozen]
        with contextlib.ExitStack() as stack:
            for model in models:
                stack.callback(model.get_input_embeddings().register_forward_pre_hook(self._count).remove)
            stack.enter_context(listening(self._within))
            yield

    @contextlib.contextmanager
    def _within(self, phase: str) -> Iterator[None]:
        self._phases.append(phase)
        try:
            yield
        finally:
            self._phases.pop()

    def _count(self, embedding: nn.Module, inputs: tuple[Tensor]) -> None:
        """Counts a batch; a forward pre-hook of torch, for a module that takes token ids int64 [B, S]."""
        rows = len(inputs[0])
        if "check" in self._phases:
            return
        if {"old and reference", "update"} & {*self._phases}:
            self.update += rows
        else:
            self.rollout += rows
