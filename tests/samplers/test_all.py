"""Samplers generate valid trajectories, record what they did, and the same numbers come out of a replay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.policies import tiny_policy
from support.rollouts import SAMPLERS, make, prompts, roll_out
from support.seeds import seeded
from torch import Tensor

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import Key
from dlmrl_kit.core.policy import LOGITS_BYTES
from dlmrl_kit.core.trajectory import committed_at, gather_steps, num_valid, state_at
from dlmrl_kit.likelihoods.steps import StepLogProb, StepTokenLogProb, pack_tokens
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.selectors.k_steps import FirstK
from dlmrl_kit.selectors.top_k import EntropyTopK

LENGTH = 7
GREEDY: list[Key] = [("step", "greedy_ids")]
POLICY = tiny_policy(characters="abcd", initializer_range=0.25)
SETTINGS = [
    {"tokens_per_step": 1},
    {"tokens_per_step": 3},  # does not divide the length
    {"tokens_per_step": 2, "block_length": 4, "temperature": 0.8},  # neither divides
    {"tokens_per_step": 3, "block_length": 2, "top_k": 3},
    {"tokens_per_step": 2, "top_p": 0.7, "stop_at_eos": False},
]
every = pytest.mark.parametrize("cls", SAMPLERS)
settled = pytest.mark.parametrize("settings", SETTINGS, ids=str)


class Counting(TransformersPolicy):
    """``POLICY``, counting the rows it is run on and the predictions it makes."""

    def __init__(self) -> None:
        super().__init__(POLICY.model, POLICY.tokenizer)
        self.rows = self.predictions = 0

    def head(self, features: Tensor) -> Tensor:
        self.predictions += len(features)
        return super().head(features)

    def features(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        self.rows += len(input_ids)
        return super().features(input_ids, attention_mask, positions)


@every
@settled
def test_trajectories_are_valid(cls: type[Sampler], settings: dict[str, Any]) -> None:
    sampler = make(cls, LENGTH, **settings)
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=16))
    ids, commit, steps = data["completion_ids"], data["commit_step"].long(), num_valid(data)
    block = torch.arange(LENGTH) // sampler.block_length
    assert not set(ids.unique().tolist()) & set(POLICY.forbidden_ids)
    for row in range(len(ids)):
        happened = data["step", "valid"][row].tolist()
        assert happened == [t < steps[row] for t in range(sampler.max_steps)]
        for t in range(sampler.max_steps):
            now = (commit[row] == t).nonzero().squeeze(-1)
            assert len(now) == data["step", "num_committed"][row, t]
            if t >= steps[row]:
                assert len(now) == 0
                continue
            left = (commit[row] >= t).nonzero().squeeze(-1)
            here = left[block[left] == block[left[0]]]
            assert set(now.tolist()) <= set(here.tolist())
            if cls is not ConfidenceThreshold:
                assert len(now) == min(sampler.tokens_per_step, len(here))
            assert 1 <= len(now) <= sampler.max_commits
        padding = commit[row] == sampler.max_steps
        assert ids[row][padding].tolist() == [POLICY.eos_id] * int(padding.sum())
        if padding.any():
            assert sampler.stop_at_eos
            written = ids[row].masked_fill(padding, -1).tolist()
            assert POLICY.eos_id in written
            assert not padding[: written.index(POLICY.eos_id)].any()


@every
@settled
def test_recorded_log_probs_are_recomputed_exactly(cls: type[Sampler], settings: dict[str, Any]) -> None:
    sampler = make(cls, LENGTH, **settings)
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=12))
    valid = data["step", "valid"]
    exact = StepLogProb()
    exact(data, policy=POLICY, sampler=sampler, keys=exact.optional_keys)
    torch.testing.assert_close(data["selected", "log_prob"], data["step", "log_prob"] * valid, rtol=0, atol=1e-5)
    torch.testing.assert_close(data["selected", "entropy"], data["step", "entropy"] * valid, rtol=1e-4, atol=1e-5)
    for tempered in (True, False):
        estimate = StepTokenLogProb(sampling_temperature=tempered)
        keys: list[Key] = [("selected", "token_log_prob"), ("selected", "token_mask"), ("selected", "entropy")]
        estimate.prepare(data, sampler=sampler, policy=POLICY, keys=keys)
        estimate(data, policy=POLICY, sampler=sampler, keys=keys)
        for key, source in estimate.recorded.items():
            recorded = data[source]
            if source[0] == "token":
                recorded = pack_tokens(data, recorded, sampler.max_commits)
            torch.testing.assert_close(data[key], recorded, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            data["selected", "token_log_prob"].sum(-1), data["selected", "log_prob"], rtol=1e-5, atol=1e-5
        )
        assert torch.equal(data["selected", "token_mask"].sum(-1), data["step", "num_committed"])


@every
def test_greedy_ids_fill_every_mask_of_the_rebuilt_state(cls: type[Sampler]) -> None:
    sampler = make(cls, LENGTH, 2, block_length=3)
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=5))
    states = state_at(data["completion_ids"], data["commit_step"], data["selected", "step"], POLICY.mask_id)
    for row, t in data["step", "valid"].nonzero().tolist():
        state = states[row, t]
        ids = torch.cat([data["prompt_ids"][row], state])[None]
        mask = torch.cat([data["prompt_mask"][row], torch.ones_like(state, dtype=torch.bool)])[None]
        with torch.no_grad():
            logits = POLICY(ids, mask, torch.ones_like(mask))[-LENGTH:].clone()
        logits[:, list(POLICY.forbidden_ids)] = -torch.inf
        expected = torch.where(state == POLICY.mask_id, logits.argmax(-1), state)
        assert data["step", "greedy_ids"][row, t].tolist() == expected.tolist()


@every
@pytest.mark.parametrize("limit", [None, 1])  # all rows at once; one row at a time
def test_greedy_ids_only_where_the_selector_may_choose(
    cls: type[Sampler], limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        monkeypatch.setitem(LOGITS_BYTES, True, limit)
    selector, sampler = EntropyTopK(3), make(cls, 12, 1, block_length=4)
    batch = prompts(POLICY, rows=8)
    everything = roll_out(sampler, POLICY, batch, keys=GREEDY)
    data = roll_out(sampler, POLICY, batch, keys=GREEDY, may_choose=selector.kept)
    assert (data.exclude(("step", "greedy_ids")) == everything.exclude(("step", "greedy_ids"))).all()
    found, wanted = data["step", "greedy_ids"], everything["step", "greedy_ids"]
    kept, known = selector.kept(data), (found == wanted).all(-1)
    assert kept.any(-1).all()
    assert known[kept].all()
    assert (found[~known] == -1).all()
    assert not known.all()


def test_predictions_behind_the_block_are_made_for_steps_that_may_be_chosen() -> None:
    """The head's share of the work, counted in positions."""
    sampler, batch = make(LowConfidence, 12, 1, block_length=2, stop_at_eos=False), prompts(POLICY, rows=4)
    for selector, behind in ((None, 2 * (10 + 8 + 6 + 4 + 2)), (FirstK(3), 10 + 10 + 8)):
        may_choose = None if selector is None else selector.kept
        counting = Counting()
        roll_out(sampler, counting, batch, keys=GREEDY, may_choose=may_choose)
        assert counting.predictions == 4 * (6 * (2 + 1) + behind)


