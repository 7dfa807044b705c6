"""Cached prefixes of finished blocks change nothing, and samplers follow the blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.block_checkpoints import BLOCK, sdar_checkpoint
from support.sdar import LENGTH, LENGTHS, Counted, prompts, rollout
from support.seeds import seeded
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.keys import STEP_GREEDY_IDS
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.policies.block_causal import BlockCausalPolicy
from dlmrl_kit.policies.finished_blocks import FinishedBlocks
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.rollout.environment import DenoisingEnv, SamplerPolicy
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.selectors.k_steps import FirstK, LastK
from dlmrl_kit.selectors.top_k import EntropyTopK
from dlmrl_kit.tasks.sudoku import Sudoku4x4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("sdar")
    return folder, sdar_checkpoint(folder)


@pytest.fixture(scope="module")
def policy(checkpoint: tuple[Path, Any]) -> Any:
    return load_policy(checkpoint[0])


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockCausalPolicy, "prefix_cache", lambda self: contextlib.nullcontext())


SAMPLERS = [
    LowConfidence(LENGTH, 1, BLOCK),
    LowConfidence(LENGTH, 2, BLOCK, temperature=0.7),
    ConfidenceThreshold(LENGTH, threshold=0.3, block_length=BLOCK),
    RandomOrder(LENGTH, 3, 2 * BLOCK),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{type(s).__name__}-{s.block_length}")
@pytest.mark.parametrize("greedy", [False, True])
def test_cached_prefixes_change_no_logits(policy: Any, sampler: Any, greedy: bool) -> None:
    asked: list[tuple[Tensor, ...]] = []

    class Checked(BlockCausalPolicy):
        def hidden_at(self, *given: Tensor) -> Tensor:
            found = super().hidden_at(*given)
            cache, self._cache = self._cache, None
            assert cache is not None
            torch.testing.assert_close(found, super().hidden_at(*given), atol=1e-5, rtol=0)
            self._cache = cache
            asked.append(given)
            return found

    checked = Checked(policy.model, policy.tokenizer)
    trajectory = rollout(checked, sampler, keys=[STEP_GREEDY_IDS] if greedy else [])
    assert len(asked) == int(trajectory["step", "valid"].any(0).sum())


def test_only_unfinished_blocks_are_computed(policy: Any) -> None:
    """Prompts of six tokens: the first step also computes their first block; that of a block also the one before."""
    sampler = LowConfidence(LENGTH, 1, BLOCK, stop_at_eos=False)
    with Counted(policy) as tokens:
        sampler(seeded(prompts((6, 6, 6))), policy=policy)
    assert tokens == [8, 4, 8, 4, 4, 4, 8, 4, 4, 4]


def test_what_the_rows_of_a_group_lack_alike_is_computed_once(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts of 5 and 4 blocks in mixed order: these first, then all rows from there on; nothing else changes."""
    sampler = LowConfidence(LENGTH, 2, BLOCK, stop_at_eos=False)
    batch, shapes = seeded(prompts((22, 18))[[0, 1, 1, 0, 1, 0, 0, 1]]), []
    with policy.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    ):
        cached = sampler(batch.clone(), policy=policy)
    assert shapes[:3] == [(2, 20), (8, 4), (8, 8)]
    assert (2, 20) not in shapes[1:]
    monkeypatch.setattr(BlockCausalPolicy, "prefix_cache", lambda self: contextlib.nullcontext())
    plain = sampler(batch.clone(), policy=policy)
    assert len({tuple(row) for row in cached["completion_ids"].tolist()}) > 4
    assert torch.equal(cached["completion_ids"], plain["completion_ids"])
    torch.testing.assert_close(cached["step", "log_prob"], plain["step", "log_prob"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("ahead", [0, 1], ids=["the first row is ahead", "the first row is behind"])
def test_rows_that_are_alike_may_be_at_unequal_pace(policy: Any, ahead: int) -> None:
    """It failed: the row behind takes the blocks of the one ahead, which lacks none."""
    shapes: list[tuple[int, ...]] = []

    def attend(ids: Tensor, *given: Any) -> Any:
        shapes.append(tuple(ids.shape))
        return policy.attend(ids, *given)

    cache, mask, row = FinishedBlocks(BLOCK), torch.ones(2, 12, dtype=torch.bool), torch.arange(2)
    last = torch.arange(12).repeat(2, 1)
    before = last.clone()
    before[1 - ahead, 4:] = 261
    pace = torch.tensor([8, 8])
    pace[1 - ahead] = 4
    with torch.inference_mode():
        cache.hidden_at(attend, before, mask, row, pace)
        found = cache.hidden_at(attend, last, mask, row, torch.tensor([8, 8]))
        alone = policy.hidden(last, mask)[row, [8, 8]]
    assert shapes == [(2, 12), (2, 4)]
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{type(s).__name__}-{s.block_length}")
def test_one_step_completions_of_chosen_steps_are_those_of_all_steps(policy: Any, sampler: Any) -> None:
    """Made at the end, from the states; the rollout itself is the same bit for bit."""
    selector = EntropyTopK(3)
    everything = rollout(policy, sampler, keys=[STEP_GREEDY_IDS])
    found = rollout(policy, sampler, keys=[STEP_GREEDY_IDS], may_choose=selector.kept)
    kept = selector.kept(found)
    greedy, wanted = found["step", "greedy_ids"], everything["step", "greedy_ids"]
    assert torch.equal(greedy[kept], wanted[kept])
    assert (greedy[(greedy != wanted).any(-1)] == -1).all()
    assert (greedy == -1).any()
    torch.testing.assert_close(
        found.exclude(("step", "greedy_ids")).to_dict(), everything.exclude(("step", "greedy_ids")).to_dict()
    )


def test_later_blocks_are_computed_for_chosen_states_only(policy: Any) -> None:
    """As ``test_only_unfinished_blocks_are_computed``; then the first two states, whose blocks from the second on."""
    sampler = LowConfidence(LENGTH, 1, BLOCK, stop_at_eos=False)
    given = {"keys": [STEP_GREEDY_IDS], "may_choose": FirstK(2).kept}
    with Counted(policy) as tokens:
        sampler(seeded(prompts((6, 6, 6))), policy=policy, **given)
    assert tokens == [8, 4, 8, 4, 4, 4, 8, 4, 4, 4, 12, 12]


def test_chosen_states_in_the_last_block_need_nothing_later(policy: Any) -> None:
    """It failed: there is nothing behind them to be predicted."""
    sampler = LowConfidence(LENGTH, 1, BLOCK, temperature=0, stop_at_eos=False)
    given = {"keys": [STEP_GREEDY_IDS], "may_choose": LastK(1).kept}
    found = sampler(seeded(prompts((6, 6, 6))), policy=policy, **given)
    assert torch.equal(found["step", "greedy_ids"][:, -1], found["completion_ids"].int())


def test_a_rollout_is_the_same_without_the_cache(policy: Any, uncached: None) -> None:
    sampler = LowConfidence(LENGTH, 2, BLOCK, temperature=0.9)
    plain = rollout(policy, sampler)
    assert policy._cache is None
    with torch.inference_mode(), _cache(policy):
        cached = rollout(policy, sampler)
        assert policy._cache.tokens is not None
    for key in ("completion_ids", "commit_step"):
        assert torch.equal(plain[key], cached[key])
    torch.testing.assert_close(plain["step", "log_prob"], cached["step", "log_prob"], atol=1e-5, rtol=0)


@contextlib.contextmanager
def _cache(policy: Any) -> Iterator[None]:
    policy._cache = FinishedBlocks(policy.block_size)
    yield
    policy._cache = None


def test_blocks_are_counted_from_the_first_token_of_the_prompt(policy: Any) -> None:
    for sampler in SAMPLERS:
        found = rollout(policy, sampler)
        size = sampler.block_length
        for length, steps in zip(LENGTHS, found["commit_step"].tolist(), strict=True):
            blocks = [(length % BLOCK + position) // size for position in range(LENGTH)]
            order = sorted(zip(steps, blocks, strict=True))
            done = [block for step, block in order if step < sampler.max_steps]
            assert done == sorted(done)
            assert max(steps) <= sampler.max_steps


def test_recorded_log_probabilities_are_recomputed(policy: Any) -> None:
    sampler = LowConfidence(LENGTH, 1, BLOCK, temperature=0.9)
    trajectory = rollout(policy, sampler)
    valid = trajectory["step", "valid"]
    step = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    trajectory["selected"] = TensorDict({"step": step, "weight": valid.float()}, [len(LENGTHS)])
    found = StepLogProb()(trajectory, policy=policy, sampler=sampler)["selected", "log_prob"]
    torch.testing.assert_close(found.detach(), trajectory["step", "log_prob"], atol=1e-4, rtol=0)


def test_a_sampler_of_other_blocks_is_refused(policy: Any) -> None:
    for sampler in (LowConfidence(LENGTH, 1, 6), LowConfidence(LENGTH)):
        with pytest.raises(UserError, match=r"blocks of 4: set LowConfidence.block_length = 4"):
            rollout(policy, sampler)


def test_the_environment_has_the_same_blocks(policy: Any) -> None:
    sampler = LowConfidence(8, 1, BLOCK)
    env = DenoisingEnv(Sudoku4x4(num_train=8), policy, 8, batch_size=3, block_length=BLOCK, action_mask=False)
    actor = SamplerPolicy(sampler, policy)
    end = env.rollout(9, actor, break_when_any_done=False, break_when_all_done=True)  # an illegal action would raise
    assert bool(end["next", "done"][:, -1].all())
