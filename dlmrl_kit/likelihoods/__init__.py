"""Likelihoods: estimators of the log-probability of the selected steps under the current policy, with gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.likelihoods.antithetic_elbo import AntitheticElbo as AntitheticElbo
    from dlmrl_kit.likelihoods.autoregressive_order import AutoregressiveOrder as AutoregressiveOrder
    from dlmrl_kit.likelihoods.base import Likelihood as Likelihood
    from dlmrl_kit.likelihoods.block_replay import BlockReplay as BlockReplay
    from dlmrl_kit.likelihoods.coupled import Coupled as Coupled
    from dlmrl_kit.likelihoods.coupled_elbo import CoupledElbo as CoupledElbo
    from dlmrl_kit.likelihoods.draft_log_prob import DraftLogProb as DraftLogProb
    from dlmrl_kit.likelihoods.elbo import Elbo as Elbo
    from dlmrl_kit.likelihoods.mean_field import MeanField as MeanField
    from dlmrl_kit.likelihoods.quadrature_elbo import QuadratureElbo as QuadratureElbo
    from dlmrl_kit.likelihoods.random_mask import RandomMask as RandomMask
    from dlmrl_kit.likelihoods.sandwich import Sandwich as Sandwich
    from dlmrl_kit.likelihoods.scheduled_mask import ScheduledMask as ScheduledMask
    from dlmrl_kit.likelihoods.segments import OneCopyLikelihood as OneCopyLikelihood
    from dlmrl_kit.likelihoods.segments import SegmentLikelihood as SegmentLikelihood
    from dlmrl_kit.likelihoods.step_merge import StepMerge as StepMerge
    from dlmrl_kit.likelihoods.steps import StepLikelihood as StepLikelihood
    from dlmrl_kit.likelihoods.steps import StepLogProb as StepLogProb
    from dlmrl_kit.likelihoods.steps import StepTokenLogProb as StepTokenLogProb

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "antithetic_elbo": ["AntitheticElbo"],
        "autoregressive_order": ["AutoregressiveOrder"],
        "base": ["Likelihood"],
        "block_replay": ["BlockReplay"],
        "coupled": ["Coupled"],
        "coupled_elbo": ["CoupledElbo"],
        "draft_log_prob": ["DraftLogProb"],
        "elbo": ["Elbo"],
        "mean_field": ["MeanField"],
        "quadrature_elbo": ["QuadratureElbo"],
        "random_mask": ["RandomMask"],
        "sandwich": ["Sandwich"],
        "scheduled_mask": ["ScheduledMask"],
        "segments": ["OneCopyLikelihood", "SegmentLikelihood"],
        "step_merge": ["StepMerge"],
        "steps": ["StepLikelihood", "StepLogProb", "StepTokenLogProb"],
    },
)
