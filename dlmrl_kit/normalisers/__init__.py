"""Normalisers: what a loss divides its sum over tokens by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.normalisers.base import Normaliser as Normaliser
    from dlmrl_kit.normalisers.means import FixedLength as FixedLength
    from dlmrl_kit.normalisers.means import FixedStepLength as FixedStepLength
    from dlmrl_kit.normalisers.means import PerSequence as PerSequence
    from dlmrl_kit.normalisers.means import PerStep as PerStep
    from dlmrl_kit.normalisers.means import PerToken as PerToken

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["Normaliser"],
        "means": ["FixedLength", "FixedStepLength", "PerSequence", "PerStep", "PerToken"],
    },
)
