"""What components are run on: a small rollout with every key of the trajectory, and real services, all tiny.

Eight samples of three prompts, some of which end early; a random bidirectional Llama; ``LowConfidence``. Keys that a
likelihood would write are random numbers of the right kind.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

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
    KEYS,
    PROGRESS,
    PROMPT_IDS,
    PROMPT_MASK,
    REWARD,
    SEED,
    SELECTED_ADVANTAGE,
    SELECTED_CORRECTION,
    SELECTED_DISTRIBUTION,
    SELECTED_END,
    SELECTED_ENTROPY,
    SELECTED_LOG_PROB,
    SELECTED_OLD_LOG_PROB,
    SELECTED_OLD_TOKEN_LOG_PROB,
    SELECTED_OLD_VALUE,
    SELECTED_REF_DISTRIBUTION,
    SELECTED_REF_LOG_PROB,
    SELECTED_REF_TOKEN_LOG_PROB,
    SELECTED_RETURN,
    SELECTED_REWARD,
    SELECTED_STEP,
    SELECTED_TOKEN_ADVANTAGE,
    SELECTED_TOKEN_LOG_PROB,
    SELECTED_TOKEN_MASK,
    SELECTED_VALUE,
    SELECTED_WEIGHT,
    SEQUENCE_LENGTH,
    STEP_ADVANTAGE,
    STEP_REWARD,
    STEP_VALID,
    TOKEN_ADVANTAGE,
    TOKEN_COMMIT_RANK,
    Key,
    KeySpec,
    declared_keys,
    letters_of,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.core.trajectory import committed_at, masked_at, num_valid, state_at
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.rollout.services import Services
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.tasks.base import Example

GROUPS = (7, 2, 7, 5, 2, 7, 2, 5)
"""Prompt of each sample: interleaved, groups of different sizes, ids that are no indices."""
LENGTH, TOKENS_PER_STEP, PROMPT, ENTRIES = 18, 2, 5, 5
OTHERS = 2
"""What the letter D counts in random keys of plugins."""
SCORES = 997
"""Size of the table of rewards; a prime."""


class World(Services):
    """Services and a trajectory with every key, for one check; nothing in it is shared with another.

    Args:
        policy, sampler: as ``Services``.
        full: TensorDict [8], the trajectory.
        dtype: of its real numbers.
    """

    def __init__(self, policy: Policy, sampler: Sampler, full: TensorDict, dtype: torch.dtype) -> None:
        super().__init__(policy, sampler)
        self.full = full
        self.dtype = dtype

    def score(self, ids: Tensor, example: Tensor) -> Tensor:
        """Rewards [N] from a table: a function of the completion and the example."""
        rewards: Tensor = self._table()[(_code(ids) + 31 * example) % SCORES]
        return rewards

    def restart(self, tensordict: TensorDictBase, step: Tensor, n: int) -> Tensor:
        """Rewards [B, K, n] from a table: a function of the state; 0 where the weight is."""
        ids = state_at(tensordict[COMPLETION_IDS], tensordict[COMMIT_STEP], step, self.policy.mask_id)
        code = (_code(ids) + 31 * tensordict[EXAMPLE][:, None])[..., None] + 7919 * torch.arange(n)
        # a finished state has one completion, so that all n rewards are its own
        done = ~masked_at(tensordict[COMMIT_STEP], step).any(-1)
        rewards = torch.where(done[..., None], self._table()[code[..., :1] % SCORES], self._table()[code % SCORES])
        used: Tensor = tensordict[SELECTED_WEIGHT] > 0
        return rewards * used[..., None]

    def examples(self, example: Tensor) -> list[Example]:
        """Returns an example for each index, with a preferred and another completion."""
        found = []
        for index in example.tolist():
            chosen, rejected = "abcdef"[: 1 + index % 6], "fedcba"[: 1 + index % 5]
            found.append(Example("abc", chosen, {"chosen": chosen, "rejected": rejected}))
        return found

    def add_declared(self) -> None:
        """Adds the keys that plugins declare: their examples, or random numbers, at least 0 and below 1.

        Random ones are 0 and False where the weight is.
        """
        declared = declared_keys()
        sizes = {"D": OTHERS}
        for key, value in self.full.exclude(*declared).items(include_nested=True, leaves_only=True):
            if key in KEYS:
                sizes |= zip(letters_of(key), value.shape, strict=True)
        for number, (key, spec) in enumerate(declared.items()):
            if spec.example is not None:
                self.full.set(key, spec.example(self.full))
                continue
            letters = letters_of(key)
            values = torch.rand([sizes[letter] for letter in letters], generator=torch.Generator().manual_seed(number))
            if letters[1:2] == ["K"]:
                used = self.full[SELECTED_WEIGHT] > 0
                values = values * used.reshape(*used.shape, *[1] * (values.dim() - 2))
            real = spec.dtype.startswith("float")
            self.full.set(key, values.to(self.dtype) if real else values.round().to(_dtype(spec)))

    def _table(self) -> Tensor:
        return torch.randint(0, 5, (SCORES,), generator=torch.Generator().manual_seed(11)).to(self.dtype) / 4


def _code(ids: Tensor) -> Tensor:
    """Returns a number for each state: int64 [...] from int64 [..., L]."""
    return (ids * (torch.arange(ids.shape[-1]) * 37 + 101)).sum(-1)


def world(dtype: torch.dtype = torch.float32, seed: int = 0) -> World:
    """Returns a fresh copy of the world, in float32 or float64, with seeds of the samples derived from ``seed``."""
    policy, sampler, full = _made(dtype)
    shared = {id(policy.tokenizer): policy.tokenizer}
    full = full.clone().set(SEED, sample_seeds(len(full), "cpu", seed, "world"))
    made = World(copy.deepcopy(policy, shared), copy.deepcopy(sampler), full, dtype)
    made.add_declared()
    return made


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


def _prompts(policy: Policy) -> TensorDict:
    """Left-padded prompts of different lengths, the same for the samples of a group."""
    generator = torch.Generator().manual_seed(1)
    group = torch.tensor(GROUPS)
    ids = torch.randint(4, policy.vocab_size, (max(GROUPS) + 1, PROMPT), generator=generator)[group]
    mask = torch.arange(PROMPT) >= (group % 4)[:, None]
    keys = {PROMPT_IDS: ids.masked_fill(~mask, policy.pad_id), PROMPT_MASK: mask, GROUP: group}
    return TensorDict({**keys, EXAMPLE: group + 3}, [len(GROUPS)])


def _rollout(policy: Policy, sampler: Sampler) -> TensorDict:
    """Returns the first rollout in which at least two rows end early and one does not."""
    for seed in range(1000):
        prompts = _prompts(policy).set(SEED, sample_seeds(len(GROUPS), "cpu", seed))
        found: TensorDict = sampler(prompts, policy=policy, keys=sampler.optional_keys)
        steps = found[STEP_VALID].sum(-1)
        if (steps < sampler.max_steps - 1).sum() >= 2 and (steps == sampler.max_steps).any() and steps.min() >= 2:
            return found
    raise RuntimeError("no rollout in which some rows end early")


def _complete(trajectory: TensorDict, policy: Policy, dtype: torch.dtype) -> TensorDict:
    """Adds every key that no sampler writes."""
    generator = torch.Generator().manual_seed(2)
    batch, length = trajectory[COMPLETION_IDS].shape
    steps = trajectory[STEP_VALID].shape

    def real(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    trajectory.set(REWARD, torch.randint(0, 5, (batch,), generator=generator).to(dtype) / 4)
    trajectory.set(ADVANTAGE, real(batch))
    trajectory.set(ITERATION, torch.zeros(batch, dtype=torch.int64))
    trajectory.set(SEQUENCE_LENGTH, (trajectory[COMMIT_STEP] < steps[1]).sum(-1))
    trajectory.set(TOKEN_ADVANTAGE, real(batch, length))
    order = torch.rand(batch, length, generator=generator).argsort(-1)
    trajectory.set(TOKEN_COMMIT_RANK, (order % TOKENS_PER_STEP).to(torch.int16))
    for key, value in _selected(trajectory, policy, real, generator).items():
        trajectory.set(key, value)
    trajectory.set(PROGRESS, torch.full((batch,), 0.25, dtype=dtype))
    trajectory.set(STEP_REWARD, torch.randint(0, 5, steps, generator=generator).to(dtype) / 4)
    trajectory.set(STEP_ADVANTAGE, real(*steps))
    return trajectory


def _dtype(spec: KeySpec) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return dtype


def _selected(
    trajectory: TensorDict, policy: Policy, real: Callable[..., Tensor], generator: torch.Generator
) -> dict[Key, Tensor]:
    valid = trajectory[STEP_VALID]
    batch, num_steps = valid.shape
    noise = torch.rand(batch, num_steps, generator=generator).masked_fill(~valid, 2)
    step = noise.argsort(-1)[:, :ENTRIES]
    used = valid.gather(1, step) & (torch.arange(batch) != batch - 1)[:, None]  # the last row selects nothing
    used[0, -1] = False  # and the first, a long one, has an entry to spare
    step = step.masked_fill(~used, num_steps).sort(-1).values
    used = step < num_steps
    step = step.masked_fill(~used, 0)
    weight = 0.5 + torch.rand(batch, ENTRIES, generator=generator)
    mask = committed_at(trajectory[COMMIT_STEP], step) & used[..., None]  # tokens by position
    found: dict[Key, Tensor] = {SELECTED_STEP: step, SELECTED_TOKEN_MASK: mask}
    found[SELECTED_END] = torch.minimum(step + 2, num_valid(trajectory)[:, None])
    found[SELECTED_REWARD] = real(batch, ENTRIES).abs() * used
    found[SELECTED_WEIGHT] = (weight * used).to(found[SELECTED_REWARD].dtype)
    found[SELECTED_ADVANTAGE] = real(batch, ENTRIES) * used
    found[SELECTED_ENTROPY] = real(batch, ENTRIES).abs() * used
    found[SELECTED_CORRECTION] = (1 + 0.1 * used).to(found[SELECTED_REWARD].dtype)
    old, old_token = -real(batch, ENTRIES).abs(), -real(*mask.shape).abs()
    found[SELECTED_OLD_LOG_PROB] = old * used
    for key in (SELECTED_LOG_PROB, SELECTED_REF_LOG_PROB):
        found[key] = (old + 0.1 * real(batch, ENTRIES)) * used
    for key in (SELECTED_VALUE, SELECTED_OLD_VALUE, SELECTED_RETURN, SELECTED_TOKEN_ADVANTAGE):
        found[key] = real(*mask.shape) * mask
    found[SELECTED_OLD_TOKEN_LOG_PROB] = old_token * mask
    for key in (SELECTED_TOKEN_LOG_PROB, SELECTED_REF_TOKEN_LOG_PROB):
        found[key] = (old_token + 0.1 * real(*old_token.shape)) * mask
    for key in (SELECTED_DISTRIBUTION, SELECTED_REF_DISTRIBUTION):
        logits = real(*mask.shape, policy.vocab_size)
        logits[..., list(policy.forbidden_ids)] = -torch.inf
        found[key] = torch.where(mask[..., None], logits.log_softmax(-1), 0.0)
    return found
