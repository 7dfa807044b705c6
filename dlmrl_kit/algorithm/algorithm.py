"""The algorithm: one component per slot. It is pure data; ``algorithm.dataflow`` plans what runs in which order.

A recipe builds one of two roots: ``Algorithm`` for training, or ``Pretraining``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, TypeVar, cast

from dlmrl_kit.advantages.base import Advantage
from dlmrl_kit.caches.base import Cache
from dlmrl_kit.collectors.base import Collector
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.registry import declared_slots, nearest
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


class Fillings(TypedDict):
    """All components of a ``GradientEstimator`` by slot; ``fillings | swaps`` replaces some of them.

    Those in slots that plugins declare are among them, see ``with_declared``.
    """

    sampler: Sampler
    cache: Cache | None
    filter: Sequence[Filter]
    selector: Selector
    advantage: Advantage
    likelihood: Likelihood
    correction: Correction | None
    value: Sequence[Value]
    loss: Objective
    regulariser: Sequence[Term]


class Swaps(TypedDict, total=False):
    """New components for some slots of a ``GradientEstimator``."""

    sampler: Sampler
    cache: Cache | None
    filter: Sequence[Filter]
    selector: Selector
    advantage: Advantage
    likelihood: Likelihood
    correction: Correction | None
    value: Sequence[Value]
    loss: Objective
    regulariser: Sequence[Term]


class GradientEstimator:
    """The components that turn a policy and rewards into an estimate of the gradient, which the audit measures.

    Args:
        sampler, selector, advantage, likelihood, loss: one component each.
        cache: approximate cache of the rollout, which needs a correction; None: rollouts are exact.
        correction: weights samples of another distribution than the policy's; None: no sample is weighted.
        filter, value, regulariser: None, one component or a list.
        declared: by slot that a plugin declares, None, one component or a list.

    Raises:
        RecipeError: no plugin declares such a slot.
    """

    def __init__(
        self,
        sampler: Sampler,
        selector: Selector,
        advantage: Advantage,
        likelihood: Likelihood,
        loss: Objective,
        *,
        cache: Cache | None = None,
        filter: Filter | Sequence[Filter] | None = None,
        correction: Correction | None = None,
        value: Value | Sequence[Value] | None = None,
        regulariser: Term | Sequence[Term] | None = None,
        **declared: Component | Sequence[Component] | None,
    ) -> None:
        self.sampler = sampler
        self.cache = cache
        self.filters: list[Filter] = _as_list(filter)
        self.selector = selector
        self.advantage = advantage
        self.likelihood = likelihood
        self.correction = correction
        self.values: list[Value] = _as_list(value)
        self.loss = loss
        terms: list[Term] = _as_list(regulariser)
        self.regularisers = [term.beside(loss) for term in terms]
        self.declared: dict[str, list[Component]] = _declared(declared)

    @property
    def components(self) -> list[Component]:
        """Every component that runs on trajectories, in recipe order."""
        rollout = [self.sampler, *self.filters, self.selector, self.advantage]
        declared = [part for filling in self.declared.values() for part in filling]
        return [*rollout, *declared, self.likelihood, *self.values, self.loss, *self.regularisers]

    @property
    def terms(self) -> list[Term]:
        """The terms whose sum is minimised: the loss, then the regularisers."""
        return [self.loss, *self.regularisers]

    @property
    def fillings(self) -> Fillings:
        """The components by slot, as arguments of the constructor."""
        own: Fillings = {
            "sampler": self.sampler,
            "cache": self.cache,
            "filter": self.filters,
            "selector": self.selector,
            "advantage": self.advantage,
            "likelihood": self.likelihood,
            "correction": self.correction,
            "value": self.values,
            "loss": self.loss,
            "regulariser": self.regularisers,
        }
        return with_declared(own, self.declared)


class Algorithm(GradientEstimator):
    """Holds a filled sentence: sample with S, keep the steps chosen by C, credit with A, re-score with Q, minimise L.

    Args:
        task: gives prompts and rewards.
        policy: loads the denoiser that training starts from.
        sampler, selector, advantage, likelihood, loss, cache, correction, filter, value, regulariser: as
            ``GradientEstimator``.
        trainer: the training loop's settings.
        collector: samples rollouts elsewhere; None: the process that trains samples them.
        logger: None, one component or a list.
        declared: as ``GradientEstimator``.
    """

    def __init__(
        self,
        task: BaseTask,
        policy: PolicySource,
        sampler: Sampler,
        *,
        cache: Cache | None = None,
        filter: Filter | Sequence[Filter] | None = None,
        selector: Selector,
        advantage: Advantage,
        likelihood: Likelihood,
        correction: Correction | None = None,
        value: Value | Sequence[Value] | None = None,
        loss: Objective,
        regulariser: Term | Sequence[Term] | None = None,
        trainer: Trainer,
        collector: Collector | None = None,
        logger: Logger | Sequence[Logger] | None = None,
        **declared: Component | Sequence[Component] | None,
    ) -> None:
        super().__init__(
            sampler,
            selector,
            advantage,
            likelihood,
            loss,
            cache=cache,
            filter=filter,
            correction=correction,
            value=value,
            regulariser=regulariser,
            **declared,
        )
        self.task = task
        self.policy = policy
        self.trainer = trainer
        self.collector = collector
        self.loggers: list[Logger] = _as_list(logger)


class Pretraining:
    """The root of a pre-training recipe, which ``dlmrl pretrain`` runs.

    Args:
        task: gives examples: the ``pretrain`` split is learned, the ``heldout`` split evaluated.
        demonstrator: writes the completions that are learned.
        policy: loads the denoiser that pre-training starts from.
        pretrainer: loss and settings of the loop.
        sampler: decodes in the final evaluation; demonstrations are padded to its ``completion_length``.
    """

    def __init__(
        self,
        task: BaseTask,
        demonstrator: Demonstrator,
        policy: PolicySource,
        pretrainer: Pretrainer,
        sampler: Sampler,
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
    "collector",
    "logger",
)
"""The slots of an algorithm, in recipe order. Each takes components of the kind of the same name."""

LIST_SLOTS = frozenset({"filter", "value", "regulariser", "logger"})
"""The slots that take any number of components: none, one, or a list."""

ROOTS: dict[str, type] = {root.__name__: root for root in (Algorithm, Pretraining)}
"""The classes that a recipe may build, by name. The parameters of their constructors are the slots."""


def with_declared(own: Fillings, declared: Mapping[str, Sequence[Component]]) -> Fillings:
    """Returns fillings with those of the slots that plugins declare."""
    return cast(Fillings, {**own, **declared})


def _declared(given: Mapping[str, Component | Sequence[Component] | None]) -> dict[str, list[Component]]:
    """Returns the components in the slots that plugins declare, by slot; slots without any are left out.

    Raises:
        RecipeError: no plugin declares a slot, or it takes one component.
    """
    slots = declared_slots()
    found: dict[str, list[Component]] = {name: _as_list(filling) for name, filling in given.items()}
    for name, filling in found.items():
        if name not in slots:
            raise RecipeError(f"an algorithm has no slot {name!r}; {nearest(name, [*SLOTS, *slots])}")
        if len(filling) > 1 and not slots[name].many:
            raise RecipeError(f"the slot {name} takes one component, not {len(filling)}")
    return {name: filling for name, filling in found.items() if filling}


def _as_list(value: T | Sequence[T] | None) -> list[T]:
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) else [value]
