"""What components are run on: a small rollout with every key of the trajectory, and real services, all tiny.

Eight samples of three prompts, some of which end early; a random bidirectional Llama; ``LowConfidence``. Keys that a
likelihood would write are random numbers of the right kind.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    ADVANTAGE,
    COMMIT_STEP,
    COMPLETION_IDS,
    EXAMPLE,
    GROUP,
    ITERATION,
    PROGRESS,
    PROMPT_IDS,
    PROMPT_MASK,
    REWARD,
    SELECTED_WEIGHT,
    SEQUENCE_LENGTH,
    STEP_ADVANTAGE,
    STEP_REWARD,
    STEP_VALID,
    TOKEN_ADVANTAGE,
    TOKEN_COMMIT_RANK,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.core.trajectory import committed_at, masked_at, num_valid, number_in_group, state_at
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.tasks.base import Example

GROUPS = (7, 2, 7, 5, 2, 7, 2, 5)
"""Prompt of each sample: interleaved, groups of different sizes, ids that are no indices."""
LENGTH, TOKENS_PER_STEP, PROMPT, SLOTS = 18, 2, 5, 5
SCORES = 997
"""Size of the table of rewards; a prime."""


@dataclass(frozen=True)
class World:
    """Services and a trajectory with every key, for one check; nothing in it is shared with another."""

    policy: Policy
    sampler: Sampler
    full: TensorDict
    dtype: torch.dtype

    def score(self, ids: Tensor, example: Tensor) -> Tensor:
        """The ``score`` service: rewards [N] from a table, a function of completion and puzzle."""
        return self._table()[(_code(ids) + 31 * example) % SCORES]

    def restart(self, tensordict: TensorDictBase, step: Tensor, n: int) -> Tensor:
        """The ``restart`` service: rewards [B, K, n] from a table, a function of the state; 0 where the weight is."""
        ids = state_at(tensordict[COMPLETION_IDS], tensordict[COMMIT_STEP], step, self.policy.mask_id)
        code = (_code(ids) + 31 * tensordict[EXAMPLE][:, None])[..., None] + 7919 * torch.arange(n)
        # a finished state has one completion, so that all n rewards are its own
        done = ~masked_at(tensordict[COMMIT_STEP], step).any(-1)
        rewards = torch.where(done[..., None], self._table()[code[..., :1] % SCORES], self._table()[code % SCORES])
        return rewards * (tensordict[SELECTED_WEIGHT] > 0)[..., None]

    def examples(self, example: Tensor) -> list[Example]:
        """The ``examples`` service: a puzzle for each index, with a preferred and another completion."""
        found = []
        for index in example.tolist():
            chosen, rejected = "abcdef"[: 1 + index % 6], "fedcba"[: 1 + index % 5]
            found.append(Example("abc", chosen, {"chosen": chosen, "rejected": rejected}))
        return found

    def services(self, component: Any, seed: int = 0) -> dict[str, Any]:
        """The services that a component requires."""
        available = {
            "policy": self.policy,
            "sampler": self.sampler,
            "score": self.score,
            "restart": self.restart,
            "examples": self.examples,
            "generator": torch.Generator().manual_seed(seed),
        }
        return {name: available[name] for name in component.requires}

    def _table(self) -> Tensor:
        generator = torch.Generator().manual_seed(11)
        return torch.randint(0, 5, (SCORES,), generator=generator).to(self.dtype) / 4


def _code(ids: Tensor) -> Tensor:
    """A number for each state: int64 [...] from int64 [..., L]."""
    return (ids * (torch.arange(ids.shape[-1]) * 37 + 101)).sum(-1)


def world(dtype: torch.dtype = torch.float32) -> World:
    """A fresh copy of the world, in float32 or float64."""
    policy, sampler, full = _made(dtype)
    shared = {id(policy.tokenizer): policy.tokenizer}
    return World(copy.deepcopy(policy, shared), copy.deepcopy(sampler), full.clone(), dtype)


@functools.cache
def _made(dtype: torch.dtype) -> tuple[Policy, Sampler, TensorDict]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = CharacterLlama("abcdef", hidden_size=16, num_layers=1, num_heads=2).load()
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)  # logits far from uniform
    policy.to(dtype)
    sampler = LowConfidence(LENGTH, TOKENS_PER_STEP)
    return policy, sampler, _complete(_rollout(policy, sampler), policy, dtype)


def prompts(policy: Policy) -> TensorDict:
    """Left-padded prompts of different lengths, the same for the samples of a group."""
    generator = torch.Generator().manual_seed(1)
    group = torch.tensor(GROUPS)
    ids = torch.randint(4, policy.vocab_size, (max(GROUPS) + 1, PROMPT), generator=generator)[group]
    mask = torch.arange(PROMPT) >= (group % 4)[:, None]
    keys = {PROMPT_IDS: ids.masked_fill(~mask, policy.pad_id), PROMPT_MASK: mask, "group": group}
    return TensorDict({**keys, "example": group + 3, "seed": sample_seeds(len(GROUPS), "cpu", 5)}, [len(GROUPS)])


def _rollout(policy: Policy, sampler: Sampler) -> TensorDict:
    """The first rollout in which at least two rows end early and one does not."""
    asked = copy.deepcopy(sampler)
    asked.ask_for(asked.optional_keys)
    for seed in range(1000):
        found = asked(prompts(policy), policy=policy, generator=torch.Generator().manual_seed(seed))
        steps = found[STEP_VALID].sum(-1)
        if (steps < sampler.max_steps - 1).sum() >= 2 and (steps == sampler.max_steps).any() and steps.min() >= 2:
            return found
    raise RuntimeError("no rollout in which some rows end early")


def _complete(trajectory: TensorDict, policy: Policy, dtype: torch.dtype) -> TensorDict:
    """Adds every key that no sampler writes."""
    generator = torch.Generator().manual_seed(2)
    batch, length = trajectory[COMPLETION_IDS].shape
    real = functools.partial(torch.randn, generator=generator, dtype=dtype)
    trajectory[REWARD] = torch.randint(0, 5, (batch,), generator=generator).to(dtype) / 4
    trajectory[ADVANTAGE] = real(batch)
    trajectory[ITERATION] = torch.zeros(batch, dtype=torch.int64)
    trajectory[SEQUENCE_LENGTH] = (trajectory[COMMIT_STEP] < trajectory[STEP_VALID].shape[1]).sum(-1)
    trajectory[TOKEN_ADVANTAGE] = real(batch, length)
    order = torch.rand(batch, length, generator=generator).argsort(-1)
    trajectory[TOKEN_COMMIT_RANK] = (order % TOKENS_PER_STEP).to(torch.int16)
    trajectory["selected"] = TensorDict(_selected(trajectory, policy, real, generator), [batch])
    trajectory[PROGRESS] = torch.full((batch,), 0.25, dtype=dtype)
    trajectory[STEP_REWARD] = torch.randint(0, 5, trajectory[STEP_VALID].shape, generator=generator).to(dtype) / 4
    trajectory[STEP_ADVANTAGE] = real(*trajectory[STEP_VALID].shape)
    trajectory["tree"] = _tree(trajectory)
    return trajectory


def _tree(trajectory: TensorDict) -> TensorDict:
    """Nodes of trees of height 2 with two children per node, as far as a group has samples."""
    number = number_in_group(trajectory[GROUP])
    node = torch.stack([number // 2, number], -1)
    first = torch.tensor([0, trajectory[STEP_VALID].shape[1] // 2])
    return TensorDict({"node": node, "step": first.expand_as(node).clone()}, trajectory.batch_size)


def _selected(trajectory: TensorDict, policy: Policy, real: Any, generator: torch.Generator) -> dict[str, Tensor]:
    valid = trajectory[STEP_VALID]
    batch, num_steps = valid.shape
    noise = torch.rand(batch, num_steps, generator=generator).masked_fill(~valid, 2)
    step = noise.argsort(-1)[:, :SLOTS]
    used = valid.gather(1, step) & (torch.arange(batch) != batch - 1)[:, None]  # the last row selects nothing
    used[0, -1] = False  # and the first, a long one, has a free slot
    step = step.masked_fill(~used, num_steps).sort(-1).values
    used = step < num_steps
    step = step.masked_fill(~used, 0)
    weight = 0.5 + torch.rand(batch, SLOTS, generator=generator)
    mask = committed_at(trajectory[COMMIT_STEP], step) & used[..., None]  # tokens by position
    found = {"step": step, "weight": (weight * used).to(real.keywords["dtype"]), "token_mask": mask}
    found["end"] = torch.minimum(step + 2, num_valid(trajectory)[:, None])
    found["reward"], found["advantage"] = real(batch, SLOTS).abs() * used, real(batch, SLOTS) * used
    found["entropy"], found["correction"] = real(batch, SLOTS).abs() * used, 1 + 0.1 * used
    old, old_token = -real(batch, SLOTS).abs(), -real(*mask.shape).abs()
    for name in ("old_log_prob", "log_prob", "ref_log_prob"):
        found[name] = (old if name.startswith("old") else old + 0.1 * real(batch, SLOTS)) * used
    for name in ("value", "old_value", "return", "token_advantage"):
        found[name] = real(*mask.shape) * mask
    for name in ("old_token_log_prob", "token_log_prob", "ref_token_log_prob"):
        found[name] = (old_token if name.startswith("old") else old_token + 0.1 * real(*old_token.shape)) * mask
    for name in ("distribution", "ref_distribution"):
        logits = real(*mask.shape, policy.vocab_size)
        logits[..., list(policy.forbidden_ids)] = -torch.inf
        found[name] = torch.where(mask[..., None], logits.log_softmax(-1), 0.0)
    return found
