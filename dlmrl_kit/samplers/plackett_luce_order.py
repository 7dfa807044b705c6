r"""Plackett-Luce order (DCoLT, arXiv 2505.10446): positions drawn without replacement from scores h, then tokens.

    log pi(x_{t+1} | x_t) = sum_i log p_i(v_i) + sum_{r=1..k} [ h_{i_r} - logsumexp over positions not yet drawn of h ]

The action is the *ordered* draw, so the order within a step is stored in ``("token", "commit_rank")``.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from dlmrl_kit.core.behaviour import by_rows
from dlmrl_kit.core.keys import TOKEN_COMMIT_RANK
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.seeding import uniforms
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import Decision, View, token_log_prob
from dlmrl_kit.samplers.mask import MaskSampler, StateScoreSampler, draw_tokens, rank_of
from dlmrl_kit.samplers.subsets import subsets

_NOT_ALLOWED = -1e9


class OrderedDraw(StateScoreSampler):
    """Base class of samplers that draw positions in proportion to exp(``scores``), one after another.

    Arguments as ``MaskSampler``. Writes as ``Sampler``, and ``("token", "commit_rank")``.
    """

    @with_parameters_of(MaskSampler)
    def __init__(self, *decoding: Any, **named: Any) -> None:
        super().__init__(*decoding, **named)
        self.out_keys = [*self.out_keys, TOKEN_COMMIT_RANK]

    def decide(self, view: View, seed: Tensor) -> Decision:
        """Draws positions in order, by the Gumbel-top-k trick, then their tokens."""
        scores = view.dense(self.scores(view), -torch.inf).double()
        uniform = uniforms(seed, scores.shape[1], purpose="position drawn")
        gumbel = -(-uniform.clamp(min=torch.finfo(torch.float64).tiny).log()).log()
        rank = rank_of(scores + gumbel, view.allowed)
        committed = (rank < self.num_commits(view)[:, None]) & view.allowed
        return Decision(committed, draw_tokens(view, committed, seed), rank)

    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        """Lists all ordered draws of k positions."""
        choices: list[tuple[Tensor, Tensor | None]] = []
        for positions in subsets(view.allowed, self.num_commits(view)):
            drawn = positions.any(0).nonzero().squeeze(-1)
            for order in itertools.permutations(range(len(drawn))):
                rank = torch.zeros_like(positions, dtype=torch.int64)
                rank[:, drawn] = torch.tensor(order, dtype=torch.int64, device=rank.device)
                choices.append((positions, rank))
        return choices

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Adds the log-probability of the ordered draw of positions to the token part: [B]."""
        return token_log_prob(view, decision) + ordered_draw_log_prob(
            view.dense(self.scores(view), _NOT_ALLOWED), view.allowed, decision
        )


@register("sampler", paper="arXiv 2505.10446")
class PlackettLuceOrder(OrderedDraw):
    """Draws positions in proportion to exp(h), h = log max_v softmax(logits)[v] / ``order_temperature``.

    Args:
        completion_length, tokens_per_step, block_length, temperature, top_k, top_p, stop_at_eos: as ``MaskSampler``.
        order_temperature: of the position scores; a small one approaches greedy order, a large one random order.

    Raises:
        ValueError: a value out of range.
    """

    @with_parameters_of(MaskSampler)
    def __init__(self, *decoding: Any, order_temperature: float = 1.0, **named: Any) -> None:
        super().__init__(*decoding, **named)
        check(order_temperature > 0, self, "order_temperature", order_temperature, "positive")
        self.order_temperature = order_temperature

    def scores(self, view: View) -> Tensor:
        """Returns the position scores h, [N], with gradient."""
        return by_rows(lambda logits: logits.log_softmax(-1).amax(-1), view.logits) / self.order_temperature


def ordered_draw_log_prob(scores: Tensor, allowed: Tensor, decision: Decision) -> Tensor:
    """Returns the Plackett-Luce log-probability [B] of drawing the committed positions in the order of their rank.

    Args:
        scores: [B, L], very low where not allowed.
        allowed: bool [B, L].
        decision: with ``rank``.
    """
    assert decision.rank is not None
    length = allowed.shape[-1]
    rank = decision.rank.long()
    rank = torch.where(decision.committed, rank, torch.where(allowed, length, 2 * length))
    order = rank.argsort(dim=-1, stable=True)
    ordered = scores.gather(-1, order)
    remaining = ordered.flip(-1).logcumsumexp(-1).flip(-1)
    return ((ordered - remaining) * decision.committed.gather(-1, order)).sum(-1)
