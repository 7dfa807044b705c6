"""Advantages: how much better an action was than expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.advantages.base import Advantage as Advantage
    from dlmrl_kit.advantages.base import GroupAdvantage as GroupAdvantage
    from dlmrl_kit.advantages.few_forwards import DecoupledForwards as DecoupledForwards
    from dlmrl_kit.advantages.few_forwards import DiscountedForwards as DiscountedForwards
    from dlmrl_kit.advantages.few_forwards import ForwardsReturn as ForwardsReturn
    from dlmrl_kit.advantages.few_forwards import PenalisedForwards as PenalisedForwards
    from dlmrl_kit.advantages.group_mean import GroupMean as GroupMean
    from dlmrl_kit.advantages.group_softmax import GroupSoftmax as GroupSoftmax
    from dlmrl_kit.advantages.group_z_score import GroupZScore as GroupZScore
    from dlmrl_kit.advantages.intermediate_reward import IntermediateReward as IntermediateReward
    from dlmrl_kit.advantages.leave_one_out import LeaveOneOut as LeaveOneOut
    from dlmrl_kit.advantages.monte_carlo import MonteCarlo as MonteCarlo
    from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise as OneStepDenoise
    from dlmrl_kit.advantages.step_gae import StepGAE as StepGAE

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["Advantage", "GroupAdvantage"],
        "few_forwards": ["DecoupledForwards", "DiscountedForwards", "ForwardsReturn", "PenalisedForwards"],
        "group_mean": ["GroupMean"],
        "group_softmax": ["GroupSoftmax"],
        "group_z_score": ["GroupZScore"],
        "intermediate_reward": ["IntermediateReward"],
        "leave_one_out": ["LeaveOneOut"],
        "monte_carlo": ["MonteCarlo"],
        "one_step_denoise": ["OneStepDenoise"],
        "step_gae": ["StepGAE"],
    },
)
