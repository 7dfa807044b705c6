"""The algorithm: one component per slot. Pure data; ``algorithm.dataflow`` says what runs in which order.

A recipe fills the slots; ``Algorithm`` is the gin configurable at its root, ``Pretraining`` that of pre-training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import gin

from dlmrl_kit.advantages.base import Advantage
from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.component import Component
from dlmrl_kit.corrections.base import Correction
from dlmrl_kit.demonstrators.base import Demonstrator
from dlmrl_kit.filters.base import Filter
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.loggers.base import Logger
from dlmrl_kit.losses.base import Objective, Term
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.pretrainers.base import Pretrainer
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.tasks.base import BaseTask
from dlmrl_kit.trainers.trainer import Trainer
from dlmrl_kit.values.base import Value

T = TypeVar("T")


@gin.configurable(module="dlmrl_kit")
class Algorithm:
    """A filled sentence: sample with S, keep the steps chosen by C, credit with A, re-score with Q, minimise L.

    Args:
        task: prompts and reward.
        policy: the denoiser's starting point.
        sampler, selector, advantage, likelihood, loss: one component each.
        cache: None, or what rollouts reuse approximately; it then needs a correction.
        correction: weights for what was sampled from another distribution than the policy; None: no such weights.
        filter, value, regulariser: None, one component or a list.
        trainer: the training loop's settings.
        logger: None, one component or a list.
    """

    def __init__(
        self,
        task: BaseTask = gin.REQUIRED,
        policy: PolicySource = gin.REQUIRED,
        sampler: Sampler = gin.REQUIRED,
        cache: Cache | None = None,
        filter: Filter | Sequence[Filter] | None = None,
        selector: Selector = gin.REQUIRED,
        advantage: Advantage = gin.REQUIRED,
        likelihood: Likelihood = gin.REQUIRED,
        correction: Correction | None = None,
        value: Value | Sequence[Value] | None = None,
        loss: Objective = gin.REQUIRED,
        regulariser: Term | Sequence[Term] | None = None,
        trainer: Trainer = gin.REQUIRED,
        logger: Logger | Sequence[Logger] | None = None,
    ) -> None:
        self.task = task
        self.policy = policy
        self.sampler = sampler
        self.cache = cache
        self.filters: list[Filter] = _as_list(filter)
        self.selector = selector
        self.advantage = advantage
        self.likelihood = likelihood
        self.correction = correction
        self.values: list[Value] = _as_list(value)
        self.loss = loss
        self.regularisers: list[Term] = _as_list(regulariser)
        self.trainer = trainer
        self.loggers: list[Logger] = _as_list(logger)

    @property
    def components(self) -> list[Component]:
        """Every component that runs on trajectories."""
        rollout = [self.sampler, *self.filters, self.selector, self.advantage]
        return [*rollout, self.likelihood, *self.values, self.loss, *self.regularisers]

    @property
    def terms(self) -> list[Term]:
        """What is minimised: the loss, then the regularisers."""
        return [self.loss, *self.regularisers]

    def with_slots(self, **slots: object) -> Algorithm:
        """A copy with other fillings, by the names of ``__init__``'s parameters; components are shared, not copied."""
        own = {"filter": self.filters, "value": self.values, "regulariser": self.regularisers, "logger": self.loggers}
        own |= {name: value for name, value in vars(self).items() if name in SLOTS}
        return Algorithm(**{**own, **slots})  # type: ignore[arg-type]


@gin.configurable(module="dlmrl_kit")
class Pretraining:
    """What ``dlmrl pretrain`` runs: the root of a pre-training recipe.

    Args:
        task: examples; the ``pretrain`` split is learned, the ``heldout`` split evaluated.
        demonstrator: whose completions are learned.
        policy: the denoiser at its start.
        pretrainer: loss and loop settings.
        sampler: for the final evaluation; its ``completion_length`` is the length that completions are padded to.
    """

    def __init__(
        self,
        task: BaseTask = gin.REQUIRED,
        demonstrator: Demonstrator = gin.REQUIRED,
        policy: PolicySource = gin.REQUIRED,
        pretrainer: Pretrainer = gin.REQUIRED,
        sampler: Sampler = gin.REQUIRED,
    ) -> None:
        self.task = task
        self.demonstrator = demonstrator
        self.policy = policy
        self.pretrainer = pretrainer
        self.sampler = sampler


SLOTS = (
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
"""Slots of an algorithm in recipe order; each takes a component of the kind of the same name."""

LIST_SLOTS = frozenset({"filter", "value", "regulariser", "logger"})
"""Slots that hold any number of components: none, one, or a list."""


def _as_list(value: T | Sequence[T] | None) -> list[T]:
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) else [value]
