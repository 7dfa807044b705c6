"""The environment: what TorchRL asks of one, examples, steps."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.denoising_environment import LENGTH, QUIET, Share, build, letters, step
from support.policies import tiny_policy
from support.rollouts import SAMPLERS, make
from torchrl.collectors import Collector
from torchrl.envs import SerialEnv, TransformedEnv, check_env_specs
from torchrl.envs.transforms import ActionMask

from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.rollout import environment
from dlmrl_kit.rollout.environment import DenoisingEnv, SamplerPolicy
from dlmrl_kit.rollout.services import training_indices
from dlmrl_kit.rollout.tokens import Tokens


@pytest.fixture(scope="module")
def policy() -> TransformersPolicy:
    return tiny_policy()


# --- what TorchRL asks of an environment


@pytest.mark.parametrize("options", [{}, {"single_commit": True}, {"block_length": 2}, {"stop_at_eos": False}])
def test_specs_hold(policy: TransformersPolicy, options: dict[str, Any]) -> None:
    env = build(policy, **options)
    for seed in range(3):
        check_env_specs(env, seed=seed)
    check_env_specs(env, break_when_any_done="both")
    check_env_specs(TransformedEnv(build(policy, **options), ActionMask()), break_when_any_done="both")


def test_specs_hold_in_several_environments_at_once(policy: TransformersPolicy) -> None:
    vocabulary = Tokens.of(policy)
    copies = SerialEnv(2, lambda: DenoisingEnv(Share(), vocabulary, LENGTH, batch_size=3))
    check_env_specs(TransformedEnv(copies, ActionMask()))


@pytest.mark.parametrize("single_commit", [False, True])
def test_random_actions_stay_legal_when_rows_restart(policy: TransformersPolicy, single_commit: bool) -> None:
    for wrap in (False, True):
        env: Any = build(policy, single_commit=single_commit)
        env = TransformedEnv(env, ActionMask()) if wrap else env
        torch.manual_seed(0)
        rollout = env.rollout(40, break_when_any_done=False)  # restarts finished rows
        assert rollout.shape == (6, 40)
        assert rollout["next", "done"].sum() > 20
        legal = rollout["action_mask"].gather(-1, rollout["action"][..., None])
        assert legal.all()


def test_a_collector_with_random_actions(policy: TransformersPolicy) -> None:
    env = build(policy, single_commit=True)
    collector = Collector(env, env.rand_action, frames_per_batch=60, total_frames=120, **QUIET)
    assert [batch.shape for batch in collector] == [(6, 10)] * 2
    collector.shutdown()


def test_the_environment_is_small_and_picklable(policy: TransformersPolicy) -> None:
    env = build(policy)
    assert not list(env.parameters())
    copy = pickle.loads(pickle.dumps(env))
    assert (copy.reset()["prompt_ids"] == env.reset()["prompt_ids"]).all()


# --- examples


def test_examples_follow_the_seed(policy: TransformersPolicy) -> None:
    env = build(policy, seed=3)
    stream = [training_indices(5, 1, position, 3)[0] for position in range(12)]
    first, second = env.reset(), env.reset()
    assert first["example"].tolist() + second["example"].tolist() == stream
    assert set(stream[:5]) == set(range(5))
    env.set_seed(3)
    assert (env.reset()["prompt_ids"] == first["prompt_ids"]).all()
    env.set_seed(4)
    assert env.reset()["example"].tolist() == [training_indices(5, 1, position, 4)[0] for position in range(6)]


def test_prompts_are_left_padded_to_a_fixed_width(policy: TransformersPolicy) -> None:
    env = build(policy)
    widths = [len(env.task.example("train", index).prompt) for index in range(5)]
    assert env.reset()["prompt_ids"].shape == (6, max(widths))
    assert min(widths) < max(widths)
    state = build(policy, prompt_length=9).reset()
    assert state["prompt_ids"].shape == (6, 9)
    for ids, mask, index in zip(state["prompt_ids"], state["prompt_mask"], state["example"].tolist(), strict=True):
        assert ids[mask].tolist() == letters(policy, env.task.example("train", index).prompt)
        assert mask[-1]
        assert (ids[~mask] == policy.pad_id).all()
    with pytest.raises(ValueError, match=r"DenoisingEnv.prompt_length must be at least \d, for a prompt, got 1"):
        build(policy, prompt_length=1).reset()


def test_a_large_split_needs_a_prompt_length(policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every prompt would be encoded to find the longest."""
    monkeypatch.setattr(environment, "LISTED", 4)
    with pytest.raises(ValueError, match=r"prompt_length must be set for a split of more than 4 examples"):
        build(policy)
    assert build(policy, prompt_length=9).prompt_length == 9


