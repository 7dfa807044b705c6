"""Token editing: the published rule, states that are stored, and exact log-probabilities of fills and edits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given as drawn_from
from hypothesis import settings
from hypothesis import strategies as st
from support.exact_gradients import check_audit, check_gradient
from support.family_cases import CASES
from support.policies import tiny_policy
from support.rollouts import prompts
from support.seeds import seeded
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.audit.enumeration import check_draws, enumerate_trajectories
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.core.trajectory import canvas_state, states
from dlmrl_kit.likelihoods.block_replay import BlockReplay
from dlmrl_kit.likelihoods.steps import StepLogProb, StepTokenLogProb
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.token_editing import TokenEditing
from dlmrl_kit.selectors.top_k import EntropyTopK

LENGTH = 7
EAGER: dict[str, Any] = {"threshold": 0.45, "editing_threshold": 0.0}
POLICY = tiny_policy(characters="abcd", initializer_range=0.25)
PROBLEMS = [
    (Problem(vocab=2, length=3, seed=1), {"steps": 3}),
    (Problem(vocab=3, length=2, prompts=2, policy="network", seed=2), {"steps": 4, "temperature": 0.7}),
    (Problem(vocab=2, length=4, block_length=2, seed=3), {"steps": 3, "editing_threshold": 0.6}),
    (Problem(vocab=2, length=4, block_length=2, eos=1, seed=4, spread=2.0), {"steps": 2, "top_p": 0.8}),
]
LARGER = [PROBLEMS[0], *[pytest.param(*pair, marks=pytest.mark.thorough) for pair in PROBLEMS[1:]]]


def listing(problem: Problem, **changes: Any) -> tuple[TokenEditing, Any]:
    sampler = TokenEditing(problem.length, problem.block_length, **{**EAGER, "threshold": 0.6, **changes})
    return sampler, enumerate_trajectories(sampler, problem.denoiser, problem.batch())


def edits(trajectory: Any, mask_id: int) -> Tensor:
    """Where a step drew a token in place of another: bool [B, T, L]."""
    accepted: Tensor = trajectory["step", "accepted"]
    return accepted & (trajectory["step", "state_ids"] != mask_id)


@pytest.mark.parametrize(("problem", "changes"), LARGER, ids=lambda p: "")
def test_probabilities_are_exact_on_a_tiny_vocabulary(problem: Problem, changes: dict[str, Any]) -> None:
    sampler, listed = listing(problem, **changes)
    sums = torch.zeros(problem.prompts, dtype=torch.float64).index_add(0, listed["group"], listed["probability"])
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-12)
    assert edits(listed, problem.denoiser.mask_id).any()
    check_draws(sampler, problem.denoiser, problem.batch(), listed, 2000)
    for row in listed:
        assert float(row["probability"]) == pytest.approx(by_hand(problem, sampler, row), rel=1e-9)


def by_hand(problem: Problem, sampler: TokenEditing, row: Any) -> float:
    """Goes through the stored states with the rule in plain Python; returns the probability of the trajectory."""
    mask, size, total, step = problem.denoiser.mask_id, sampler.block_length, 1.0, 0
    happened = int(row["step", "valid"].sum())
    final = row["completion_ids"].tolist()
    after = [*row["step", "state_ids"][:happened].tolist(), final]
    ends = problem.denoiser.eos_ids
    for first in range(0, problem.length, size):
        block, taken = range(first, first + size), 0
        if any(token in ends for token in final[:first]):
            assert row["commit_step"][first : first + size].tolist() == [sampler.max_steps] * size
            continue
        while True:
            state = after[min(step, happened)] if step <= happened else final
            given = [mask if i >= first + size else state[i] for i in range(problem.length)]
            ids = torch.tensor([[*row["prompt_ids"].tolist(), *given]])
            logits = problem.denoiser.model(ids, torch.ones_like(ids).bool())[0, 1:, : problem.vocab].detach()
            sure = [float(logits[i].softmax(-1).max()) for i in range(problem.length)]
            open_now = [i for i in block if given[i] == mask]
            fill = {i for i in open_now if sure[i] >= sampler.threshold}
            if open_now and not fill:
                fill = {max(open_now, key=lambda i: sure[i])}
            if taken == sampler.steps - 1:
                fill = set(open_now)
            edit = {i for i in block if given[i] != mask and int(logits[i].argmax()) != given[i]}
            edit = {i for i in edit if sure[i] >= sampler.editing_threshold}
            if not fill | edit or taken == sampler.steps:
                break
            assert set(row["step", "accepted"][step].nonzero().flatten().tolist()) == fill | edit
            for i in fill | edit:
                probs = (logits[i] / sampler.temperature).softmax(-1)
                if sampler.top_p < 1 and float(probs.max()) >= sampler.top_p:
                    probs = (probs == probs.max()).double()
                total *= float(probs[after[step + 1][i]])
            step, taken = step + 1, taken + 1
        assert row["commit_step"][first : first + size].tolist() == [step - 1] * size
    assert step == happened
    return total


@pytest.mark.thorough
def test_the_gradient_is_that_of_the_expected_reward() -> None:
    problem = Problem(vocab=2, length=2, seed=8)
    listed = check_gradient(problem, lambda: listing(problem, steps=3))
    assert edits(listed, problem.denoiser.mask_id).any()


def test_the_audit_accepts_it() -> None:
    check_audit(TokenEditing(16, steps=2, **EAGER))


def rolled(policy: Any, sampler: TokenEditing, rows: int = 8, seed: int = 0, **given: Any) -> Any:
    given = {"keys": sampler.optional_keys, **given}
    return sampler(seeded(prompts(policy, rows), seed), policy=policy, **given)


def check_recorded(policy: Any, sampler: TokenEditing, trajectory: Any, likelihood: Any) -> None:
    valid = trajectory["step", "valid"]
    step = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    trajectory["selected"] = TensorDict({"step": step, "weight": valid.float()}, [len(valid)])
    found = likelihood(trajectory, policy=policy, sampler=sampler, keys=[("selected", "entropy")])["selected"]
    for key in ("log_prob", "entropy"):
        torch.testing.assert_close(found[key].detach(), trajectory["step", key], atol=2e-4, rtol=1e-4)
    assert (trajectory["step", "log_prob"][valid] < 0).all()
    assert edits(trajectory, policy.mask_id).any()


@pytest.mark.parametrize("likelihood", [StepLogProb, StepTokenLogProb])
def test_recorded_log_probabilities_are_recomputed(likelihood: Any) -> None:
    sampler = TokenEditing(LENGTH, 4, steps=6, temperature=0.8, top_p=0.95, **EAGER)
    check_recorded(POLICY, sampler, rolled(POLICY, sampler), likelihood())


@settings(max_examples=8, deadline=None)
@drawn_from(
    st.integers(0, 10**6),
    st.integers(1, LENGTH),
    st.integers(1, 9),
    st.floats(0.05, 1.0),
    st.floats(0.0, 1.0),
    st.booleans(),
)
def test_trajectories_are_valid(seed: int, block: int, steps: int, fill: float, edit: float, stops: bool) -> None:
    sampler = TokenEditing(LENGTH, block, fill, edit, steps, stop_at_eos=stops)
    found = rolled(POLICY, sampler, 4, seed, keys=())
    valid, accepted, commit = found["step", "valid"], found["step", "accepted"], found["commit_step"].long()
    state = found["step", "state_ids"].long()
    assert not torch.isin(found["completion_ids"], torch.tensor(POLICY.forbidden_ids)).any()
    assert (accepted.any(-1) == valid).all()
    for row in range(4):
        happened = int(valid[row].sum())
        assert valid[row, :happened].all()
        after = [*state[row, :happened], found["completion_ids"][row]]
        blocks = commit[row].split(sampler.block_length)
        before = -1
        for number, part in enumerate(blocks):
            assert len({*part.tolist()}) == 1
            last = int(part[0])
            assert last == sampler.max_steps or before < last <= before + steps
            inside = slice(number * sampler.block_length, number * sampler.block_length + len(part))
            for t in range(before + 1, min(last, happened - 1) + 1):
                changed = after[t] != after[t + 1]
                assert (changed <= accepted[row, t])[inside].all()
                assert not accepted[row, t, : inside.start].any()
                assert not accepted[row, t, inside.stop :].any()
                gone = (after[t][inside] == POLICY.mask_id) & (after[t + 1][inside] != POLICY.mask_id)
                assert gone.any() == (after[t][inside] == POLICY.mask_id).any()  # masks only go, one at least
            before = last


def test_without_edits_it_is_confidence_threshold() -> None:
    """No block needs more steps than it has positions, and the draws are the same."""
    sampler = TokenEditing(LENGTH, 4, 0.5, 1.0, steps=4)
    other = ConfidenceThreshold(LENGTH, 4, threshold=0.5)
    found = rolled(POLICY, sampler)
    expected = other(seeded(prompts(POLICY, 8)), policy=POLICY, keys=[("step", "greedy_ids")])
    assert not edits(found, POLICY.mask_id).any()
    steps = other.max_steps
    whole = found["step", "num_committed"][:, steps:]
    assert not whole.any()
    # A text that ends within a block is filled up to the end of the block here.
    same = expected["step", "valid"]
    assert same.any(-1).all()
    for key in ("log_prob", "entropy", "greedy_ids"):
        torch.testing.assert_close(found["step", key][:, :steps][same], expected["step", key][same])
    kept = expected["commit_step"] < steps
    assert torch.equal(found["completion_ids"][kept], expected["completion_ids"][kept])


def published(logits: Any, ids: list[int], sampler: TokenEditing, known: tuple[int, Any], offset: int) -> list[int]:
    """The published loop at temperature 0 for one sequence, whose completion begins at ``offset`` of a block."""
    mask, forbidden = known
    ids = [*ids, *[mask] * sampler.completion_length]
    first = len(ids) - sampler.completion_length
    size = sampler.block_length
    while mask in ids:
        begin = ids.index(mask)
        end = min(len(ids), ((begin - first + offset) // size + 1) * size - offset + first)
        for _ in range(sampler.steps):
            scores = logits(torch.tensor(ids)).clone()
            scores[:, list(forbidden)] = -torch.inf
            probs = scores.float().softmax(-1)
            sure, best = probs.max(-1)
            masks = [i for i in range(begin, end) if ids[i] == mask]
            fill = [i for i in masks if float(sure[i]) >= sampler.threshold]
            if masks and not fill:
                fill = [max(masks, key=lambda i: float(sure[i]))]
            edit = [i for i in range(begin, end) if ids[i] not in (mask, int(best[i]))]
            edit = [i for i in edit if float(sure[i]) >= sampler.editing_threshold]
            if not fill and not edit:
                break
            for i in (*fill, *edit):
                ids[i] = int(best[i])
    return ids[first:]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "thresholds"),
    [("llada2", (0.2, 0.0)), ("sdar", (0.2, 0.0)), ("llada", (0.3, 0.12)), ("dream", (0.2, 0.0))],
)
def test_greedy_tokens_are_those_of_the_published_loop(name: str, thresholds: tuple[float, float]) -> None:
    case = next(case for case in CASES if case.name == name)
    policy, size = case.load(), case.block_size or 4
    sampler = TokenEditing(3 * size, size, *thresholds, steps=12, temperature=0.0, stop_at_eos=False)
    known, edited = (policy.mask_id, policy.forbidden_ids), False
    for prompt in ([9, 11, 8, 10, 12], [13, 9]):
        batch = {"prompt_ids": torch.tensor([prompt]), "prompt_mask": torch.ones(1, len(prompt), dtype=torch.bool)}
        out = sampler(seeded(TensorDict(batch, [1])), policy=policy)
        offset = len(prompt) % size if case.block_size else 0
        with torch.no_grad():
            expected = published(case.logits, prompt, sampler, known, offset)
        assert out["completion_ids"][0].tolist() == expected
        edited |= bool(edits(out, policy.mask_id).any())
    assert edited


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["llada2", "sdar"])
def test_blocks_that_are_cached_are_replayed_in_full(name: str) -> None:
    """A rollout reads finished blocks from the cache; ``BlockReplay`` falls back to a forward for each step."""
    case = next(case for case in CASES if case.name == name)
    policy, size = case.load(), case.block_size
    sampler = TokenEditing(3 * size - 1, size, 0.2, 0.1, steps=7)
    check_recorded(policy, sampler, rolled(policy, sampler), BlockReplay())


def test_states_are_stored_and_a_restart_goes_on_from_them() -> None:
    sampler = TokenEditing(LENGTH, 4, steps=5, temperature=0.0, stop_at_eos=False, **EAGER)
    trajectory = rolled(POLICY, sampler)
    assert edits(trajectory, POLICY.mask_id).any()
    happened = trajectory["step", "valid"].sum(-1)
    for step in range(int(happened.max()) + 1):
        at = happened.clamp(max=step)[:, None]
        rest = {key: value.squeeze(1) for key, value in canvas_state(trajectory, at).items()}
        assert int(rest["steps_in_block"].max()) <= sampler.steps
        given = seeded(prompts(POLICY, 8)).update(rest)
        again = sampler.resume(given, states(trajectory, at, POLICY.mask_id).squeeze(1), policy=POLICY)
        assert torch.equal(again["completion_ids"], trajectory["completion_ids"])  # greedy: noise plays no part
        assert torch.equal(again["step", "valid"].sum(-1), happened - at[:, 0])


def test_greedy_completions_fill_the_masks_of_chosen_states() -> None:
    sampler = TokenEditing(LENGTH, 4, steps=5, **EAGER)
    whole = rolled(POLICY, sampler)
    chosen = rolled(POLICY, sampler, may_choose=EntropyTopK(2).kept)
    valid = whole["step", "valid"]
    for row, step in valid.nonzero().tolist():
        ids = whole["step", "state_ids"][row, step].long()[None]
        given = prompts(POLICY, 8)[row : row + 1]
        view = sampler.view(POLICY, given, ids, ids == POLICY.mask_id)
        best = ids.masked_scatter(ids == POLICY.mask_id, view.logits.argmax(-1))
        assert torch.equal(whole["step", "greedy_ids"][row, step].long(), best[0])
    kept = (chosen["step", "greedy_ids"] >= 0).all(-1) & valid
    assert kept.sum(-1).tolist() == valid.sum(-1).clamp(max=2).tolist()
    assert torch.equal(chosen["step", "greedy_ids"][kept], whole["step", "greedy_ids"][kept])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "TokenEditing.threshold must be in"),
        ({"threshold": 1.01}, "TokenEditing.threshold must be in"),
        ({"editing_threshold": -0.1}, "TokenEditing.editing_threshold must be in"),
        ({"editing_threshold": 2.0}, "TokenEditing.editing_threshold must be in"),
        ({"steps": 0}, "TokenEditing.steps must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenEditing(8, **options)
