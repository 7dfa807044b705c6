"""Likelihood estimators: bookkeeping against loops, empty and repeated entries, what gradients reach."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import pytest
import torch
from support.oracles import loop_entropy, loop_probs
from support.policies import recorded_calls, tiny_policy
from support.rollouts import SAMPLERS, make, prompts, roll_out
from tensordict import TensorDict

from dlmrl_kit.core.keys import Key
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.likelihoods.steps import StepLogProb, StepTokenLogProb, pack, pack_tokens, replay
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.base import Sampler

LENGTH = 6
POLICY = tiny_policy(characters="abcd", initializer_range=0.25)
ESTIMATORS: list[type[Likelihood]] = [StepLogProb, StepTokenLogProb]
every = pytest.mark.parametrize("cls", SAMPLERS, ids=lambda c: c.__name__)
both = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda c: c.__name__)


def estimate(
    likelihood: Likelihood,
    data: TensorDict,
    sampler: Sampler,
    policy: TransformersPolicy = POLICY,
    keys: Collection[Key] = (),
) -> TensorDict:
    """The estimator's keys and those of ``keys`` that it writes on demand, on a copy."""
    data = data.clone()
    likelihood.prepare(data, sampler=sampler, policy=POLICY, keys=keys)
    return likelihood(data, policy=policy, sampler=sampler, keys=keys)  # type: ignore[return-value]


def everything(
    likelihood: Likelihood, data: TensorDict, sampler: Sampler, policy: TransformersPolicy = POLICY
) -> TensorDict:
    """Every key of the estimator, on a copy."""
    return estimate(likelihood, data, sampler, policy, likelihood.optional_keys)


def test_pack_equals_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    committed = torch.rand(5, 6, generator=generator) < 0.4
    committed[2] = False
    width = int(committed.sum(-1).max()) + 1
    n = int(committed.sum())
    for shape in ((), (3,)):
        values = torch.randn(n, *shape, generator=generator)
        packed = pack(values, committed, width)
        assert packed.shape == (5, width, *shape)
        source = iter(values)
        for row in range(5):
            count = int(committed[row].sum())
            for place in range(width):
                wanted = next(source) if place < count else torch.zeros(shape)
                assert torch.equal(packed[row, place], wanted)
        assert next(source, None) is None


def trajectory(cls: type[Sampler], **options: Any) -> tuple[Sampler, TensorDict]:
    """Several commits per step, rows that end early; entries in another order, one step twice, some empty."""
    sampler = make(cls, LENGTH, 2, block_length=5, temperature=1.4, **options)
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=6))
    valid = data["step", "valid"]
    step = torch.tensor([[2, 0, 0, 1]]).expand(6, -1).contiguous()
    weight = valid.gather(1, step) * torch.tensor([1.0, 0.5, 2.0, 1.0])
    weight[3, 1] = 0
    weight[4] = 0
    data["selected", "step"], data["selected", "weight"] = step, weight
    assert (weight == 0).any(1).sum() >= 2
    return sampler, data


@every
def test_pack_tokens_equals_the_loop(cls: type[Sampler]) -> None:
    sampler, data = trajectory(cls)
    values = torch.randn(6, LENGTH, generator=torch.Generator().manual_seed(1))
    packed = pack_tokens(data, values, sampler.max_commits)
    for b in range(6):
        for k in range(4):
            wanted = [0.0] * sampler.max_commits
            if data["selected", "weight"][b, k] > 0:
                here = [i for i in range(LENGTH) if data["commit_step"][b, i] == data["selected", "step"][b, k]]
                wanted[: len(here)] = [values[b, i].item() for i in here]
            assert packed[b, k].tolist() == wanted


