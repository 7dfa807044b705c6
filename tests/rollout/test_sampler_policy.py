"""Samplers as policies of the environment do there what they do alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.denoising_environment import LENGTH, QUIET, WHOLE, Share, build, letters
from support.policies import tiny_policy
from support.rollouts import SAMPLERS, make
from support.seeds import seeded
from support.statistics import chi_square, chi_square_limit
from tensordict import TensorDict
from torch import Tensor
from torchrl.collectors import Collector

from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.rollout.environment import DenoisingEnv, SamplerPolicy, valid_steps
from dlmrl_kit.samplers.base import Sampler


@pytest.fixture(scope="module")
def policy() -> TransformersPolicy:
    return tiny_policy()


def sampler_and_rollout(
    sampler: Sampler, policy: TransformersPolicy, seed: int = 0, **options: Any
) -> tuple[TensorDict, TensorDict, DenoisingEnv]:
    """The sampler's own trajectories and the environment's, for the same prompts and noise."""
    env = build(policy, batch_size=12, block_length=sampler.block_length, stop_at_eos=sampler.stop_at_eos, **options)
    env.set_seed(seed)
    single = bool(options.get("single_commit"))
    rollout = env.rollout(LENGTH, SamplerPolicy(sampler, policy, single), **WHOLE)
    prompt = rollout[:, 0].select("prompt_ids", "prompt_mask", "seed").clone()
    return sampler(prompt, policy=policy), rollout, env


def same_trajectories(own: TensorDict, rollout: TensorDict) -> None:
    last = rollout[:, -1]["next"]
    assert (last["completion_ids"] == own["completion_ids"]).all()
    happened = own["commit_step"] < own["step", "valid"].sum(-1, keepdim=True)
    assert (last["commit_step"][happened] == own["commit_step"][happened]).all()
    assert (last["commit_step"][~happened] == LENGTH).all()
    valid = valid_steps(rollout)
    width = valid.shape[1]
    assert (valid == own["step", "valid"][:, :width]).all()
    assert not own["step", "valid"][:, width:].any()
    torch.testing.assert_close(
        rollout["action_log_prob"].where(valid, 0), own["step", "log_prob"][:, :width], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tokens_per_step", [1, 3])
@pytest.mark.parametrize("cls", SAMPLERS)
def test_a_sampler_does_in_the_environment_what_it_does_alone(
    policy: TransformersPolicy, cls: type[Sampler], tokens_per_step: int, temperature: float
) -> None:
    for options in ({}, {"block_length": 2}, {"stop_at_eos": False}):
        sampler = make(cls, LENGTH, tokens_per_step, temperature=temperature, **options)
        own, rollout, env = sampler_and_rollout(sampler, policy)
        same_trajectories(own, rollout)
        rewards = [env.task.score(text, None)["reward"] for text in texts(policy, own["completion_ids"])]
        valid = valid_steps(rollout)
        reward = rollout["next", "reward"].squeeze(-1)
        assert reward.where(valid, 0).sum(-1).tolist() == rewards
        assert (rollout["next", "done"].squeeze(-1).long().where(valid, 0).sum(-1) == 1).all()
    if sampler.max_commits == 1:
        same_trajectories(*sampler_and_rollout(sampler, policy, single_commit=True)[:2])


def texts(policy: TransformersPolicy, ids: Tensor) -> list[str]:
    rows = [row[: row.index(policy.eos_id)] if policy.eos_id in row else row for row in ids.tolist()]
    return policy.tokenizer.batch_decode(rows, skip_special_tokens=True)


def test_finished_rows_are_repeated_by_rollout_and_marked_by_valid_steps(policy: TransformersPolicy) -> None:
    """The trap: without ``valid_steps`` the reward of a row that ends early is counted several times."""
    env = build(policy, batch_size=2)
    mask, a = policy.mask_id, letters(policy, "a")[0]
    plan = iter([[[a] * 4, [a, mask, mask, mask]], [[mask] * 4, [mask, a, a, mask]], [[mask] * 4, [mask] * 3 + [a]]])
    rollout = env.rollout(9, lambda td: td.set("action", torch.tensor(next(plan))), **WHOLE)
    assert rollout.shape == (2, 3)
    assert rollout["next", "reward"].squeeze(-1).tolist() == [[1, 1, 1], [0, 0, 1]]
    assert valid_steps(rollout).tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.thorough
def test_other_noise_gives_the_same_distribution(policy: TransformersPolicy) -> None:
    """Completions of one prompt: 4000 of the environment against 20000 of the sampler, two tokens long."""
    task, sampler = Share(1), make(SAMPLERS[0], 2, temperature=1.5)
    env = DenoisingEnv(task, policy, 2, batch_size=4000)
    rollout = env.rollout(2, SamplerPolicy(sampler, policy), **WHOLE)
    prompt = rollout[:, 0].select("prompt_ids", "prompt_mask")
    prompt = torch.cat([prompt] * 5)
    own = sampler(seeded(prompt, 2), policy=policy)["completion_ids"]
    size = policy.vocab_size
    index = [ids[:, 0] * size + ids[:, 1] for ids in (rollout[:, -1]["next", "completion_ids"], own)]
    counts, expected = (i.bincount(minlength=size * size).double() for i in index)
    expected = (expected + 0.1) / (expected + 0.1).sum()
    value, degrees = chi_square(counts.tolist(), expected.tolist())
    assert degrees > 10
    assert value < chi_square_limit(degrees) * (1 + 4000 / 20000)


def test_the_sampler_policy_works_in_a_collector(policy: TransformersPolicy) -> None:
    sampler = make(SAMPLERS[0], LENGTH, 2, stop_at_eos=False)
    env = build(policy, stop_at_eos=False)
    actor = SamplerPolicy(sampler, policy)
    collector = Collector(env, actor, frames_per_batch=24, total_frames=48, **QUIET)
    for batch in collector:
        assert batch.shape == (6, 4)
        assert batch["next", "done"].squeeze(-1).tolist() == [[False, True, False, True]] * 6
    collector.shutdown()


def test_without_a_mask_it_runs_on_samplers(policy: TransformersPolicy) -> None:
    env = build(policy, action_mask=False)
    rollout = env.rollout(LENGTH, SamplerPolicy(make(SAMPLERS[0], LENGTH), policy), **WHOLE)
    assert "action_mask" not in rollout.keys()  # noqa: SIM118
    state = env.reset()
    assert env.legal_actions(state["legal_positions"]).shape == (6, LENGTH, policy.vocab_size)
