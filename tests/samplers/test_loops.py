"""Whole trajectories against loops: each state predicted alone and unpadded, each rule and number redone in Python."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.oracles import log_odds, loop_entropy, loop_probs
from support.policies import recorded_calls, tiny_policy
from support.rollouts import SAMPLERS, make, prompts, roll_out
from support.seeds import seeded
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.core.keys import KEYS, STEP_DRAFT_IDS
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.base import Sampler, View
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.margin_order import MarginOrder
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.samplers.recorder import MaskRecorder

LENGTH, ROWS = 7, 5
POLICY: TransformersPolicy = tiny_policy(
    characters="abcd", initializer_range=0.25
).double()  # rounding decides nothing in float64
EOS = POLICY.eos_id
EXACT = {"rel": 1e-8, "abs": 1e-9}
every = pytest.mark.parametrize("cls", SAMPLERS, ids=lambda c: c.__name__)


@dataclass
class Redone:
    """A step redone in Python: what each open position of the block predicts."""

    logits: list[list[float]]
    allowed: list[int]
    behaviour: dict[int, list[float]]
    model: dict[int, list[float]]
    certainty: dict[int, list[float]]


def predictions(prompt: Tensor, states: list[list[int]]) -> list[list[list[float]]]:
    """Logits [state][position][token] of transformers' own forward, without padding."""
    ids = torch.cat([prompt.expand(len(states), -1), torch.tensor(states)], dim=1)
    with torch.no_grad():
        return POLICY.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -LENGTH:].tolist()


