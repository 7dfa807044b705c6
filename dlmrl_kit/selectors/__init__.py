"""Selectors: they choose which denoising steps are trained, and with which weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.selectors.all_steps import AllSteps as AllSteps
    from dlmrl_kit.selectors.base import Selector as Selector
    from dlmrl_kit.selectors.confusion_steps import ConfusionSteps as ConfusionSteps
    from dlmrl_kit.selectors.drawn_steps import DrawnSteps as DrawnSteps
    from dlmrl_kit.selectors.entropy_bound import EntropyBound as EntropyBound
    from dlmrl_kit.selectors.entropy_coverage import EntropyCoverage as EntropyCoverage
    from dlmrl_kit.selectors.entropy_importance import EntropyImportance as EntropyImportance
    from dlmrl_kit.selectors.equal_segments import EqualSegments as EqualSegments
    from dlmrl_kit.selectors.k_steps import FirstK as FirstK
    from dlmrl_kit.selectors.k_steps import KSteps as KSteps
    from dlmrl_kit.selectors.k_steps import LastK as LastK
    from dlmrl_kit.selectors.k_steps import UniformSteps as UniformSteps
    from dlmrl_kit.selectors.random_steps import RandomSteps as RandomSteps
    from dlmrl_kit.selectors.shrunk_steps import ShrunkSteps as ShrunkSteps
    from dlmrl_kit.selectors.surprisal_steps import SurprisalSteps as SurprisalSteps
    from dlmrl_kit.selectors.top_k import EntropyTopK as EntropyTopK
    from dlmrl_kit.selectors.top_k import TopAbsoluteAdvantage as TopAbsoluteAdvantage
    from dlmrl_kit.selectors.whole_sequence import WholeSequence as WholeSequence

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "all_steps": ["AllSteps"],
        "base": ["Selector"],
        "confusion_steps": ["ConfusionSteps"],
        "drawn_steps": ["DrawnSteps"],
        "entropy_bound": ["EntropyBound"],
        "entropy_coverage": ["EntropyCoverage"],
        "entropy_importance": ["EntropyImportance"],
        "equal_segments": ["EqualSegments"],
        "k_steps": ["FirstK", "KSteps", "LastK", "UniformSteps"],
        "random_steps": ["RandomSteps"],
        "shrunk_steps": ["ShrunkSteps"],
        "surprisal_steps": ["SurprisalSteps"],
        "top_k": ["EntropyTopK", "TopAbsoluteAdvantage"],
        "whole_sequence": ["WholeSequence"],
    },
)
