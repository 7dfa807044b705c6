"""The algorithm: one component per slot, and the order in which they run.

A recipe fills the slots; ``Algorithm`` is the one gin configurable of the kit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gin

from dlmrl_kit.algorithm import dataflow
from dlmrl_kit.corrections.truncated_importance import TruncatedImportance

SLOTS: tuple[str, ...] = (
    "task",
    "policy",
    "sampler",
    "cache",
    "filter",
    "selector",
    "advantage",
    "likelihood",
    "correction",
    "value",
    "loss",
    "regulariser",
    "trainer",
    "logger",
)
"""Slots in recipe order; each takes a component of the kind of the same name."""

LIST_SLOTS = frozenset({"filter", "value", "regulariser", "logger"})
"""Slots that hold any number of components: none, one, or a list."""


@gin.configurable(module="dlmrl_kit")
class Algorithm:
    """A filled sentence: sample with S, keep the steps chosen by C, credit with A, re-score with Q, descend L.

    Args:
        task: prompts and reward.
        policy: the denoiser's starting point.
        sampler, selector, advantage, likelihood, loss: one component each.
        cache: None, or what rollouts reuse approximately.
        correction: weights for what was sampled from another distribution than the policy; None: no such weights, or
            with a cache ``TruncatedImportance``.
        filter, value, regulariser: None, one component or a list.
        trainer: the training loop's settings.
        logger: None, one component or a list.

    Raises:
        RecipeError: a component reads a key that none before it writes (see ``dataflow``).
    """

    def __init__(
        self,
        task: Any = gin.REQUIRED,
        policy: Any = gin.REQUIRED,
        sampler: Any = gin.REQUIRED,
        cache: Any = None,
        filter: Any = None,
        selector: Any = gin.REQUIRED,
        advantage: Any = gin.REQUIRED,
        likelihood: Any = gin.REQUIRED,
        correction: Any = None,
        value: Any = None,
        loss: Any = gin.REQUIRED,
        regulariser: Any = None,
        trainer: Any = gin.REQUIRED,
        logger: Any = None,
    ) -> None:
        self.task = task
        self.policy = policy
        self.sampler = sampler
        self.cache = cache
        if cache is not None or getattr(sampler, "cache", None) is not None:
            sampler.cache = cache
        self.correction = TruncatedImportance() if correction is None and cache is not None else correction
        self.selector = selector
        self.advantage = advantage
        self.likelihood = likelihood
        self.loss = loss
        self.filters = _as_list(filter)
        self.values = _as_list(value)
        self.regularisers = _as_list(regulariser)
        self.trainer = trainer
        self.loggers = _as_list(logger)
        self.plan = dataflow.plan(self)

    @property
    def components(self) -> list[Any]:
        """Every component that runs on trajectories."""
        rollout = [self.sampler, *self.filters, self.selector, self.advantage]
        return [*rollout, self.likelihood, *self.values, self.loss, *self.regularisers]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) else [value]
