"""The problems of the audit: a small policy, prompts and a reward for every completion, all in float64.

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

RewardKind = Literal["random", "sparse", "parity", "constant"]


@dataclass(frozen=True)
class Problem:
    """A decision process so small that all its trajectories can be listed.

    Args:
        vocab: number of tokens that may be committed.
        length: L, the positions of a completion.
        tokens_per_step, block_length: settings that the sampler gets.
        prompts: number of prompts, at most ``vocab``; all are equally likely.
        reward: ``"random"`` (standard normal per completion), ``"sparse"`` (1 for one completion of each prompt),
            ``"parity"`` (1 where the tokens and the prompt sum to an even number) or ``"constant"`` (1 for every
            completion: grad J is 0, and an estimator that moves is biased).
        policy: ``"tabular"``, ``"network"`` or ``"deep network"``.
        eos: how many of the last tokens end the text, each of them.
        seed: of the random policy and rewards.
        spread: standard deviation of the logits, about; if large, the policy is certain of its predictions.

    Raises:
        ValueError: ``prompts`` is out of range.
    """

    vocab: int = 2
    length: int = 3
    tokens_per_step: int = 1
    block_length: int | None = None
    prompts: int = 1
    reward: RewardKind = "random"
    policy: PolicyKind = "tabular"
    eos: int = 0
    seed: int = 0
    spread: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.prompts <= self.vocab:
            raise ValueError(f"Problem.prompts must be from 1 to vocab = {self.vocab}, got {self.prompts}")

    @cached_property
    def denoiser(self) -> SmallPolicy:
        """The policy; always the same object."""
        return SmallPolicy(self.policy, self.vocab, self.length, self.prompts, self.eos, self.seed, self.spread)

    @cached_property
    def table(self) -> Tensor:
        """Rewards float64 [prompts, vocab ** length], with completions read as numbers in base ``vocab``."""
        generator = torch.Generator().manual_seed(self.seed + 7919)
        size = (self.prompts, self.vocab**self.length)
        if self.reward == "random":
            return torch.randn(size, generator=generator, dtype=torch.float64)
        target = torch.randint(size[1], (self.prompts, 1), generator=generator)
        return torch.zeros(size, dtype=torch.float64).scatter(1, target, 1.0)

    def score(self, ids: Tensor, example: Tensor) -> Tensor:
        """Returns rewards float64 [N] of completions int64 [N, L]; tokens out of range, such as padding, count as 0."""
        digits = torch.where(ids < self.vocab, ids, 0)
        if self.reward == "constant":
            return torch.ones(len(ids), dtype=torch.float64)
        if self.reward == "parity":  # needs no table, which would be too large for long completions
            return ((digits.sum(-1) + example) % 2 == 0).double()
        return self.table[example, (digits * self.vocab ** torch.arange(self.length)).sum(-1)]

    def batch(self, copies: int = 1) -> TensorDict:
        """Returns a batch of the prompts, each ``copies`` times in a row.

        It has the keys that a sampler reads; ``group`` and ``example`` are the index of the prompt.
        """
        index = torch.arange(self.prompts).repeat_interleave(copies)
        prompt = index[:, None]
        batch = TensorDict({PROMPT_IDS: prompt, PROMPT_MASK: torch.ones_like(prompt).bool()}, [len(index)])
        batch.set(GROUP, index).set(EXAMPLE, index).set(SEED, sample_seeds(len(index), "cpu", self.seed))
        return batch.set(PROGRESS, torch.full(index.shape, 0.5, dtype=torch.float64))

    def described(self) -> dict[str, Any]:
        """Returns all settings, for reports."""
        return dataclasses.asdict(self)


SHAPES: tuple[dict[str, Any], ...] = (
    {"vocab": 2, "length": 3},
    {"vocab": 3, "length": 2, "prompts": 2},
    {"vocab": 2, "length": 4, "tokens_per_step": 1, "block_length": 2},
    {"vocab": 2, "length": 4, "tokens_per_step": 2, "eos": True},
    {"vocab": 2, "length": 3, "prompts": 2},
    {"vocab": 3, "length": 2},
)
"""The shapes that ``random_problems`` goes through."""


DEEP_SHAPES: tuple[dict[str, Any], ...] = (
    {"vocab": 2, "length": 4, "block_length": 2},
    {"vocab": 2, "length": 3, "prompts": 2},
    {"vocab": 2, "length": 4, "tokens_per_step": 2, "eos": True},
    {"vocab": 2, "length": 4, "block_length": 2, "prompts": 2},
)
"""The shapes for recipes with a cache: some with positions after the current block, some of a single block."""


def random_problems(count: int, seed: int = 0, deep: bool = False) -> list[Problem]:
    """Makes problems that go through all shapes, policies and rewards in turn, each with its own random numbers.

    Args:
        count: how many.
        seed: of the random numbers.
        deep: whether policies are deep networks, on which a cache is not exact, instead of tables and networks.
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
