"""Reinforcement learning for diffusion language models, assembled from components.

``import dlmrl_kit`` is cheap: torch, tensordict and transformers are imported by the names that need them.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from dlmrl_kit.core.version import VERSION

__version__ = VERSION

os.environ.setdefault("RL_LOGGING_LEVEL", "ERROR")  # read by torchrl when it is imported: it would print otherwise

_LAZY = {
    "register": "dlmrl_kit.core.registry",
    "load_recipe": "dlmrl_kit.recipe.load",
    "Algorithm": "dlmrl_kit.algorithm.algorithm",
    "Policy": "dlmrl_kit.core.policy",
    "load_policy": "dlmrl_kit.policies.loading",
    "train": "dlmrl_kit.training",
}

__all__ = ["Algorithm", "Policy", "__version__", "load_policy", "load_recipe", "register", "train"]

if TYPE_CHECKING:
    from dlmrl_kit.algorithm.algorithm import Algorithm
    from dlmrl_kit.core.policy import Policy
    from dlmrl_kit.core.registry import register
    from dlmrl_kit.policies.loading import load_policy
    from dlmrl_kit.recipe.load import load_recipe
    from dlmrl_kit.training import train


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'dlmrl_kit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
