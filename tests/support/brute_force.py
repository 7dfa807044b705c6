"""Every action of a state with its probability by brute force, which knows nothing of the kit's formulas."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from support.oracles import log_odds, loop_entropy, loop_probs
from support.policies import TabularPolicy
from torch import Tensor

from dlmrl_kit.core.behaviour import Behaviour
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.dynamic_low_confidence import DynamicLowConfidence
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.margin_order import MarginOrder
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.samplers.tempered import TemperedEntropyOrder, TemperedLowConfidence, TemperedMarginOrder

TEMPERED: dict[type[Sampler], type[Sampler]] = {
    TemperedLowConfidence: LowConfidence,
    DynamicLowConfidence: LowConfidence,
    TemperedEntropyOrder: EntropyOrder,
    TemperedMarginOrder: MarginOrder,
}
"""Samplers that rank by the distribution that tokens are drawn from, and those that rank by softmax(logits)."""
State = tuple[int, ...]
Action = tuple[tuple[int, ...], tuple[int, ...]]
"""Positions in the order of the draw (ascending where the action has none), and their tokens."""


def probabilities(row: Tensor, behaviour: Behaviour, forbidden: tuple[int, ...]) -> Tensor:
    """The behaviour distribution [V] of logits [V], differentiable; the kept set comes from the loop."""
    kept = loop_probs(
        row.tolist(),
        temperature=behaviour.temperature,
        top_k=behaviour.top_k,
        top_p=behaviour.top_p,
        forbidden=forbidden,
    )
    if behaviour.temperature == 0:
        return torch.tensor(kept, dtype=row.dtype)
    mass = torch.where(torch.tensor(kept) > 0, (row / behaviour.temperature).exp(), torch.zeros_like(row))
    return mass / mass.sum()


def number_committed(sampler: Any, state: State, positions: list[int]) -> int:
    """How many of the open positions of a block the step commits; a schedule goes on to its next level."""
    if isinstance(sampler.tokens_per_step, int):
        return min(sampler.tokens_per_step, len(positions))
    begin = positions[0] // sampler.block_length * sampler.block_length
    size = min(sampler.block_length, len(state) - begin)
    done, level = size - len(positions), 0
    for number in sampler.tokens_per_step.numbers(sampler.block_length):
        level += number
        if level > done:
            break
    return min(level - done, len(positions))


def tempered(row: Tensor, behaviour: Behaviour, forbidden: tuple[int, ...]) -> list[float]:
    """The distribution that tokens are drawn from, as logs; at temperature 0 that of temperature 1."""
    filters = {"top_k": behaviour.top_k, "top_p": behaviour.top_p}
    q = loop_probs(row.tolist(), temperature=behaviour.temperature or 1.0, **filters, forbidden=forbidden)
    return [math.log(p) if p > 0 else -math.inf for p in q]


def brute_force(sampler: Sampler, policy: TabularPolicy, state: State) -> dict[Action, Tensor]:
    """Probability of every possible action in ``state``, differentiable in the table."""
    open_ = [i for i, token in enumerate(state) if token == policy.mask_id]
    positions = [i for i in open_ if i // sampler.block_length == open_[0] // sampler.block_length]
    asked = torch.zeros(1, policy.length, dtype=torch.bool)
    asked[0, positions] = True
    rows = dict(zip(positions, policy(torch.tensor([state]), asked, asked), strict=True))
    forbidden = policy.forbidden_ids
    p = {i: probabilities(row, sampler.behaviour, forbidden) for i, row in rows.items()}
    scored = {i: row.tolist() for i, row in rows.items()}
    out = dict.fromkeys(positions, forbidden)
    if type(sampler) in TEMPERED:
        scored = {i: tempered(row, sampler.behaviour, forbidden) for i, row in rows.items()}
        out = {i: tuple(v for v, value in enumerate(values) if value == -math.inf) for i, values in scored.items()}
    model = {i: loop_probs(values, forbidden=out[i]) for i, values in scored.items()}
    best = {i: max(model[i]) for i in positions}
    k = number_committed(sampler, state, positions)
    possible = {i: [v for v in range(len(p[i])) if p[i][v] > 0] for i in positions}

    if isinstance(sampler, LowConfidence):
        # rounded, so that equal confidences are equal
        certainty = {i: [round(c, 9) for c in log_odds(values, out[i])] for i, values in scored.items()}
        total: dict[Action, Tensor] = {}
        for proposal in itertools.product(*possible.values()):
            drawn = dict(zip(positions, proposal, strict=True))
            kept = sorted(sorted(positions, key=lambda i: (-certainty[i][drawn[i]], i))[:k])
            if isinstance(sampler, DynamicLowConfidence):
                bar = round(math.log(sampler.threshold / (1 - sampler.threshold)), 9)
                sure = [i for i in positions if certainty[i][drawn[i]] > bar]
                kept = sure if len(sure) >= k else kept
            action = (tuple(kept), tuple(drawn[i] for i in kept))
            joint = torch.stack([p[i][v] for i, v in drawn.items()]).prod()
            total[action] = total[action] + joint if action in total else joint
        return total

    choices: dict[tuple[int, ...], Tensor | float] = {}
    if isinstance(sampler, RandomOrder):
        sets = list(itertools.combinations(positions, k))
        choices = dict.fromkeys(sets, 1 / len(sets))
    elif isinstance(sampler, PlackettLuceOrder):
        usable = [v for v in range(len(next(iter(rows.values())))) if v not in forbidden]
        weight = {i: row[usable].softmax(-1).max() ** (1 / sampler.order_temperature) for i, row in rows.items()}
        for order in itertools.permutations(positions, k):
            chance = torch.ones((), dtype=torch.float64)
            for place, i in enumerate(order):
                left = torch.stack([weight[j] for j in positions if j not in order[:place]]).sum()
                chance = chance * weight[i] / left
            choices[order] = chance
    elif isinstance(sampler, ConfidenceThreshold):
        sure = tuple(i for i in positions if best[i] >= sampler.threshold)
        choices[sure or (max(positions, key=lambda i: (round(best[i], 9), -i)),)] = 1.0
    else:
        scores = {
            EntropyOrder: lambda i: loop_entropy(model[i]),
            MarginOrder: lambda i: sorted(model[i])[-2] - sorted(model[i])[-1],
            LeftToRight: lambda i: i,
        }
        score = scores[TEMPERED.get(type(sampler), type(sampler))]
        choices[tuple(sorted(sorted(positions, key=lambda i: (round(score(i), 9), i))[:k]))] = 1.0
    return {
        (chosen, tokens): chance * torch.stack([p[i][v] for i, v in zip(chosen, tokens, strict=True)]).prod()
        for chosen, chance in choices.items()
        for tokens in itertools.product(*(possible[i] for i in chosen))
    }