def redo(sampler: Sampler, logits: list[list[float]], state: list[int]) -> Redone:
    open_ = [i for i in range(LENGTH) if state[i] == POLICY.mask_id]
    allowed = [i for i in open_ if i // sampler.block_length == open_[0] // sampler.block_length]
    b, forbidden = sampler.behaviour, POLICY.forbidden_ids
    options: dict[str, Any] = {"temperature": b.temperature, "top_k": b.top_k, "top_p": b.top_p}
    return Redone(
        logits,
        allowed,
        {i: loop_probs(logits[i], **options, forbidden=forbidden) for i in allowed},
        {i: loop_probs(logits[i], forbidden=forbidden) for i in allowed},
        {i: log_odds(logits[i], forbidden) for i in allowed},
    )


def rule(sampler: Sampler, step: Redone, drawn: dict[int, int]) -> set[int] | None:
    """The positions that the sampler must commit; None where it may be any k. ``drawn``: token per open position."""
    best = {i: max(step.model[i]) for i in step.allowed}
    if isinstance(sampler, ConfidenceThreshold):
        sure = {i for i in step.allowed if best[i] >= sampler.threshold}
        return sure or {max(step.allowed, key=lambda i: (best[i], -i))}
    if isinstance(sampler, EntropyOrder):
        ranked = sorted(step.allowed, key=lambda i: (loop_entropy(step.model[i]), i))
    elif isinstance(sampler, MarginOrder):
        two = {i: sorted(step.model[i])[-2:] for i in step.allowed}
        ranked = sorted(step.allowed, key=lambda i: (two[i][0] - two[i][1], i))
    elif isinstance(sampler, LeftToRight):
        ranked = step.allowed
    elif isinstance(sampler, LowConfidence):
        if not drawn:
            return None
        ranked = sorted(step.allowed, key=lambda i: (-step.certainty[i][drawn[i]], i))
    else:
        assert isinstance(sampler, RandomOrder | PlackettLuceOrder)
        return None
    return set(ranked[: sampler.tokens_per_step])


def log_prob(sampler: Sampler, step: Redone, tokens: dict[int, int], rank: dict[int, int]) -> float:
    """log pi of committing ``tokens`` (by position), in the order ``rank``: the table of theory 2."""
    value = math.fsum(math.log(step.behaviour[i][v]) for i, v in tokens.items())
    if isinstance(sampler, RandomOrder):
        value -= math.log(math.comb(len(step.allowed), len(tokens)))
    elif isinstance(sampler, PlackettLuceOrder):
        weight = {i: max(step.model[i]) ** (1 / sampler.order_temperature) for i in step.allowed}
        for i in sorted(tokens, key=lambda i: rank[i]):
            value += math.log(weight[i] / math.fsum(weight.values()))
            del weight[i]
    elif isinstance(sampler, LowConfidence):
        least = min((step.certainty[i][v], -i) for i, v in tokens.items())
        for j in step.allowed:
            if j not in tokens:
                below = [p for v, p in enumerate(step.behaviour[j]) if (step.certainty[j][v], -j) < least]
                value += math.log(math.fsum(below))
    return value


def check_row(sampler: Sampler, prompt: Tensor, start: list[int], row: TensorDict) -> int:
    """Checks every key of one trajectory from the state ``start``; returns its number of steps."""
    final, commit = row["completion_ids"].tolist(), row["commit_step"].tolist()
    valid, num_steps = row["step", "valid"].tolist(), sampler.max_steps
    given = [i for i in range(LENGTH) if start[i] != POLICY.mask_id]
    assert [i for i in range(LENGTH) if commit[i] == -1] == given
    assert all(final[i] == start[i] for i in given)

    state, states = list(start), []
    for t in range(num_steps):
        before_eos = state[: state.index(EOS)] if sampler.stop_at_eos and EOS in state else state
        running = POLICY.mask_id in before_eos
        assert valid[t] == running
        if not running:
            assert t not in commit
            continue
        assert t == len(states)
        states.append(list(state))
        state = [final[i] if commit[i] == t else state[i] for i in range(LENGTH)]
    left = [i for i in range(LENGTH) if state[i] == POLICY.mask_id]
    assert [i for i in range(LENGTH) if commit[i] == num_steps] == left
    assert all(final[i] == EOS for i in left)
    assert not left or sampler.stop_at_eos

    for t, logits in enumerate(predictions(prompt, states) if states else []):
        step = redo(sampler, logits, states[t])
        tokens = {i: final[i] for i in range(LENGTH) if commit[i] == t}
        assert set(tokens) <= set(step.allowed)
        if not isinstance(sampler, ConfidenceThreshold):
            assert len(tokens) == min(sampler.tokens_per_step, len(step.allowed))
        best = {i: step.behaviour[i].index(max(step.behaviour[i])) for i in step.allowed}
        greedy = sampler.behaviour.temperature == 0
        expected = rule(sampler, step, best if greedy else {})
        assert expected is None or set(tokens) == expected
        assert not greedy or all(tokens[i] == best[i] for i in tokens)
        assert all(step.behaviour[i][v] > 0 for i, v in tokens.items())

        rank = row["token", "commit_rank"].tolist() if ("token", "commit_rank") in sampler.out_keys else []
        if rank:
            assert sorted(rank[i] for i in tokens) == list(range(len(tokens)))
        behaviour = {i: math.log(step.behaviour[i][v]) for i, v in tokens.items()}
        model = {i: math.log(step.model[i][v]) for i, v in tokens.items()}
        entropies = [loop_entropy(step.behaviour[i]) for i in tokens]
        filled = list(states[t])
        for i in range(LENGTH):
            if filled[i] == POLICY.mask_id:
                usable = [v for v in range(POLICY.vocab_size) if v not in POLICY.forbidden_ids]
                filled[i] = max(usable, key=lambda v, i=i: logits[i][v])  # type: ignore[misc]
        wanted = {
            "log_prob": log_prob(sampler, step, tokens, dict(enumerate(rank))),
            "entropy": math.fsum(entropies) / len(tokens),
            "model_entropy": math.fsum(loop_entropy(step.model[i]) for i in tokens) / len(tokens),
            "margin": math.fsum(a - b for b, a in (sorted(step.model[i])[-2:] for i in tokens)) / len(tokens),
            "num_committed": len(tokens),
            "token_log_prob": math.fsum(behaviour.values()),
            "model_log_prob": math.fsum(model.values()),
            "greedy_ids": filled,
        }
        for name, value in wanted.items():
            assert row["step", name][t].tolist() == pytest.approx(value, **EXACT), (name, t)
        for i in tokens:
            assert row["token", "log_prob"][i].item() == pytest.approx(behaviour[i], **EXACT)
            assert row["token", "model_log_prob"][i].item() == pytest.approx(model[i], **EXACT)
    for name in ("log_prob", "entropy", "model_entropy", "margin", "num_committed", "token_log_prob", "model_log_prob"):
        assert not row["step", name][len(states) :].any()
    return len(states)


def sampler_of(cls: type[Sampler], tokens_per_step: int, options: dict[str, Any]) -> Sampler:
    """``tokens_per_step`` chooses the threshold where the class commits by threshold."""
    if cls is ConfidenceThreshold:
        return ConfidenceThreshold(LENGTH, threshold=(0.3, 0.5, 0.8)[tokens_per_step - 1], **options)
    if cls is PlackettLuceOrder:
        options = {**options, "order_temperature": (1.0, 0.3, 4.0)[tokens_per_step - 1]}
    return cls(LENGTH, tokens_per_step, **options)


FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_k": 3},
    {"temperature": 1.6, "top_p": 0.8},
    {"temperature": 0.0},
    {"temperature": 1.2, "top_k": 4, "top_p": 0.9, "stop_at_eos": False},
]