def test_only_the_rows_asked_for_restart(policy: TransformersPolicy) -> None:
    env = build(policy)
    state = env.reset()
    a = letters(policy, "a")[0]
    action = torch.full((6, LENGTH), policy.mask_id)
    action[:, 0] = a
    action[[1, 4]] = a
    after = env.step_mdp(step(env, state, action))
    assert after["done"].squeeze(-1).nonzero().squeeze(-1).tolist() == [1, 4]
    restarted = env.maybe_reset(after.clone())
    same = [0, 2, 3, 5]
    assert (restarted["example"][same] == state["example"][same]).all()
    assert (restarted["completion_ids"][same] == action[same]).all()
    stream = [training_indices(5, 1, position, 0)[0] for position in range(8)]
    assert restarted["example"][[1, 4]].tolist() == stream[6:]
    assert (restarted["completion_ids"][[1, 4]] == policy.mask_id).all()
    assert not restarted["done"].any()
    assert env.action_spec.is_in(restarted["action"].fill_(policy.mask_id))
    assert (env.action_spec.mask == restarted["action_mask"]).all()


# --- steps


def test_a_row_by_hand(policy: TransformersPolicy) -> None:
    env = build(policy, batch_size=1)
    mask, eos, (a, b) = policy.mask_id, policy.eos_id, letters(policy, "ab")
    state = env.reset()
    assert state["completion_ids"].tolist() == [[mask] * 4]
    assert state["commit_step"].tolist() == [[4] * 4]
    one = step(env, state, [[mask, a, mask, eos]])["next"]
    assert one["completion_ids"].tolist() == [[mask, a, mask, eos]]
    assert one["legal_positions"].tolist() == [[True, False, True, False]]
    assert (one["steps_taken"].item(), one["reward"].item(), one["done"].item()) == (1, 0, False)
    two = step(env, one, [[a, mask, eos, mask]])["next"]
    assert two["completion_ids"].tolist() == [[a, a, eos, eos]]
    assert two["commit_step"].tolist() == [[1, 0, 1, 0]]
    assert (two["reward"].item(), two["done"].item(), two["terminated"].item()) == (0.5, True, True)
    assert not two["legal_positions"].any()
    after = step(env, two, [[b] * 4])["next"]  # finished: every action is ignored
    for key in ("completion_ids", "commit_step", "steps_taken", "done"):
        assert (after[key] == two[key]).all()
    assert after["reward"].item() == 0


def test_a_row_ends_at_the_end_of_text_or_after_the_last_step(policy: TransformersPolicy) -> None:
    mask, eos, (a, b) = policy.mask_id, policy.eos_id, letters(policy, "ab")
    early = [[a, eos, mask, mask]]
    env = build(policy, batch_size=1)
    ended = step(env, env.reset(), early)["next"]
    assert ended["completion_ids"].tolist() == [[a, eos, eos, eos]]
    assert ended["commit_step"].tolist() == [[0, 0, 4, 4]]
    assert (ended["done"].item(), ended["reward"].item()) == (True, 0.25)
    env = build(policy, batch_size=1, stop_at_eos=False)
    assert not step(env, env.reset(), early)["next"]["done"].item()

    env = build(policy, batch_size=1, max_steps=2)
    idle = step(env, env.reset(), [[mask] * 4])["next"]  # a step that commits nothing counts
    assert (idle["steps_taken"].item(), idle["done"].item()) == (1, False)
    out = step(env, idle, [[a, mask, b, mask]])["next"]
    assert out["completion_ids"].tolist() == [[a, eos, b, eos]]
    assert (out["done"].item(), out["reward"].item()) == (True, 0.25)  # the text ends at the first gap


