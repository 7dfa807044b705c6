"""One pass over a large vocabulary against the functions of ``core.behaviour`` on whole logits, and whole rollouts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.paths import ROOT
from torch import Tensor, nn

from dlmrl_kit.core import behaviour as whole
from dlmrl_kit.core import policy as policies
from dlmrl_kit.core import scan as scanning
from dlmrl_kit.core.behaviour import Behaviour
from dlmrl_kit.core.errors import NotFiniteError
from dlmrl_kit.core.keys import (
    STEP_DRAFT_IDS,
    STEP_GREEDY_IDS,
    STEP_MARGIN,
    STEP_MODEL_ENTROPY,
    STEP_MODEL_LOG_PROB,
    STEP_TOKEN_LOG_PROB,
    TOKEN_LOG_PROB,
    TOKEN_MODEL_LOG_PROB,
    Key,
)
from dlmrl_kit.samplers.base import View
from dlmrl_kit.samplers.continuous import Continuous
from dlmrl_kit.samplers.dynamic_low_confidence import DynamicLowConfidence
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.samplers.speculative import Speculative
from dlmrl_kit.samplers.tempered import TemperedLowConfidence

sys.path.insert(0, str(ROOT / "benchmarks"))

from common import Size, make_policy, make_prompts

BLOCK = scanning.BLOCK
SIZE = Size(vocab=4500, hidden=64, layers=1, prompt=5, length=9, block=6, batch=3, lora=0, head=32)


def features_and_weight(positions: int, vocab: int, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(positions, 4, generator=generator)
    return features, torch.randn(vocab, 4, generator=generator) * scale / 2


def in_tiles(widest: int, found: Callable[[], Any]) -> Any:
    """Calls a function with tiles of at most ``widest`` columns."""
    before = scanning._WIDEST
    scanning._WIDEST = widest
    try:
        with torch.inference_mode():
            return found()
    finally:
        scanning._WIDEST = before


def within(drawn: Tensor, probs: Tensor, noise: Tensor) -> bool:
    """Whether each drawn token is possible and is the one in whose part of [0, 1) the noise lies, up to rounding."""
    upper = probs.cumsum(-1).gather(1, drawn[:, None]).squeeze(1)
    share = probs.gather(1, drawn[:, None]).squeeze(1)
    return bool(((share > 0) & (upper - share - 1e-5 <= noise) & (noise <= upper + 1e-5)).all())


CASES = {
    "positions": st.integers(1, 5),
    "vocab": st.sampled_from([1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 1300, 2600]),
    "widest": st.sampled_from([BLOCK, 2 * BLOCK, 16 * BLOCK]),
    "scale": st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0]),
    "seed": st.integers(0, 10**6),
    "left_out": st.sampled_from(["none", "some", "the end"]),
}


def forbidden_of(left_out: str, vocab: int) -> list[int]:
    """``the end``: more than a whole tile of the smallest size."""
    if vocab < 3 or left_out == "none":
        return []
    return list(range(max(1, vocab - 600), vocab)) if left_out == "the end" else [0, vocab // 2]


@settings(max_examples=60, deadline=None)
@given(**CASES, temperature=st.sampled_from([0.05, 0.3, 0.9, 1.0, 2.0]))
@example(positions=2, vocab=2600, widest=BLOCK, scale=30.0, seed=0, left_out="the end", temperature=0.05)
def test_a_pass_is_what_whole_logits_say(
    positions: int, vocab: int, widest: int, scale: float, seed: int, left_out: str, temperature: float
) -> None:
    features, weight = features_and_weight(positions, vocab, scale, seed)
    forbidden, behaviour = forbidden_of(left_out, vocab), Behaviour(temperature)
    scratch: scanning.Scratch = {}
    in_tiles(
        widest, lambda: scanning.scan(weight, 1 + 2 * features.repeat(2, 1), [], behaviour, scratch)
    )  # leaves bits
    found = in_tiles(widest, lambda: scanning.scan(weight, features, forbidden, behaviour, scratch))
    logits = whole.forbid(features @ weight.T, forbidden)
    torch.testing.assert_close(found.logits, logits, rtol=1e-5, atol=1e-5)
    logits = found.logits.clone()

    log_probs = whole.behaviour_log_probs(logits.double(), behaviour)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(positions, generator=generator, dtype=torch.float64)
    drawn = found.draw(noise)
    assert within(drawn, log_probs.exp(), noise)
    at = torch.arange(positions).flip(0)
    assert torch.equal(found.draw(noise.flip(0), at), drawn.flip(0))
    close: Any = {"rtol": 2e-5, "atol": 2e-5, "check_dtype": False}
    torch.testing.assert_close(found.log_probs(drawn, at.flip(0)), log_probs.gather(1, drawn[:, None])[:, 0], **close)
    of_model = logits.double().log_softmax(-1).gather(1, drawn[:, None])[:, 0]
    torch.testing.assert_close(found.model_log_probs(drawn.flip(0), at), of_model.flip(0), **close)
    torch.testing.assert_close(found.entropy(at), whole.entropy(log_probs).flip(0), **close)
    assert torch.equal(logits.gather(1, found.best()[:, None])[:, 0], logits.amax(-1))


@settings(max_examples=60, deadline=None)
@given(**CASES, temperature=st.sampled_from([0.3, 0.9, 1.0]), ties=st.booleans())
@example(positions=3, vocab=2600, widest=BLOCK, scale=30.0, seed=1, left_out="some", temperature=0.3, ties=True)
def test_confidences_and_order_terms_are_those_of_whole_logits(
    positions: int, vocab: int, widest: int, scale: float, seed: int, left_out: str, temperature: float, ties: bool
) -> None:
    features, weight = features_and_weight(positions, vocab, scale, seed)
    forbidden, behaviour = forbidden_of(left_out, vocab), Behaviour(temperature)
    found = in_tiles(widest, lambda: scanning.scan(weight, features, forbidden, behaviour, {}))
    logits, certain = found.logits.clone(), found.certain
    wanted = whole.certainty(logits)
    assert torch.equal(certain.top, wanted.top)
    torch.testing.assert_close(certain.log_total, wanted.log_total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(certain.best, wanted.best, rtol=1e-5, atol=2e-5)
    sure = wanted.log_total < 0.69  # log 2 is where confidence has another formula
    assert torch.equal(certain.dominant[sure], wanted.dominant[sure])
    generator = torch.Generator().manual_seed(seed)
    possible = whole.behaviour_log_probs(logits, Behaviour()).exp()
    token = torch.multinomial(possible, 1, generator=generator)[:, 0]
    at = torch.arange(positions)
    bar = certain.confidence(logits[at, token]).flip(0)  # of another position, as in a step
    threshold = certain.threshold(bar, torch.full((positions,), ties))
    mass = found.log_mass(at, threshold)
    exact = whole.log_mass(logits.double(), at, behaviour, whole.Certainty(*map(doubled, certain)), threshold.double())
    one = whole.log_mass(logits, at, behaviour, certain, threshold)
    torch.testing.assert_close(mass, one, rtol=2e-5, atol=2e-5)
    same = (below(logits, certain, threshold) == below(logits.double(), certain, threshold.double())).all(-1)
    torch.testing.assert_close(mass.double()[same], exact[same], rtol=2e-5, atol=2e-5)
    some = at[positions // 2 :]
    assert torch.equal(found.log_mass(some, threshold[some]), mass[some])


def doubled(values: Tensor) -> Tensor:
    return values.double() if values.dtype.is_floating_point else values


def below(logits: Tensor, certain: whole.Certainty, threshold: Tensor) -> Tensor:
    """Which tokens count as less confident, in the precision of the logits."""
    top, total = (values.to(logits.dtype)[:, None] for values in (certain.top, certain.log_total))
    return logits - top - total < threshold[:, None]


@settings(max_examples=30, deadline=None)
@given(**CASES)
def test_the_best_tokens_in_tiles(
    positions: int, vocab: int, widest: int, scale: float, seed: int, left_out: str
) -> None:
    features, weight = features_and_weight(positions, vocab, scale, seed)
    forbidden = forbidden_of(left_out, vocab)
    best = in_tiles(widest, lambda: scanning.best_in_tiles(weight, features, forbidden))
    logits = whole.forbid(features @ weight.T, forbidden)
    torch.testing.assert_close(logits.gather(1, best[:, None])[:, 0], logits.amax(-1), rtol=1e-5, atol=1e-5)
    assert not {*best.tolist()} & {*forbidden}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    features, weight = features_and_weight(2, 1000, 1.0, 0)
    weight[700, 0] = bad
    found = scanning.scan(weight, features.abs(), [], Behaviour(0.9), {})
    with pytest.raises(NotFiniteError):
        found.draw(torch.tensor([0.5, 0.9], dtype=torch.float64))


RECORDS: tuple[Key, ...] = (
    STEP_GREEDY_IDS, STEP_MODEL_LOG_PROB, STEP_TOKEN_LOG_PROB, TOKEN_LOG_PROB, TOKEN_MODEL_LOG_PROB,
)  # fmt: skip


def rolled(sampler: MaskSampler, policy: Any, keys: tuple[Key, ...], border: int, monkeypatch: Any) -> Any:
    """A rollout in which vocabularies from ``border`` on are large."""
    monkeypatch.setattr(policies, "LARGE_VOCABULARY", border)
    return sampler(make_prompts(SIZE), policy=policy, keys=keys)


@pytest.mark.parametrize(
    "sampler",
    [
        LowConfidence(9, 2, 6, temperature=0.9),
        LowConfidence(9, 1, 6),
        TemperedLowConfidence(9, 2, 6, temperature=0.7),
        DynamicLowConfidence(9, 2, 6, temperature=0.9, threshold=0.05),
        Continuous(LowConfidence(9, 2, 6, temperature=0.9), states=2),
        Speculative(LowConfidence(9, 2, 6, temperature=0.9), ahead=2),
    ],
    ids=lambda sampler: f"{type(sampler).__name__} {sampler.temperature}",
)
@pytest.mark.parametrize(
    ("more", "limit"),
    [
        pytest.param((), None, id="whole"),
        pytest.param((), 1, id="row by row", marks=pytest.mark.thorough),
        pytest.param((STEP_MODEL_ENTROPY, STEP_MARGIN), None, id="entropy of the model", marks=pytest.mark.thorough),
        pytest.param((STEP_DRAFT_IDS,), 1, id="drafts", marks=pytest.mark.thorough),
    ],
)
def test_rollouts_are_the_same(
    sampler: MaskSampler, more: tuple[Key, ...], limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        monkeypatch.setitem(policies.LOGITS_BYTES, True, limit)
    policy = make_policy(SIZE)
    once = rolled(sampler, policy, (*RECORDS, *more), 1, monkeypatch)
    wanted = rolled(sampler, policy, (*RECORDS, *more), 10**9, monkeypatch)
    for key in wanted.keys(True, True):
        if wanted[key].dtype.is_floating_point:
            torch.testing.assert_close(once[key], wanted[key], rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(once[key], wanted[key]), key


def passes(policy: Any, sampler: MaskSampler, monkeypatch: pytest.MonkeyPatch) -> int:
    """Counts the passes of a rollout."""
    made: list[int] = []
    original = scanning.scan

    def counted(weight: Tensor, features: Tensor, *rest: Any) -> Any:
        made.append(len(features))
        return original(weight, features, *rest)

    monkeypatch.setattr(scanning, "scan", counted)
    sampler(make_prompts(SIZE), policy=policy)
    return len(made)


def test_a_large_vocabulary_takes_one_pass_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes(make_policy(SIZE), LowConfidence(9, 3, 6), monkeypatch) == 3


def with_bias(policy: Any) -> None:
    policy.model.lm_head = nn.Linear(SIZE.hidden, SIZE.vocab)


def with_hook(policy: Any) -> None:
    policy.model.lm_head.register_forward_hook(lambda module, given, logits: logits * 2)


def with_its_own_head(policy: Any) -> None:
    head = policy.head
    policy.head = lambda features: head(features).tanh()


def in_double_precision(policy: Any) -> None:
    policy.double()


@pytest.mark.parametrize("change", [with_bias, with_hook, with_its_own_head, in_double_precision])
def test_a_head_that_is_more_than_a_product_runs_as_it_is(
    change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(SIZE)
    change(policy)
    assert passes(policy, LowConfidence(9, 3, 6), monkeypatch) == 0


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.9}], ids=str)
def test_greedy_and_filtered_draws_take_whole_logits(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes(make_policy(SIZE), LowConfidence(9, 3, 6, **settings), monkeypatch) == 0


def test_a_view_of_other_logits_or_another_behaviour_has_no_pass() -> None:
    features, weight = features_and_weight(2, 1000, 1.0, 0)
    found = scanning.scan(weight, features, [], Behaviour(0.9), {})
    allowed = torch.ones(1, 2, dtype=torch.bool)
    assert View(found.logits, Behaviour(0.9), allowed, one_pass=found).scan is found
    assert View(found.logits.clone(), Behaviour(0.9), allowed, one_pass=found).scan is None
    assert View(found.logits, Behaviour(1.0), allowed, one_pass=found).scan is None
    assert View(found.logits, Behaviour(0.9, top_k=3), allowed, one_pass=found).scan is None
