"""Reinforcement learning for diffusion language models, assembled from components.

``import dlmrl_kit`` is cheap: torch, tensordict and transformers are imported by the names that need them.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily
from dlmrl_kit.core.version import VERSION

__version__ = VERSION

os.environ.setdefault("RL_LOGGING_LEVEL", "ERROR")  # read by torchrl when it is imported: it would print otherwise

if TYPE_CHECKING:
    from dlmrl_kit import advantages as advantages
    from dlmrl_kit import caches as caches
    from dlmrl_kit import collectors as collectors
    from dlmrl_kit import corrections as corrections
    from dlmrl_kit import demonstrators as demonstrators
    from dlmrl_kit import filters as filters
    from dlmrl_kit import likelihoods as likelihoods
    from dlmrl_kit import loggers as loggers
    from dlmrl_kit import losses as losses
    from dlmrl_kit import normalisers as normalisers
    from dlmrl_kit import policies as policies
    from dlmrl_kit import pretrainers as pretrainers
    from dlmrl_kit import prompts as prompts
    from dlmrl_kit import regularisers as regularisers
    from dlmrl_kit import rewards as rewards
    from dlmrl_kit import samplers as samplers
    from dlmrl_kit import schedules as schedules
    from dlmrl_kit import selectors as selectors
    from dlmrl_kit import step_schedules as step_schedules
    from dlmrl_kit import tasks as tasks
    from dlmrl_kit import trainers as trainers
    from dlmrl_kit import values as values
    from dlmrl_kit.algorithm.algorithm import Algorithm as Algorithm
    from dlmrl_kit.algorithm.kinds import declare_kind as declare_kind
    from dlmrl_kit.api.by_hand import audit as audit
    from dlmrl_kit.api.by_hand import rollout as rollout
    from dlmrl_kit.api.runs import TrainedRun as TrainedRun
    from dlmrl_kit.api.runs import load_run as load_run
    from dlmrl_kit.api.runs import resume as resume
    from dlmrl_kit.api.runs import train as train
    from dlmrl_kit.core.keys import declare_key as declare_key
    from dlmrl_kit.core.policy import Policy as Policy
    from dlmrl_kit.core.registry import Slot as Slot
    from dlmrl_kit.core.registry import register as register
    from dlmrl_kit.core.seeding import sample_seeds as sample_seeds
    from dlmrl_kit.policies.loading import load_policy as load_policy
    from dlmrl_kit.recipe.load import load_recipe as load_recipe
    from dlmrl_kit.recipe.of_algorithm import recipe_of as recipe_of
    from dlmrl_kit.rollout.rewards import FinalReward as FinalReward
    from dlmrl_kit.rollout.rewards import Scorer as Scorer
    from dlmrl_kit.rollout.rewards import SelectedReward as SelectedReward
    from dlmrl_kit.rollout.rewards import StepReward as StepReward
    from dlmrl_kit.rollout.services import prompt_batch as prompt_batch
    from dlmrl_kit.rollout.services import training_indices as training_indices
    from dlmrl_kit.training.evaluation import evaluate as evaluate

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "": [
            "advantages",
            "caches",
            "collectors",
            "corrections",
            "demonstrators",
            "filters",
            "likelihoods",
            "loggers",
            "losses",
            "normalisers",
            "policies",
            "pretrainers",
            "prompts",
            "regularisers",
            "rewards",
            "samplers",
            "schedules",
            "selectors",
            "step_schedules",
            "tasks",
            "trainers",
            "values",
        ],
        "algorithm.algorithm": ["Algorithm"],
        "algorithm.kinds": ["declare_kind"],
        "api.by_hand": ["audit", "rollout"],
        "api.runs": ["TrainedRun", "load_run", "resume", "train"],
        "core.keys": ["declare_key"],
        "core.policy": ["Policy"],
        "core.registry": ["Slot", "register"],
        "core.seeding": ["sample_seeds"],
        "core.version": ["__version__"],
        "policies.loading": ["load_policy"],
        "recipe.load": ["load_recipe"],
        "recipe.of_algorithm": ["recipe_of"],
        "rollout.rewards": ["FinalReward", "Scorer", "SelectedReward", "StepReward"],
        "rollout.services": ["prompt_batch", "training_indices"],
        "training.evaluation": ["evaluate"],
    },
)


class _Package(ModuleType):
    """The package. Its functions ``rollout`` and ``audit`` stay when the subpackages of these names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in ("rollout", "audit") and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