@every
def test_replay_rebuilds_what_happened(cls: type[Sampler]) -> None:
    _, data = trajectory(cls)
    steps = replay(data, POLICY.mask_id)
    entries = [(b, k) for b in range(6) for k in range(4) if data["selected", "weight"][b, k] > 0]
    assert steps.used.nonzero().tolist() == [list(entry) for entry in entries]
    for r, (b, k) in enumerate(entries):
        t, commit = int(data["selected", "step"][b, k]), data["commit_step"][b].tolist()
        final = data["completion_ids"][b].tolist()
        assert steps.ids[r].tolist() == [POLICY.mask_id if c >= t else v for c, v in zip(commit, final, strict=True)]
        assert steps.decision.committed[r].tolist() == [c == t for c in commit]
        assert torch.equal(steps.prompt["prompt_ids"][r], data["prompt_ids"][b])
    values = torch.arange(1.0, len(entries) + 1)
    dense = steps.scatter(values)
    assert [dense[b, k].item() for b, k in entries] == values.tolist()
    assert dense.count_nonzero() == len(entries)


@every
@pytest.mark.parametrize("tempered", [True, False])
def test_token_keys_equal_the_loops(cls: type[Sampler], tempered: bool) -> None:
    sampler, data = trajectory(cls, top_k=3)
    found = everything(StepTokenLogProb(tempered), data, sampler)
    width, vocab = sampler.max_commits, POLICY.vocab_size
    assert found["selected", "distribution"].shape == (6, 4, width, vocab)
    filters: dict[str, Any] = {"temperature": 1.4, "top_k": 3}
    for b in range(6):
        for k in range(4):
            t = int(data["selected", "step"][b, k])
            selected = {name: found["selected", name][b, k] for name in found["selected"].keys()}  # noqa: SIM118
            if data["selected", "weight"][b, k] == 0:
                for name in ("log_prob", "token_log_prob", "distribution", "entropy", "token_mask"):
                    assert not selected[name].any()
                continue
            here = [i for i in range(LENGTH) if data["commit_step"][b, i] == t]
            commit, final = data["commit_step"][b].tolist(), data["completion_ids"][b].tolist()
            state = [POLICY.mask_id if c >= t else v for c, v in zip(commit, final, strict=True)]
            ids = torch.cat([data["prompt_ids"][b][data["prompt_mask"][b]], torch.tensor(state)])[None]
            with torch.no_grad():
                logits = POLICY.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -LENGTH:].tolist()
            kept = [loop_probs(logits[i], **filters, forbidden=POLICY.forbidden_ids) for i in here]
            plain = [loop_probs(logits[i], forbidden=POLICY.forbidden_ids) for i in here]
            scored = kept if tempered else plain
            log_probs = [math.log(p[final[i]]) for p, i in zip(scored, here, strict=True)]
            filler = width - len(here)
            assert selected["token_mask"].tolist() == [True] * len(here) + [False] * filler
            assert selected["token_log_prob"].tolist() == pytest.approx(log_probs + [0.0] * filler, abs=2e-5)
            assert selected["log_prob"].item() == pytest.approx(sum(log_probs), abs=5e-5)
            for place, p in enumerate(scored):
                assert selected["distribution"][place].exp().tolist() == pytest.approx(p, abs=1e-5)
                assert selected["distribution"][place].exp().sum().item() == pytest.approx(1, abs=1e-5)
            assert not selected["distribution"][len(here) :].any()
            entropy = sum(loop_entropy(p) for p in kept) / len(here)  # of the behaviour distribution, in either case
            assert selected["entropy"].item() == pytest.approx(entropy, abs=2e-5)


@every
@both
def test_repeated_and_reordered_entries_agree_with_the_record(cls: type[Sampler], estimator: type[Likelihood]) -> None:
    sampler, data = trajectory(cls)
    likelihood = estimator()
    keys = [("selected", "entropy")]
    found = estimate(likelihood, data, sampler, keys=keys)
    used = data["selected", "weight"] > 0
    for key, source in {**likelihood.recorded, ("selected", "entropy"): ("step", "entropy")}.items():
        if key not in likelihood.writes(keys):
            continue
        recorded = data[source].gather(1, data["selected", "step"]) * used
        torch.testing.assert_close(found[key], recorded, rtol=1e-5, atol=1e-5)


