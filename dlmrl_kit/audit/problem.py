"""Small problems: a policy, prompts and a reward for every completion, all in float64.

J = mean over prompts of sum over trajectories of P(trajectory) * R(prompt, completion)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.audit.policies import PolicyKind, SmallPolicy
from dlmrl_kit.core.keys import EXAMPLE, GROUP, PROGRESS, PROMPT_IDS, PROMPT_MASK, SEED
from dlmrl_kit.core.seeding import sample_seeds

RewardKind = Literal["random", "sparse", "parity"]


@dataclass(frozen=True)
class Problem:
    """A decision process that can be listed completely.

    Args:
        vocab: tokens that may be committed.
        length: L, positions.
        tokens_per_step, block_length: how the sampler goes through them.
        prompts: number of prompts, at most ``vocab``; all equally likely.
        reward: ``"random"`` (standard normal per completion), ``"sparse"`` (1 for one completion of each prompt) or
            ``"parity"`` (1 where the tokens and the prompt sum to an even number).
        policy: ``"tabular"``, ``"network"`` or ``"deep network"``.
        eos: the last token ends the text.
        seed: of policy and reward.
        spread: standard deviation of the logits, about; large makes the policy certain.
    """

    vocab: int = 2
    length: int = 3
    tokens_per_step: int = 1
    block_length: int | None = None
    prompts: int = 1
    reward: RewardKind = "random"
    policy: PolicyKind = "tabular"
    eos: bool = False
    seed: int = 0
    spread: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.prompts <= self.vocab:
            raise ValueError(f"Problem.prompts must be from 1 to vocab = {self.vocab}, got {self.prompts}")

    @cached_property
    def denoiser(self) -> SmallPolicy:
        """The policy, the same object each time."""
        return SmallPolicy(self.policy, self.vocab, self.length, self.prompts, self.eos, self.seed, self.spread)

    @cached_property
    def table(self) -> Tensor:
        """Rewards float64 [prompts, vocab ** length], by the completion read as a number in base ``vocab``."""
        generator = torch.Generator().manual_seed(self.seed + 7919)
        size = (self.prompts, self.vocab**self.length)
        if self.reward == "random":
            return torch.randn(size, generator=generator, dtype=torch.float64)
        target = torch.randint(size[1], (self.prompts, 1), generator=generator)
        return torch.zeros(size, dtype=torch.float64).scatter(1, target, 1.0)

    def score(self, ids: Tensor, example: Tensor) -> Tensor:
        """The ``score`` service: rewards float64 [N] of completions int64 [N, L]; a token out of range counts as 0."""
        digits = torch.where(ids < self.vocab, ids, 0)
        if self.reward == "parity":  # a formula: no table, however long completions are
            return ((digits.sum(-1) + example) % 2 == 0).double()
        return self.table[example, (digits * self.vocab ** torch.arange(self.length)).sum(-1)]

    def batch(self, copies: int = 1) -> TensorDict:
        """The prompts, each ``copies`` times in a row; ``group`` and ``example`` are the index of the prompt."""
        index = torch.arange(self.prompts).repeat_interleave(copies)
        prompt = index[:, None]
        batch = TensorDict({PROMPT_IDS: prompt, PROMPT_MASK: torch.ones_like(prompt).bool()}, [len(index)])
        batch.set(GROUP, index).set(EXAMPLE, index).set(SEED, sample_seeds(len(index), "cpu", self.seed))
        return batch.set(PROGRESS, torch.full(index.shape, 0.5, dtype=torch.float64))

    def described(self) -> dict[str, Any]:
        """All settings, for reports."""
        return dataclasses.asdict(self)


SHAPES: tuple[dict[str, Any], ...] = (
    {"vocab": 2, "length": 3},
    {"vocab": 3, "length": 2, "prompts": 2},
    {"vocab": 2, "length": 4, "tokens_per_step": 1, "block_length": 2},
    {"vocab": 2, "length": 4, "tokens_per_step": 2, "eos": True},
    {"vocab": 2, "length": 3, "prompts": 2},
    {"vocab": 3, "length": 2},
)
"""Shapes that ``random_problems`` goes through."""


DEEP_SHAPES: tuple[dict[str, Any], ...] = (
    {"vocab": 2, "length": 4, "block_length": 2},
    {"vocab": 2, "length": 3, "prompts": 2},
    {"vocab": 2, "length": 4, "tokens_per_step": 2, "eos": True},
    {"vocab": 2, "length": 4, "block_length": 2, "prompts": 2},
)
"""Shapes for recipes with a cache: blocks with something behind them, and single blocks."""


def random_problems(count: int, seed: int = 0, deep: bool = False) -> list[Problem]:
    """Problems of every shape, policy and reward in turn, with different random numbers.

    Args:
        count: how many.
        seed: of the random numbers.
        deep: with deep networks, on which a cache is not exact, instead of tables and networks.
    """
    rewards: tuple[RewardKind, ...] = ("random", "parity", "sparse")
    policies: tuple[PolicyKind, ...] = ("deep network",) if deep else ("tabular", "network")
    shapes = DEEP_SHAPES if deep else SHAPES
    return [
        Problem(
            **shapes[i % len(shapes)],
            reward=rewards[i % len(rewards)],
            policy=policies[i % len(policies)],
            seed=1000 * seed + i,
        )
        for i in range(count)
    ]