def test_each_of_several_ends_ends_a_row(policy: TransformersPolicy) -> None:
    mask, eos, (a, b, c) = policy.mask_id, policy.eos_id, letters(policy, "abc")
    tokens = replace(Tokens.of(policy), eos_ids=(eos, b, c))
    for end in (eos, b, c):
        env = DenoisingEnv(Share(), tokens, 4, batch_size=1)
        ended = step(env, env.reset(), [[a, end, mask, a]])["next"]
        assert ended["completion_ids"].tolist() == [[a, end, eos, a]]
        assert (ended["done"].item(), ended["reward"].item()) == (True, 0.25)


def test_only_the_rows_asked_for_step(policy: TransformersPolicy) -> None:
    env = build(policy, batch_size=2)
    a = letters(policy, "a")[0]
    state = env.reset().set("_step", torch.tensor([True, False]))
    after = step(env, state, [[a] * 4, [policy.vocab_size] * 4])["next"]  # row 1 is not looked at
    assert after["completion_ids"].tolist() == [[a] * 4, [policy.mask_id] * 4]
    assert after["steps_taken"].tolist() == [[1], [0]]
    assert after["done"].tolist() == [[True], [False]]
    assert after["reward"].tolist() == [[1], [0]]


def test_blocks_open_one_after_the_other(policy: TransformersPolicy) -> None:
    env = build(policy, batch_size=1, block_length=2)
    mask, a = policy.mask_id, letters(policy, "a")[0]
    state = env.reset()
    assert state["legal_positions"].tolist() == [[True, True, False, False]]
    state = step(env, state, [[a, a, mask, mask]])["next"]
    assert state["legal_positions"].tolist() == [[False, False, True, True]]


def test_a_single_commit_is_position_and_token(policy: TransformersPolicy) -> None:
    env = build(policy, batch_size=2, single_commit=True)
    a, size = letters(policy, "a")[0], policy.vocab_size
    state = step(env, env.reset(), [2 * size + a, a])["next"]
    assert state["completion_ids"].tolist() == [[1, 1, a, 1], [a, 1, 1, 1]]
    grid = state["action_mask"].view(2, LENGTH, size)
    assert (grid.any(-1) == state["legal_positions"]).all()
    assert not grid[..., list(policy.forbidden_ids)].any()
    assert grid[0, 0].sum() == size - len(policy.forbidden_ids)


@pytest.mark.parametrize("single_commit", [False, True])
def test_every_action_is_legal_or_refused_as_the_mask_says(policy: TransformersPolicy, single_commit: bool) -> None:
    env = build(policy, batch_size=2, single_commit=single_commit)
    mask, size, a = policy.mask_id, policy.vocab_size, letters(policy, "a")[0]
    state = step(env, env.reset(), [a, a] if single_commit else [[a, mask, mask, mask]] * 2)["next"]
    legal = state["action_mask"][0]
    for position in range(LENGTH):
        for token in range(-1, size + 1):
            if single_commit:
                action = [position * size + token, size + a]
                expected = 0 <= action[0] < LENGTH * size and bool(legal[action[0]])
            else:
                action = torch.full((2, LENGTH), mask)
                action[0, position] = token
                expected = 0 <= token < size and bool(legal[position, token])
            if expected:
                step(env, state, action)
            else:
                with pytest.raises(ValueError, match=r"illegal action in row 0: .* legal positions are"):
                    step(env, state, action)


def test_wrong_arguments_are_named(policy: TransformersPolicy) -> None:
    with pytest.raises(ValueError, match=r"DenoisingEnv.batch_size must be at least 1"):
        build(policy, batch_size=0)
    with pytest.raises(ValueError, match=r"DenoisingEnv.max_steps must be at least 1"):
        build(policy, max_steps=0)
    with pytest.raises(ValueError, match=r"Share.split must be one of"):
        build(policy, split="test")
    with pytest.raises(ValueError, match=r"SamplerPolicy.sampler must be one of 1 commit per step"):
        SamplerPolicy(make(SAMPLERS[0], LENGTH, 2), policy, single_commit=True)
