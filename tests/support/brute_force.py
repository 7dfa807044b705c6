"""Every action of a state with its probability by brute force, which knows nothing of the kit's formulas."""

from __future__ import annotations

import itertools

import torch
from support.oracles import log_odds, loop_entropy, loop_probs
from support.policies import TabularPolicy
from torch import Tensor

from dlmrl_kit.core.behaviour import Behaviour
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.margin_order import MarginOrder
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder

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


def brute_force(sampler: Sampler, policy: TabularPolicy, state: State) -> dict[Action, Tensor]:
    """Probability of every possible action in ``state``, differentiable in the table."""
    open_ = [i for i, token in enumerate(state) if token == policy.mask_id]
    positions = [i for i in open_ if i // sampler.block_length == open_[0] // sampler.block_length]
    asked = torch.zeros(1, policy.length, dtype=torch.bool)
    asked[0, positions] = True
    rows = dict(zip(positions, policy(torch.tensor([state]), asked, asked), strict=True))
    forbidden = policy.forbidden_ids
    p = {i: probabilities(row, sampler.behaviour, forbidden) for i, row in rows.items()}
    model = {i: loop_probs(row.tolist(), forbidden=forbidden) for i, row in rows.items()}
    best = {i: max(model[i]) for i in positions}
    k = min(sampler.tokens_per_step, len(positions))
    possible = {i: [v for v in range(len(p[i])) if p[i][v] > 0] for i in positions}

    if isinstance(sampler, LowConfidence):
        # rounded, so that equal confidences are equal
        certainty = {i: [round(c, 9) for c in log_odds(row.tolist(), forbidden)] for i, row in rows.items()}
        total: dict[Action, Tensor] = {}
        for proposal in itertools.product(*possible.values()):
            drawn = dict(zip(positions, proposal, strict=True))
            kept = sorted(sorted(positions, key=lambda i: (-certainty[i][drawn[i]], i))[:k])
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
        score = scores[type(sampler)]
        choices[tuple(sorted(sorted(positions, key=lambda i: (round(score(i), 9), i))[:k]))] = 1.0
    return {
        (chosen, tokens): chance * torch.stack([p[i][v] for i, v in zip(chosen, tokens, strict=True)]).prod()
        for chosen, chance in choices.items()
        for tokens in itertools.product(*(possible[i] for i in chosen))
    }
