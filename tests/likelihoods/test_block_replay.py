"""Blocks replayed in parallel are the steps replayed one by one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.block_checkpoints import BLOCK, sdar_checkpoint
from support.sdar import LENGTH, LENGTHS, Counted, rollout
from tensordict import TensorDict

from dlmrl_kit.likelihoods.block_replay import BlockReplay, rounds
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.random_order import RandomOrder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("sdar")
    return folder, sdar_checkpoint(folder)


@pytest.fixture(scope="module")
def policy(checkpoint: tuple[Path, Any]) -> Any:
    return load_policy(checkpoint[0])


def replayed(policy: Any, sampler: Any, part: Any, keys: tuple[Any, ...], trajectory: TensorDict) -> TensorDict:
    batch = trajectory.copy()
    part.prepare(batch, sampler=sampler, policy=policy, keys=keys)
    return part(batch, policy=policy, sampler=sampler, keys=keys)


@pytest.mark.parametrize(
    "sampler",
    [
        LowConfidence(LENGTH, 1, BLOCK),
        LowConfidence(LENGTH, 2, BLOCK, temperature=0.7, top_p=0.9),
        ConfidenceThreshold(LENGTH, threshold=0.2, block_length=BLOCK, stop_at_eos=False),
    ],
    ids=["one", "two", "threshold"],
)
@pytest.mark.parametrize("temperature", [True, False])
def test_blocks_replayed_in_parallel_are_the_steps_replayed_one_by_one(
    policy: Any, sampler: Any, temperature: bool
) -> None:
    ended = copy.copy(policy)
    trajectory = rollout(policy, sampler)
    if sampler.stop_at_eos:  # some rows end within a block
        ended.eos_ids = (int(trajectory["completion_ids"][1, 2]),)
        trajectory = rollout(ended, sampler)
        assert len(trajectory["step", "valid"].sum(-1).unique()) > 1
    valid = trajectory["step", "valid"]
    step = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    keys = (("selected", "token_log_prob"), ("selected", "token_mask"))
    parts = (StepTokenLogProb(temperature), BlockReplay(temperature))
    for weight in (valid.float(), valid.float() * (torch.arange(valid.shape[1]) % 3 == 1), torch.zeros(valid.shape)):
        trajectory["selected"] = TensorDict({"step": step, "weight": weight}, [len(LENGTHS)])
        with Counted(ended) as tokens:
            slow = replayed(ended, sampler, parts[0], keys, trajectory)["selected"]
            single = len(tokens)
            fast = replayed(ended, sampler, parts[1], keys, trajectory)["selected"]
        assert len(tokens) - single <= 1
        for key in ("log_prob", "token_log_prob", "token_mask"):
            torch.testing.assert_close(fast[key].float(), slow[key].float(), atol=1e-5, rtol=0)
        if weight.any():
            values = [parameter for _, parameter in ended.trainable()]
            slow_gradient, fast_gradient = (
                torch.autograd.grad((f["token_log_prob"] ** 2).sum() + f["log_prob"].sum(), values)
                for f in (slow, fast)
            )
            for a, b in zip(slow_gradient, fast_gradient, strict=True):
                torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-4)


def test_replay_needs_as_many_states_as_the_longest_block_has_steps(policy: Any) -> None:
    sampler = LowConfidence(LENGTH, 1, BLOCK, stop_at_eos=False)
    trajectory = rollout(policy, sampler)
    valid = trajectory["step", "valid"]
    step = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    trajectory["selected"] = TensorDict({"step": step, "weight": valid.float()}, [len(LENGTHS)])
    rows: list[int] = []
    body = policy.model.get_decoder()
    handle = body.register_forward_pre_hook(lambda m, a, k: rows.append(len(k["input_ids"])), with_kwargs=True)
    BlockReplay()(trajectory.copy(), policy=policy, sampler=sampler)
    handle.remove()
    assert rows == [len(LENGTHS) * BLOCK]


def test_replay_of_other_policies_and_blocks_is_one_forward_per_step(policy: Any) -> None:
    sampler = RandomOrder(LENGTH, 3, 2 * BLOCK)  # a step may commit in two blocks at once
    trajectory = rollout(policy, sampler)
    valid = trajectory["step", "valid"]
    step = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    trajectory["selected"] = TensorDict({"step": step, "weight": valid.float()}, [len(LENGTHS)])
    slow = StepTokenLogProb()(trajectory.copy(), policy=policy, sampler=sampler)["selected", "log_prob"]
    fast = BlockReplay()(trajectory.copy(), policy=policy, sampler=sampler)["selected", "log_prob"]
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)


def test_rounds_count_the_steps_of_a_block() -> None:
    commit = torch.tensor([[4, 2, 7, 7, 9, 8, 9, 30], [1, 0, 3, 2, 5, 9, 7, 8]])
    found = rounds(commit, torch.tensor([2, 0]), 4)  # blocks of 2 + 4 + 2, and of 4 + 4
    assert found.tolist() == [[1, 0, 0, 0, 2, 1, 0, 1], [1, 0, 3, 2, 0, 3, 1, 2]]