@every
@pytest.mark.parametrize("block_length", [None, 3])
@pytest.mark.parametrize("tokens_per_step", [1, 2, 3])
@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_everything_equals_the_loops(
    cls: type[Sampler], tokens_per_step: int, block_length: int | None, options: dict[str, Any]
) -> None:
    sampler = sampler_of(cls, tokens_per_step, {"block_length": block_length, **options})
    batch = prompts(POLICY, rows=ROWS, seed=tokens_per_step)
    with recorded_calls(POLICY) as calls:
        data = roll_out(sampler, POLICY, batch)
    for row in range(ROWS):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row]]
        steps = check_row(sampler, prompt, [POLICY.mask_id] * LENGTH, data[row])
        if not sampler.stop_at_eos and cls is not ConfidenceThreshold:
            assert steps == sampler.max_steps
    # the policy runs once per step, on the rows that are not finished
    per_step = data["step", "valid"].sum(0).tolist()
    assert [len(ids) for ids, _, _ in calls] == [n for n in per_step if n]


@pytest.mark.parametrize(
    ("length", "per_step", "block", "steps"),
    [
        (7, 1, None, 7),
        (7, 2, None, 4),
        (7, 3, 3, 3),
        (7, 2, 3, 5),
        (7, 9, None, 1),
        (6, 2, 3, 4),
        (6, 3, 9, 2),
        (8, 4, 4, 2),
    ],
)
def test_number_of_steps(length: int, per_step: int, block: int | None, steps: int) -> None:
    sampler = LowConfidence(length, per_step, block, stop_at_eos=False)
    assert sampler.max_steps == steps
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=2))
    assert data["step", "valid"].tolist() == [[True] * steps] * 2
    assert data["step", "num_committed"].amax() == sampler.max_commits


@every
def test_rows_that_end_early_equal_the_loops(cls: type[Sampler]) -> None:
    sampler = sampler_of(cls, 1, {"block_length": 3, "temperature": 4.0})
    batch = prompts(POLICY, rows=16)
    data = roll_out(sampler, POLICY, batch)
    early = (data["commit_step"] == sampler.max_steps).any(-1)
    assert early.any()
    assert not early.all()
    for row in range(16):
        check_row(sampler, batch["prompt_ids"][row][batch["prompt_mask"][row]], [POLICY.mask_id] * LENGTH, data[row])


@every
@pytest.mark.parametrize(("tokens_per_step", "block_length"), [(1, None), (2, 3), (3, 5)])
def test_resuming_equals_the_loops(cls: type[Sampler], tokens_per_step: int, block_length: int | None) -> None:
    """From partly filled states: full, open, with text after an end of text, finished with open positions behind."""
    a, m = POLICY.tokenizer.convert_tokens_to_ids("a"), POLICY.mask_id
    assert EOS is not None
    starts = [
        [a] * LENGTH,
        [m] * LENGTH,
        [m, a, m, m, a, m, a],
        [a, a, m, EOS, m, m, a],
        [a, a, EOS, m, m, m, m],
        [a, a, a, a, m, m, m],
        [EOS, m, m, a, m, m, m],
    ]
    sampler = sampler_of(cls, tokens_per_step, {"block_length": block_length, "temperature": 1.3})
    batch, ids = prompts(POLICY, rows=len(starts)), torch.tensor(starts)
    with recorded_calls(POLICY) as calls:
        result = sampler.resume(seeded(batch), ids, policy=POLICY)
    assert ids.tolist() == starts  # the caller's tensor is left alone
    assert len(calls[0][0]) == 4  # three of the seven are finished as they are
    keys = [key for key in sampler.optional_keys if key != STEP_DRAFT_IDS]  # drafts take noise of their own
    with sampler.rolling_out(POLICY):
        everything = MaskRecorder(POLICY, ids, sampler.max_steps, sampler.recorded_keys(keys))
        sampler.advance(range(sampler.max_steps), seeded(batch), everything, POLICY)
    data = TensorDict({}, [len(starts)]).update(everything.finish())
    assert set(result) == set(sampler.out_keys)
    assert all(torch.equal(value, data[key]) for key, value in result.items())
    for row, start in enumerate(starts):
        check_row(sampler, batch["prompt_ids"][row][batch["prompt_mask"][row]], start, data[row])