@every
def test_finished_rows_cost_nothing(cls: type[Sampler]) -> None:
    counting = Counting()
    sampler = make(cls, LENGTH, 1, temperature=2.0)
    data = roll_out(sampler, counting, prompts(POLICY, rows=24), seed=2)
    assert (num_valid(data) < LENGTH).any()  # some row ended early, else this shows nothing
    assert counting.rows == int(num_valid(data).sum())


@every
def test_a_sampler_resumes_from_any_state(cls: type[Sampler]) -> None:
    sampler = make(cls, LENGTH, 2, block_length=4)
    batch = prompts(POLICY, rows=6)
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(4, 8, (6, LENGTH), generator=generator)
    open_ = torch.rand(6, LENGTH, generator=generator) < 0.5
    open_[0] = False
    ids = given.masked_fill(open_, POLICY.mask_id)
    result = sampler.resume(seeded(batch), ids, policy=POLICY)
    assert torch.equal(result["completion_ids"][~open_], given[~open_])
    assert torch.equal(result["commit_step"] == -1, ~open_)
    assert not (result["completion_ids"] == POLICY.mask_id).any()
    assert not result["step", "valid"][0].any()


@every
def test_the_seeds_decide(cls: type[Sampler]) -> None:
    sampler, batch = make(cls, LENGTH, 2), prompts(POLICY, rows=8)
    first, again, other = (roll_out(sampler, POLICY, batch, seed=s) for s in (0, 0, 1))
    assert torch.equal(first["completion_ids"], again["completion_ids"])
    assert torch.equal(first["step", "log_prob"], again["step", "log_prob"])
    assert not torch.equal(first["completion_ids"], other["completion_ids"])


