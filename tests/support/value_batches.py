"""Trajectories with segments and values, and random batches of values by token."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from support.policies import tiny_policy
from support.rollouts import prompts
from support.seeds import seeded
from tensordict import TensorDict

from dlmrl_kit.normalisers.means import FixedLength, PerStep, PerToken
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.selectors.shrunk_steps import ShrunkSteps
from dlmrl_kit.values.token_value import TokenValue

LENGTH = 8
POLICY = tiny_policy(hidden=16, layers=1, characters="abc", initializer_range=0.6).double()


def rolled_out(shrink: int = 2, rows: int = 12) -> tuple[Sampler, TensorDict]:
    """Trajectories with segments selected; some hold an end of text with tokens committed behind it."""
    sampler = RandomOrder(LENGTH, 1, stop_at_eos=True)
    data = sampler(seeded(prompts(POLICY, rows), 1), policy=POLICY)
    data["reward"] = torch.randn(rows, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    data = ShrunkSteps(shrink)(data, keys=[("selected", "end")])
    data["selected", "weight"][0] = 0  # a row that selects nothing
    return sampler, data


def counted(data: TensorDict, b: int, k: int, after_eos: bool = False) -> list[int]:
    """Positions of the tokens of segment k of row b that count."""
    if data["selected", "weight"][b, k] == 0:
        return []
    tokens, commit = data["completion_ids"][b].tolist(), data["commit_step"][b].tolist()
    start, end = int(data["selected", "step"][b, k]), int(data["selected", "end"][b, k])
    last = tokens.index(POLICY.eos_id) if POLICY.eos_id in tokens and not after_eos else LENGTH
    return [i for i in range(LENGTH) if start <= commit[i] < end and i <= last]


def segments(data: TensorDict) -> list[tuple[int, int]]:
    rows, columns = data["selected", "weight"].shape
    return list(itertools.product(range(rows), range(columns)))


class Opinionated(TokenValue):
    """A value model whose head does not start at zero."""

    def attach(self, policy: TransformersPolicy) -> None:
        new = self.head is None
        super().attach(policy)
        assert self.head is not None
        if new:
            with torch.no_grad():
                self.head.weight.copy_(torch.linspace(-1, 2, self.head.in_features))


def batch(seed: int = 0) -> TensorDict:
    """Numbers of every kind; tokens by position, padding that is not finite."""
    generator = torch.Generator().manual_seed(seed)
    shape = (5, 3, 6)
    mask = torch.rand(shape, generator=generator) < 0.5
    weight = torch.rand(shape[:2], generator=generator, dtype=torch.float64) + 0.5
    weight[1, 2] = weight[3] = 0
    data = TensorDict({("selected", "weight"): weight, ("selected", "token_mask"): mask}, [5])
    data["selected", "advantage"] = torch.randn(shape[:2], generator=generator, dtype=torch.float64)
    for name in ("value", "old_value", "return", "token_advantage", "token_log_prob", "old_token_log_prob"):
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
        data["selected", name] = numbers.masked_fill(~mask, torch.nan)
    return data


def loop_shares(data: TensorDict, normaliser: Any) -> dict[tuple[int, int, int], float]:
    """Weight of each token in the mean."""
    weight, mask = data["selected", "weight"].tolist(), data["selected", "token_mask"].tolist()
    tokens = [
        (b, k, i) for b, k, i in itertools.product(range(5), range(3), range(6)) if mask[b][k][i] and weight[b][k] > 0
    ]
    if isinstance(normaliser, FixedLength):
        return {t: weight[t[0]][t[1]] / normaliser.length / 5 for t in tokens}
    if isinstance(normaliser, PerStep):
        steps = {t[:2] for t in tokens}
        total = sum(weight[b][k] for b, k in steps)
        return {t: weight[t[0]][t[1]] / sum(mask[t[0]][t[1]]) / total for t in tokens}
    total = sum(weight[b][k] for b, k, _ in tokens)
    return {t: weight[t[0]][t[1]] / total for t in tokens}


NORMALISERS = [PerToken(), PerStep(), FixedLength(7)]