@both
def test_empty_entries_cost_nothing_whatever_step_they_name(estimator: type[Likelihood]) -> None:
    sampler, data = trajectory(SAMPLERS[0])
    used = data["selected", "weight"] > 0
    likelihood = estimator()
    with recorded_calls(POLICY) as calls:
        found = everything(likelihood, data, sampler)
    assert [len(ids) for ids, _, _ in calls] == [int(used.sum())]
    other = data.clone()
    other["selected", "step"] = data["selected", "step"].masked_fill(~used, sampler.max_steps - 1)
    again = everything(likelihood, other, sampler)
    for key in likelihood.writes(likelihood.optional_keys):
        assert torch.equal(found[key], again[key])
        assert not found[key][~used].any()


@both
def test_a_batch_of_empty_entries_gives_zeros_with_gradients(estimator: type[Likelihood]) -> None:
    """A micro-batch whose steps all have weight 0 must not stop the update."""
    sampler, data = trajectory(SAMPLERS[0])
    data["selected", "weight"].zero_()
    likelihood = estimator()
    found = everything(likelihood, data, sampler)
    for key in likelihood.writes(likelihood.optional_keys):
        assert found[key].shape[:2] == (6, 4)
        assert not found[key].any()
    POLICY.zero_grad()
    found["selected", "log_prob"].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in POLICY.parameters())


@every
@both
def test_gradients_reach_every_weight_and_nothing_else(cls: type[Sampler], estimator: type[Likelihood]) -> None:
    policy = tiny_policy(characters="abcd", initializer_range=0.25)
    policy.freeze_reference()
    sampler = make(cls, LENGTH, 2, temperature=0.9)
    data = roll_out(sampler, policy, prompts(policy, rows=4))
    before = data.clone()
    found = everything(estimator(), data, sampler, policy)
    floating = [key for key in found.keys(True, True) if found[key].requires_grad]
    assert set(floating) == {("selected", n) for n in ("log_prob", "entropy", "token_log_prob", "distribution")} & {
        *estimator().out_keys,
        *estimator.optional_keys,
    }
    assert (data == before).all()
    found["selected", "log_prob"].sum().backward()
    trained = dict(policy.trainable())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in trained.values())
    known = {id(p) for p in trained.values()}
    assert all(p.grad is None for p in policy.parameters() if id(p) not in known)
    assert sum(1 for p in policy.parameters() if id(p) not in known) == len(known)  # the frozen copy


@both
def test_under_the_reference_there_are_no_gradients(estimator: type[Likelihood]) -> None:
    policy = tiny_policy(characters="abcd", initializer_range=0.25)
    policy.freeze_reference()
    sampler = make(SAMPLERS[0], LENGTH, 2)
    data = roll_out(sampler, policy, prompts(policy, rows=4))
    with torch.no_grad():
        for _, p in policy.trainable():
            p.mul_(1.5)
    with policy.reference():
        found = estimate(estimator(), data, sampler, policy)
    assert not found["selected", "log_prob"].requires_grad
    source = estimator().recorded["selected", "log_prob"]
    torch.testing.assert_close(found["selected", "log_prob"], data[source] * data["step", "valid"], rtol=0, atol=1e-5)
    moved = estimate(estimator(), data, sampler, policy)
    assert (moved["selected", "log_prob"] - found["selected", "log_prob"]).abs().max() > 0.1


@both
def test_impossible_actions_are_floored(estimator: type[Likelihood]) -> None:
    """A token that the current policy filters out: far below any ratio, with finite gradients."""
    sampler = make(SAMPLERS[0], LENGTH, LENGTH, top_k=1)
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=2))
    final = data["completion_ids"]
    data["completion_ids"] = torch.where(final == 4, 5, 4)
    found = estimate(estimator(), data, sampler)["selected", "log_prob"]
    assert found.flatten().tolist() == [-100.0 * LENGTH] * 2
    POLICY.zero_grad()
    found.sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in POLICY.parameters())


@both
def test_writes_what_is_asked_for_and_nothing_else(estimator: type[Likelihood]) -> None:
    likelihood = estimator()
    sampler, data = trajectory(SAMPLERS[0])
    for asked in [(), *[(key,) for key in likelihood.optional_keys]]:
        found = estimate(likelihood, data, sampler, keys=[*asked, ("selected", "ref_log_prob")])
        new = set(found.keys(True, True)) - set(data.keys(True, True))
        assert new == {("selected", "log_prob"), *asked} == set(likelihood.writes(asked))
