"""Samplers with one mistake each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlmrl_kit.samplers.base import Decision, View, token_log_prob
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence


class NoOrderTerm(LowConfidence):
    """Leaves the order out of its log-probability. Arguments as ``MaskSampler``."""

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        return token_log_prob(view, decision)


class CommitsForbidden(LeftToRight):
    """Commits padding. Arguments as ``MaskSampler``."""

    def decide(self, view: View, seed: Tensor) -> Decision:
        decision = super().decide(view, seed)
        return Decision(decision.committed, torch.zeros_like(decision.tokens))


class CountsSteps(LeftToRight):
    """Lets the log-probability depend on what is not in the state. Arguments as ``MaskSampler``."""

    calls = 0

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        self.calls += 1
        return token_log_prob(view, decision) - 0.1 * self.calls


class TooManyCommits(LeftToRight):
    """Commits two positions and says one. Arguments as ``MaskSampler``."""

    def num_commits(self, view: View) -> Tensor:
        return view.allowed.sum(-1).clamp(max=2)


class StartsOver(LeftToRight):
    """Forgets what was filled. Arguments as ``MaskSampler``."""

    def resume(self, prompt: Any, ids: Tensor, *, policy: Any) -> dict[Any, Tensor]:
        return super().resume(prompt, torch.full_like(ids, policy.mask_id), policy=policy)