@every
def test_on_demand_keys_are_written_when_asked(cls: type[Sampler]) -> None:
    sampler = make(cls, LENGTH)
    batch = prompts(POLICY, rows=2)
    plain = roll_out(sampler, POLICY, batch, everything=False)
    assert not any(key in plain.keys(True, True) for key in sampler.optional_keys)
    full = roll_out(sampler, POLICY, batch)
    assert all(key in full.keys(True, True) for key in sampler.optional_keys)
    assert all(key in plain.keys(True, True) for key in sampler.out_keys)
    with pytest.raises(ValueError, match="cannot write"):
        roll_out(sampler, POLICY, batch, keys=["reward"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("completion_length", 0),
        ("tokens_per_step", 0),
        ("block_length", 0),
        ("temperature", -1.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    for cls in SAMPLERS:
        if cls is ConfidenceThreshold and name == "tokens_per_step":
            continue
        with pytest.raises(ValueError, match=rf"{cls.__name__}\.{name} must be .*, got {value}"):
            cls(**{"completion_length": 4, name: value})


def test_gradients_reach_the_policy_and_nothing_else() -> None:
    sampler = make(SAMPLERS[0], LENGTH, 2)
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=3))
    estimates: list[Component] = [StepLogProb(), StepTokenLogProb()]
    for estimate in estimates:
        POLICY.zero_grad()
        estimate(data, policy=POLICY, sampler=sampler)
        data["selected", "log_prob"].sum().backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for _, p in POLICY.trainable())
        assert not data["step", "log_prob"].requires_grad


def test_entries_of_weight_zero_are_not_computed() -> None:
    sampler = make(SAMPLERS[0], LENGTH, 2)
    counting = Counting()
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=4))
    data["selected", "weight"][:, 1:] = 0
    StepLogProb()(data, policy=counting, sampler=sampler)
    assert counting.rows == 4
    assert (data["selected", "log_prob"][:, 1:] == 0).all()


def test_states_and_commits_match_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 9, (3, 5), generator=generator)
    commit = torch.randint(-1, 4, (3, 5), generator=generator)
    step = torch.randint(0, 4, (3, 2), generator=generator)
    states, committed = state_at(ids, commit, step, 99), committed_at(commit, step)
    values = torch.rand(3, 4, 2, generator=generator)
    gathered = gather_steps(values, step)
    for b in range(3):
        for k in range(2):
            t = int(step[b, k])
            pairs = zip(ids[b].tolist(), commit[b].tolist(), strict=True)
            assert states[b, k].tolist() == [99 if c >= t else i for i, c in pairs]
            assert committed[b, k].tolist() == [c == t for c in commit[b].tolist()]
            assert torch.equal(gathered[b, k], values[b, t])
