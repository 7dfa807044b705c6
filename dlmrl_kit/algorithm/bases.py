"""The base class of each kind of component, whose methods the rest of the kit calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlmrl_kit.advantages.base import Advantage
from dlmrl_kit.caches.base import Cache
from dlmrl_kit.collectors.base import Collector
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import Key
from dlmrl_kit.core.registry import declared_slots
from dlmrl_kit.corrections.base import Correction
from dlmrl_kit.demonstrators.base import Demonstrator
from dlmrl_kit.filters.base import Filter
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.loggers.base import Logger
from dlmrl_kit.losses.base import Objective, Term
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.pretrainers.base import Pretrainer
from dlmrl_kit.prompts.base import PromptLayout
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.schedules.base import Schedule
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.step_schedules.base import StepSchedule
from dlmrl_kit.tasks.base import BaseTask
from dlmrl_kit.trainers.trainer import Trainer
from dlmrl_kit.values.base import Value

BASE_CLASSES: dict[str, type] = {
    "task": BaseTask,
    "prompt": PromptLayout,
    "reward": RewardFunction,
    "policy": PolicySource,
    "sampler": Sampler,
    "cache": Cache,
    "correction": Correction,
    "collector": Collector,
    "filter": Filter,
    "selector": Selector,
    "advantage": Advantage,
    "likelihood": Likelihood,
    "value": Value,
    "loss": Objective,
    "regulariser": Term,
    "normaliser": Normaliser,
    "schedule": Schedule,
    "step_schedule": StepSchedule,
    "trainer": Trainer,
    "logger": Logger,
    "demonstrator": Demonstrator,
    "pretrainer": Pretrainer,
}
"""By kind, the class that its components must inherit from; ``algorithm.kinds`` adds those that plugins declare."""


def check_kinds(fillings: Mapping[str, object]) -> None:
    """Refuses a component in a slot of another kind: gin checks recipes, and this what Python code fills in.

    Args:
        fillings: by slot, one component, a list of them, or None where a slot may stay empty.

    Raises:
        RecipeError: a component does not inherit from the base class of its slot's kind, or does not write what every
            component of a kind that a plugin declares writes.
    """
    for slot, filling in fillings.items():
        base = BASE_CLASSES[slot]
        for component in filling if isinstance(filling, Sequence) else [filling]:
            empty = component is None and slot in ("cache", "collector", "correction")
            if not empty and not isinstance(component, base):
                loads = "; it takes what loads a model, such as Pretrained(path)" if slot == "policy" else ""
                raise RecipeError(f"{slot} takes a {base.__name__}, not {type(component).__name__}{loads}")
            if slot in declared_slots() and (key := _missing_key(base, component)) is not None:
                raise RecipeError(
                    f"{type(component).__name__} does not list {key!r} in out_keys, which every {slot} writes"
                )


def _missing_key(base: type, component: Any) -> Key | None:
    """Returns a key of the base class's ``out_keys`` that a component does not write; None if there is none."""
    return next((key for key in vars(base).get("out_keys", ()) if key not in component.out_keys), None)
