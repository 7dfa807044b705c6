"""Losses: the objectives that are minimised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.losses.base import Average as Average
    from dlmrl_kit.losses.base import Objective as Objective
    from dlmrl_kit.losses.base import Term as Term
    from dlmrl_kit.losses.base import TokenAverage as TokenAverage
    from dlmrl_kit.losses.dpo import DPO as DPO
    from dlmrl_kit.losses.length_weighted_reinforce import LengthWeightedReinforce as LengthWeightedReinforce
    from dlmrl_kit.losses.linearised_bound import LinearisedBound as LinearisedBound
    from dlmrl_kit.losses.ppo import ClippedObjective as ClippedObjective
    from dlmrl_kit.losses.ppo import ClippedSegments as ClippedSegments
    from dlmrl_kit.losses.ppo import ClippedSequences as ClippedSequences
    from dlmrl_kit.losses.ppo import LengthNormalisedPPO as LengthNormalisedPPO
    from dlmrl_kit.losses.ppo import PerTokenSequencePPO as PerTokenSequencePPO
    from dlmrl_kit.losses.ppo import SequencePPO as SequencePPO
    from dlmrl_kit.losses.ppo import StepPPO as StepPPO
    from dlmrl_kit.losses.reinforce import Reinforce as Reinforce
    from dlmrl_kit.losses.relative_score import GuidedSelfDistillation as GuidedSelfDistillation
    from dlmrl_kit.losses.relative_score import RelativeScore as RelativeScore
    from dlmrl_kit.losses.reward_tilted import RewardTilted as RewardTilted
    from dlmrl_kit.losses.self_normalised_clip import SelfNormalisedClip as SelfNormalisedClip
    from dlmrl_kit.losses.token_ppo import ConfidenceTokenPPO as ConfidenceTokenPPO
    from dlmrl_kit.losses.token_ppo import TokenAdvantagePPO as TokenAdvantagePPO
    from dlmrl_kit.losses.token_ppo import TokenPPO as TokenPPO

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["Average", "Objective", "Term", "TokenAverage"],
        "dpo": ["DPO"],
        "length_weighted_reinforce": ["LengthWeightedReinforce"],
        "linearised_bound": ["LinearisedBound"],
        "ppo": [
            "ClippedObjective",
            "ClippedSegments",
            "ClippedSequences",
            "LengthNormalisedPPO",
            "PerTokenSequencePPO",
            "SequencePPO",
            "StepPPO",
        ],
        "reinforce": ["Reinforce"],
        "relative_score": ["GuidedSelfDistillation", "RelativeScore"],
        "reward_tilted": ["RewardTilted"],
        "self_normalised_clip": ["SelfNormalisedClip"],
        "token_ppo": ["ConfidenceTokenPPO", "TokenAdvantagePPO", "TokenPPO"],
    },
)
