"""Samplers: they generate trajectories, and know the exact log-probability of each of their actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.samplers.base import Decision as Decision
    from dlmrl_kit.samplers.base import Sampler as Sampler
    from dlmrl_kit.samplers.base import View as View
    from dlmrl_kit.samplers.bernoulli_order import BernoulliOrder as BernoulliOrder
    from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold as ConfidenceThreshold
    from dlmrl_kit.samplers.continuous import Continuous as Continuous
    from dlmrl_kit.samplers.dynamic_low_confidence import DynamicLowConfidence as DynamicLowConfidence
    from dlmrl_kit.samplers.entropy_bound_renoising import EntropyBoundRenoising as EntropyBoundRenoising
    from dlmrl_kit.samplers.entropy_order import EntropyOrder as EntropyOrder
    from dlmrl_kit.samplers.learned_order import LearnedOrder as LearnedOrder
    from dlmrl_kit.samplers.learned_order import ModuleOrder as ModuleOrder
    from dlmrl_kit.samplers.left_to_right import LeftToRight as LeftToRight
    from dlmrl_kit.samplers.low_confidence import LowConfidence as LowConfidence
    from dlmrl_kit.samplers.margin_order import MarginOrder as MarginOrder
    from dlmrl_kit.samplers.mask import MaskSampler as MaskSampler
    from dlmrl_kit.samplers.mask import StateScoreSampler as StateScoreSampler
    from dlmrl_kit.samplers.plackett_luce_order import OrderedDraw as OrderedDraw
    from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder as PlackettLuceOrder
    from dlmrl_kit.samplers.preference_pairs import PreferencePairs as PreferencePairs
    from dlmrl_kit.samplers.random_order import RandomOrder as RandomOrder
    from dlmrl_kit.samplers.redrawing import RedrawingSampler as RedrawingSampler
    from dlmrl_kit.samplers.renoising import RenoisingSampler as RenoisingSampler
    from dlmrl_kit.samplers.settings import DecodingSettings as DecodingSettings
    from dlmrl_kit.samplers.speculative import Speculative as Speculative
    from dlmrl_kit.samplers.tempered import TemperedEntropyOrder as TemperedEntropyOrder
    from dlmrl_kit.samplers.tempered import TemperedLowConfidence as TemperedLowConfidence
    from dlmrl_kit.samplers.tempered import TemperedMarginOrder as TemperedMarginOrder
    from dlmrl_kit.samplers.token_editing import TokenEditing as TokenEditing

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["Decision", "Sampler", "View"],
        "bernoulli_order": ["BernoulliOrder"],
        "confidence_threshold": ["ConfidenceThreshold"],
        "continuous": ["Continuous"],
        "dynamic_low_confidence": ["DynamicLowConfidence"],
        "entropy_bound_renoising": ["EntropyBoundRenoising"],
        "entropy_order": ["EntropyOrder"],
        "learned_order": ["LearnedOrder", "ModuleOrder"],
        "left_to_right": ["LeftToRight"],
        "low_confidence": ["LowConfidence"],
        "margin_order": ["MarginOrder"],
        "mask": ["MaskSampler", "StateScoreSampler"],
        "plackett_luce_order": ["OrderedDraw", "PlackettLuceOrder"],
        "preference_pairs": ["PreferencePairs"],
        "random_order": ["RandomOrder"],
        "redrawing": ["RedrawingSampler"],
        "renoising": ["RenoisingSampler"],
        "settings": ["DecodingSettings"],
        "speculative": ["Speculative"],
        "tempered": ["TemperedEntropyOrder", "TemperedLowConfidence", "TemperedMarginOrder"],
        "token_editing": ["TokenEditing"],
    },
)
