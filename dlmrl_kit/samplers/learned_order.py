r"""Learned order (DCoLT, arXiv 2505.10446): a module scores positions, which are drawn as in ``PlackettLuceOrder``.

    h_i = down( gelu( up( LayerNorm(f_i) * (1 + scale(m)) + shift(m) ) ) ),    m = open share of the block's positions

f_i is what the policy's head reads at position i. LLaDOU's module is a whole transformer block with embeddings of time,
mask and block; here it is a multi-layer perceptron, because f_i already comes from a transformer that sees all masks.
Its last layer starts at zero: the order is uniform before the first update. ``BernoulliOrder`` has the same module.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dlmrl_kit.core.behaviour import LOG_ZERO
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import Decision, View, token_log_prob
from dlmrl_kit.samplers.mask import MaskSampler, StateScoreSampler, draw_tokens, rank_of
from dlmrl_kit.samplers.plackett_luce_order import OrderedDraw


class OrderModule(nn.Module):
    """Scores positions by the policy's features there.

    Args:
        feature_size: D.
        width: of the hidden layer.
        bias: what all scores begin with; None: 0, and the scores have no bias, which changes no draw by their order.
    """

    def __init__(self, feature_size: int, width: int, bias: float | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(feature_size, elementwise_affine=False)
        self.condition = nn.Linear(1, 2 * feature_size)
        self.up = nn.Linear(feature_size, width)
        self.down = nn.Linear(width, 1, bias=bias is not None)
        for parameter in (*self.condition.parameters(), *self.down.parameters()):
            nn.init.zeros_(parameter)
        if bias is not None:
            nn.init.constant_(self.down.bias, bias)

    @property
    def feature_size(self) -> int:
        """D."""
        return self.up.in_features

    def forward(self, features: Tensor, share: Tensor) -> Tensor:
        """Returns the scores h, [N].

        Args:
            features: real [N, D].
            share: real [N] in (0, 1], of the block's positions that are open.
        """
        dtype = self.up.weight.dtype
        scale, shift = self.condition(share[:, None].to(dtype)).chunk(2, dim=-1)
        hidden = self.norm(features.to(dtype)) * (1 + scale) + shift
        return self.down(nn.functional.gelu(self.up(hidden))).squeeze(-1)


class ModuleOrder(StateScoreSampler):
    """Base class of samplers whose scores come from a module that is trained beside the policy.

    Args:
        completion_length, tokens_per_step, block_length, temperature, top_k, top_p, stop_at_eos: as ``MaskSampler``.
        width: hidden units of the module, at least 1.
        learning_rate: of the module, positive; None: the trainer's.

    Raises:
        ValueError: a value out of range.
    """

    not_sizes = (*MaskSampler.not_sizes, "width")
    needs_features = True
    order: OrderModule | None
    first_score: float | None = None
    """What all scores begin with; None: 0, and the module has no bias."""

    @with_parameters_of(MaskSampler)
    def __init__(self, *decoding: Any, width: int = 64, learning_rate: float | None = None, **named: Any) -> None:
        super().__init__(*decoding, **named)
        check(width >= 1, self, "width", width, "at least 1")
        positive = learning_rate is None or 0 < learning_rate < math.inf
        check(positive, self, "learning_rate", learning_rate, "positive and finite, or None")
        self.width = width
        self.learning_rate = learning_rate
        self.register_module("order", None)  # not an attribute: copies made before ``attach`` share the module

    def attach(self, policy: Policy) -> None:
        """Creates the module, if there is none yet.

        Raises:
            UserError: the module belongs to a policy of another hidden size, or the sampler cannot decode from it.
        """
        super().attach(policy)
        if self.order is None:
            self.order = OrderModule(policy.feature_size, self.width, self.first_score)
            self.order.to(policy.device, policy.real_dtype)
        elif self.order.feature_size != policy.feature_size:
            raise UserError(
                f"{type(self).__name__} was attached to a policy of hidden size {self.order.feature_size}; "
                f"this one has {policy.feature_size}"
            )

    def scores(self, view: View) -> Tensor:
        """Returns the position scores h, [N], with gradient.

        Raises:
            RuntimeError: ``attach`` was not called.
        """
        if self.order is None or view.features is None:
            raise RuntimeError(f"{type(self).__name__} has no module yet: call attach(policy) first")
        share = view.allowed.sum(-1).to(view.logits.dtype) / self.block_length
        return self.order(view.features, share[view.index[0]]).to(view.logits.dtype)


@register("sampler", paper="arXiv 2505.10446")
class LearnedOrder(ModuleOrder, OrderedDraw):
    """Draws positions in proportion to exp(h), h from a module that is trained beside the policy, then their tokens.

    At temperature 0 it takes the positions of highest h (ties: the first ones) with their most probable tokens. The
    log-probability of the ordered draw is exact in every step; LLaDOU leaves it out in the last step of a block. Its
    gradient reaches the module and, through the features, the policy.

    Arguments, raises as ``ModuleOrder``.
    """

    def decide(self, view: View, seed: Tensor) -> Decision:
        """Draws positions and tokens as ``OrderedDraw``; at temperature 0 it takes the best of both."""
        if self.behaviour.temperature > 0:
            return super().decide(view, seed)
        committed, rank = self._greedy(view)
        return Decision(committed, draw_tokens(view, committed, seed), rank)

    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        """Lists all ordered draws; at temperature 0 the greedy one alone."""
        return [self._greedy(view)] if self.behaviour.temperature == 0 else super().position_choices(view)

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Adds the log-probability of the ordered draw of positions to the token part: [B]."""
        if self.behaviour.temperature > 0:
            return super().action_log_prob(view, decision)
        committed, rank = self._greedy(view)
        assert decision.rank is not None
        same = (committed == decision.committed) & (~committed | (rank == decision.rank))
        return token_log_prob(view, decision) + torch.where(same.all(-1), 0.0, LOG_ZERO)

    def _greedy(self, view: View) -> tuple[Tensor, Tensor]:
        """Returns the positions of highest score, bool [B, L], and the rank of all positions, int64 [B, L]."""
        rank = rank_of(view.dense(self.scores(view).detach(), -torch.inf), view.allowed)
        return (rank < self.num_commits(view)[:, None]) & view.allowed, rank