@pytest.mark.parametrize("tokens_per_step", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "top_k": 3}, {"temperature": 2.0, "top_p": 0.9}], ids=str)
def test_low_confidence_keeps_the_most_confident_draws(tokens_per_step: int, options: dict[str, Any]) -> None:
    """The rule at temperatures above 0, replayed with the tokens that were drawn, the discarded ones included."""
    sampler = LowConfidence(LENGTH, tokens_per_step, 6, **options)
    batch = prompts(POLICY, rows=40)
    state = [POLICY.mask_id, 4, *[POLICY.mask_id] * 5]
    with torch.no_grad():
        view = sampler.view(POLICY, batch, torch.tensor([state] * 40))
    decision = sampler.decide(view, sample_seeds(40, "cpu", 0))
    not_greedy = 0
    for row in range(40):
        logits = predictions(batch["prompt_ids"][row][batch["prompt_mask"][row]], [state])[0]
        step = redo(sampler, logits, state)
        drawn = {i: int(decision.tokens[row, i]) for i in step.allowed}
        assert set(decision.committed[row].nonzero().flatten().tolist()) == rule(sampler, step, drawn)
        best = {i: max(range(len(logits[i])), key=lambda v, i=i: step.certainty[i][v]) for i in step.allowed}  # type: ignore[misc]
        not_greedy += rule(sampler, step, best) != rule(sampler, step, drawn)
    assert not_greedy > 5


@every
def test_dtypes_and_shapes_are_those_of_the_table(cls: type[Sampler]) -> None:
    policy = tiny_policy(characters="abcd")
    sampler = make(cls, LENGTH, 2, block_length=3)
    data = roll_out(sampler, policy, prompts(policy, rows=3))
    sizes = {"B": 3, "L": LENGTH, "T": sampler.max_steps}
    for key in sampler.writes(sampler.optional_keys):
        spec = KEYS[key]
        assert data[key].dtype == getattr(torch, spec.dtype), key
        assert list(data[key].shape) == [sizes[letter.strip()] for letter in spec.shape.strip("[]").split(",")], key
        assert not data[key].is_inference(), key  # usable under autograd


@every
def test_half_precision_policies_record_in_float32(cls: type[Sampler]) -> None:
    policy = tiny_policy(characters="abcd").to(torch.bfloat16)
    sampler = make(cls, LENGTH, 2)
    data = roll_out(sampler, policy, prompts(policy, rows=4))
    for key in (("step", "log_prob"), ("step", "entropy"), ("token", "log_prob"), ("token", "model_log_prob")):
        assert data[key].dtype == torch.float32
        assert torch.isfinite(data[key]).all()
    log_prob_of_any = data["step", "log_prob"][data["step", "valid"]]
    assert (log_prob_of_any.to(torch.bfloat16).float() != log_prob_of_any).any()  # not rounded to half precision


@every
def test_exactly_the_keys_asked_for(cls: type[Sampler]) -> None:
    sampler, batch = make(cls, LENGTH, 3), prompts(POLICY, rows=2)
    for asked in [(), *[(key,) for key in sampler.optional_keys], sampler.optional_keys[1:4]]:
        data = sampler(seeded(batch), policy=POLICY, keys=asked)
        written = set(data.keys(include_nested=True, leaves_only=True)) - {"prompt_ids", "prompt_mask", "seed"}
        assert written == {*sampler.out_keys, *asked}


def test_the_number_of_position_sets_is_exact_in_float32() -> None:
    """Long completions: lgamma in float32 would be off by 6e-5 here."""
    sampler = RandomOrder(1024, 8, temperature=0.0)
    view = View(torch.zeros(1024, 2), sampler.behaviour, torch.ones(1, 1024, dtype=torch.bool))
    found = sampler.action_log_prob(view, sampler.decide(view, sample_seeds(1, "cpu", 0)))
    assert found.item() == pytest.approx(-math.log(math.comb(1024, 8)), rel=1e-7)


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (ConfidenceThreshold, "threshold", 0.0),
        (ConfidenceThreshold, "threshold", 1.01),
        (PlackettLuceOrder, "order_temperature", 0.0),
        (LowConfidence, "temperature", math.inf),
        (LowConfidence, "temperature", math.nan),
    ],
)
def test_refuses(cls: type[Sampler], name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{cls.__name__}\.{name} must be .*, got {value}"):
        cls(**{"completion_length": 4, name: value})
