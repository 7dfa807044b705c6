"""Experiments: ablations, their statistics and plots."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_LAZY = {
    "ablate": "dlmrl_kit.experiments.ablation",
    "make_design": "dlmrl_kit.experiments.design",
    "AblationObserver": "dlmrl_kit.experiments.runs",
    "Summary": "dlmrl_kit.experiments.aggregate",
}

__all__ = ["AblationObserver", "Summary", "ablate", "make_design"]

if TYPE_CHECKING:
    from dlmrl_kit.experiments.ablation import ablate
    from dlmrl_kit.experiments.aggregate import Summary
    from dlmrl_kit.experiments.design import make_design
    from dlmrl_kit.experiments.runs import AblationObserver


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'dlmrl_kit.experiments' has no attribute {name!r}")
