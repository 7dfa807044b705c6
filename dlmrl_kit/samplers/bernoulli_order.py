r"""Bernoulli order (dUltra, arXiv 2512.21446; learned unmasking, arXiv 2512.09106): each position for itself.

    u_i ~ Bernoulli(s_i),  s_i = sigmoid(h_i);    S = { i : u_i = 1 },  or the one position of largest s if S is empty
    log pi(x_{t+1} | x_t) = sum_{i in S} log q_i(v_i) + log P(S)
    log P(S) = sum_{i in S} log s_i + sum_{j not in S} log(1 - s_j),    or, where S is that one position i,
             = sum_{j != i} log(1 - s_j)

for tokens v_i drawn from q_i, with h from the module of ``LearnedOrder``. That one position is committed whether it is
drawn alone or nothing is drawn, and s_i + (1 - s_i) = 1: the released code has log s_i there. How many positions a step
commits is learned, too, so that a completion takes few forwards where the module is sure.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dlmrl_kit.core.behaviour import LOG_ZERO
from dlmrl_kit.core.component import Sizes
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.seeding import uniforms
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import Decision, Sampler, View, token_log_prob
from dlmrl_kit.samplers.learned_order import ModuleOrder
from dlmrl_kit.samplers.mask import draw_tokens, highest
from dlmrl_kit.samplers.subsets import subsets


@register("sampler", paper="arXiv 2512.21446; arXiv 2512.09106")
class BernoulliOrder(ModuleOrder):
    """Commits each open position with a probability of its own, from a module that is trained beside the policy.

    Decoded greedily (``at_temperature(0)``) it commits the positions of probability above a half, or the most probable
    one. A temperature of 0 that it was made with makes its tokens greedy, and positions are drawn all the same: with
    ``trains_policy = False`` that is the variant of a frozen denoiser, whose unmasking alone is trained.

    Args:
        completion_length, block_length, temperature, top_k, top_p, stop_at_eos: as ``Sampler``.
        width: hidden units of the module, at least 1.
        learning_rate: of the module, positive; None: the trainer's.
        first_probability: s_i before the first update, in (0, 1).
        trains_policy: whether the gradient of the positions' part goes on, through the features, to the policy.

    Raises:
        ValueError: a value out of range.
    """

    greedy_order = False
    """Whether positions are not drawn: those of probability above a half are committed."""

    @with_parameters_of(Sampler)
    def __init__(
        self,
        completion_length: int,
        *decoding: Any,
        width: int = 64,
        learning_rate: float | None = None,
        first_probability: float = 0.25,
        trains_policy: bool = True,
        **named: Any,
    ) -> None:
        super().__init__(completion_length, 1, *decoding, width=width, learning_rate=learning_rate, **named)
        check(0 < first_probability < 1, self, "first_probability", first_probability, "in (0, 1)")
        self.first_probability = first_probability
        self.first_score = math.log(first_probability) - math.log1p(-first_probability)
        self.trains_policy = trains_policy

    @property
    def max_commits(self) -> int:
        """A step may commit a whole block."""
        return self.block_length

    def resized(self, before: Sizes, after: Sizes) -> Sampler:
        """As ``Sampler``: how many positions a step commits is none of its settings."""
        return Sampler.resized(self, before, after)

    def at_temperature(self, temperature: float) -> Sampler:
        """Returns a copy as ``Sampler.at_temperature``; at 0 it draws no positions either."""
        twin = super().at_temperature(temperature)
        assert isinstance(twin, BernoulliOrder)
        twin.greedy_order = temperature == 0
        return twin

    def scores(self, view: View) -> Tensor:
        """Returns the scores h, [N], with gradient."""
        if not self.trains_policy and view.features is not None:
            view = dataclasses.replace(view, features=view.features.detach())
        return super().scores(view)

    def decide(self, view: View, seed: Tensor) -> Decision:
        """Draws positions, and then their tokens from the behaviour distribution."""
        scores = view.dense(self.scores(view).detach(), -torch.inf).double()
        if self.greedy_order:
            drawn = scores > 0
        else:
            drawn = uniforms(seed, scores.shape[1], purpose="position drawn") < scores.sigmoid()
        committed = self._at_least_one(scores, view, drawn & view.allowed)
        return Decision(committed, draw_tokens(view, committed, seed))

    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        """Lists all sets of positions but the empty one; those of highest probability alone where none is drawn."""
        if self.greedy_order:
            scores = view.dense(self.scores(view).detach(), -torch.inf).double()
            return [(self._at_least_one(scores, view, (scores > 0) & view.allowed), None)]
        most = view.allowed.sum(-1)
        sets = (
            subsets(view.allowed, torch.full_like(most, count).masked_fill(count > most, 0))
            for count in range(1, view.allowed.shape[-1] + 1)
        )
        return [(positions, None) for found in sets for positions in found]

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Adds log P(S) to the token part; ``LOG_ZERO`` for a set that is not drawn: [B]."""
        scores = self.scores(view)
        dense = view.dense(scores.detach(), -torch.inf).double()
        tokens = token_log_prob(view, decision)
        if self.greedy_order:
            same = (decision.committed == self._at_least_one(dense, view, (dense > 0) & view.allowed)).all(-1)
            return tokens + torch.where(same, 0.0, LOG_ZERO)
        best = self._best(dense, view)
        alone = (decision.committed == best).all(-1, keepdim=True) & best
        row, position = view.index
        committed = decision.committed[row, position]
        each = torch.where(committed, logsigmoid(scores), logsigmoid(-scores))
        return tokens + view.row_sum(torch.where(alone[row, position], 0.0, each), row)

    @staticmethod
    def _best(scores: Tensor, view: View) -> Tensor:
        """Returns the allowed position of highest score in each row, the first among equals: bool [B, L]."""
        return highest(scores, view.allowed, torch.ones_like(view.allowed[:, 0], dtype=torch.int64))

    def _at_least_one(self, scores: Tensor, view: View, drawn: Tensor) -> Tensor:
        """Returns the positions drawn, bool [B, L], or the best one in rows that have none."""
        return torch.where(drawn.any(-1, keepdim=True), drawn, self._best(scores, view))
