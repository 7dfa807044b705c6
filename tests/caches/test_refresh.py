"""Refreshes within a block: a function of the state, exact with cells of one position, chosen by earlier updates."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.observers import Stop, StopAfterTheFirstUpdate
from support.policies import recorded_calls, tiny_policy
from support.rollouts import SAMPLERS, make, prompts, roll_out
from support.runs import build, metric_rows, new_run, outcome, recipe
from torch import Tensor

from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.audit import Problem, audit_algorithm, exact_estimator
from dlmrl_kit.audit.scope import scope_of
from dlmrl_kit.caches.adaptive_refresh import AdaptiveRefresh
from dlmrl_kit.caches.base import Cache
from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.caches.prefix_cache import PrefixCache
from dlmrl_kit.core.component import Sizes
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.window import Window
from dlmrl_kit.corrections.trajectory_importance import TrajectoryImportance
from dlmrl_kit.corrections.truncated_importance import TruncatedImportance
from dlmrl_kit.corrections.uncorrected import Uncorrected
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.training.cached_positions import cached_positions
from dlmrl_kit.training.dry_run import states_in_words
from dlmrl_kit.training.estimate import computed_positions, forwards
from dlmrl_kit.training.runs import resume, train

MASK, PROMPT = 9, 2
POLICY = tiny_policy(layers=3, characters="abcd", initializer_range=0.5, attn_implementation="sdpa").double()
KINDS = [DualCache, PrefixCache]


@st.composite
def states(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """A state in the middle of decoding block by block, the length of its completion and of its blocks."""
    length, block = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    begin = draw(st.integers(0, (length - 1) // block)) * block
    own = list(range(begin, min(begin + block, length)))
    still_open = draw(st.sets(st.sampled_from(own), min_size=1))
    masked = [place in still_open or place >= begin + block for place in range(length)]
    return torch.tensor([[*[0] * PROMPT, *(MASK if m else 1 for m in masked)]]), length, block


def anchor(state: Tensor, length: int, block: int, refresh: int | None) -> Tensor:
    return Window(MASK, length, block, refresh=refresh).of(state).anchor


@given(states(), st.integers(1, 12))
def test_the_anchor_has_the_cells_that_are_complete(state: tuple[Tensor, int, int], refresh: int) -> None:
    ids, length, block = state
    completion = ids[0, PROMPT:].tolist()
    begin = completion.index(MASK) // block * block
    expected = list(completion)
    for first in range(begin, min(begin + block, length), min(refresh, block)):
        cell = range(first, min(first + refresh, begin + block, length))
        if MASK in [completion[place] for place in cell]:
            for place in cell:
                expected[place] = MASK
    found = anchor(ids, length, block, refresh)
    assert found[0, PROMPT:].tolist() == expected
    assert torch.equal(anchor(found, length, block, refresh), found)
    assert torch.equal(anchor(ids, length, block, 1), ids)
    assert torch.equal(anchor(ids, length, block, None), anchor(ids, length, block, block))


@given(states(), st.integers(0, 3))
def test_half_the_interval_is_nowhere_further_from_the_state(state: tuple[Tensor, int, int], power: int) -> None:
    fine, coarse = (anchor(*state, refresh) != state[0] for refresh in (2**power, 2 ** (power + 1)))
    assert not bool((fine & ~coarse).any())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", SAMPLERS)
def test_an_interval_of_one_is_the_exact_rollout(cls: type[Sampler], kind: type[Cache]) -> None:
    """Bit for bit, all records included; and one of a whole block or more is the cache without refreshes."""
    sampler = make(cls, 7, tokens_per_step=2, block_length=3, temperature=0.8)

    def sampled(cache: Cache | None) -> Any:
        return roll_out(sampler, POLICY, prompts(POLICY, rows=8), cache=cache)

    found, expected, whole, plain = sampled(kind(1)), sampled(None), sampled(kind(3)), sampled(kind())
    for key in expected.keys(True, True):
        assert torch.equal(found[key], expected[key]), key
        assert torch.equal(whole[key], plain[key]), key


def positions(sampler: Sampler, cache: Cache | None) -> list[int]:
    """Positions that go through the first layer's MLP in each forward of a rollout of one sample."""
    counts: list[int] = []
    hook = POLICY.model.model.layers[0].mlp.register_forward_hook(
        lambda _, given, out: counts.append(out[..., 0].numel())
    )
    try:
        roll_out(sampler, POLICY, prompts(POLICY, rows=1), everything=False, cache=cache)
    finally:
        hook.remove()
    return counts


def test_positions_that_are_computed_from_left_to_right() -> None:
    sampler = LeftToRight(8, 1, block_length=4, stop_at_eos=False)
    assert positions(sampler, DualCache(1)) == positions(sampler, None) == [12] * 8
    assert positions(sampler, DualCache(2)) == [12, 4, 12, 4] * 2
    assert positions(sampler, PrefixCache(2)) == [12, 8, 12, 8, 12, 4, 12, 4]
    assert positions(sampler, DualCache(3)) == [12, 4, 4, 12] * 2
    assert positions(sampler, DualCache()) == [12, 4, 4, 4, 4] * 2


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.one_of(st.none(), st.integers(1, 9)),
    st.integers(1, 9),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_they_follow_from_the_trajectory_and_the_estimate_is_not_below(
    kind: type[Cache], refresh: int | None, block: int, per_step: int, in_order: bool
) -> None:
    cls = LeftToRight if in_order else RandomOrder
    sampler, cache = cls(8, per_step, block_length=min(block, 8), stop_at_eos=False), kind(refresh)
    counts, exact = positions(sampler, cache), sum(positions(sampler, None))
    trajectory = roll_out(sampler, POLICY, prompts(POLICY, rows=1), everything=False, cache=cache)
    assert cached_positions(trajectory, cache, sampler, POLICY) == (sum(counts), exact)
    algorithm = build("egspo", uses=["cache=DualCache"])
    algorithm.sampler, algorithm.cache = sampler, cache
    share = computed_positions(algorithm, prompt_length=4)
    assert share is not None
    assert sum(counts) / exact <= share[1] + 1e-12


PROBLEM = Problem(vocab=2, length=3, policy="deep network", seed=4)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_the_audit_of_each_interval(kind: type[Cache]) -> None:
    """One is exact without a correction; with two there is a bias, which the ratio of trajectories takes away."""

    def bias(cache: Cache, correction: Any) -> float:
        estimator = exact_estimator(RandomOrder(3), {"cache": cache, "correction": correction})
        report = audit_algorithm(estimator, problems=[PROBLEM], attribution=False)
        assert report.exact
        return report.relative_bias

    assert bias(kind(1), Uncorrected()) < 1e-10
    assert bias(kind(2), Uncorrected()) > 1e-4
    assert bias(kind(2), TrajectoryImportance()) < 1e-8
    truncated = TruncatedImportance()
    adaptive = exact_estimator(RandomOrder(3), {"cache": AdaptiveRefresh(cache=kind()), "correction": truncated})
    assert "AdaptiveRefresh: shorter intervals" in " ".join(scope_of(adaptive, 2, 1).left_out)
    assert bias(AdaptiveRefresh(cache=kind()), truncated) == bias(kind(), truncated) > 1e-4


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 8))
def test_on_small_problems_it_stays_what_it_is(refresh: int, block: int, small: int) -> None:
    before, after = (Sizes(size, size, size, 1) for size in (block, small))
    found = DualCache(refresh).resized(before, after).refresh
    assert found is not None
    assert (found == 1) == (refresh == 1)
    if 1 < refresh < block and small > 2:
        assert found < small
    assert DualCache().resized(before, after).refresh is None


SETS = ["Sampler.block_length = 8", "CharacterLlama.num_layers = 2", "Sampler.tokens_per_step = 1"]
ADAPTIVE = ["cache=AdaptiveRefresh", "policy=CharacterLlama"]


def test_an_update_is_sampled_by_what_those_before_it_measured(tmp_path: Path) -> None:
    """The first is the exact one, and the interval of none depends on its own samples."""
    run = new_run(tmp_path, "egspo", sets=SETS, uses=ADAPTIVE)
    adaptive, update = run.algorithm.cache, run.update
    assert isinstance(adaptive, AdaptiveRefresh)
    messages: list[str] = []
    update.say = messages.append
    sampled_with, pace = [], update.refreshing.pace
    for number in range(3):
        assert update.cache.refresh == update.refreshing.pace.refresh
        sampled_with.append(update.cache.refresh)
        metrics = update(number)
        assert metrics["cache/refresh"] == sampled_with[-1]
        size, cost = metrics["correction/effective_sample_size"], 1.0
        assert (size == 1.0) == (sampled_with[-1] == 1)
        if number:
            cost = metrics["cache/computed_positions"] + metrics["selected_steps"] / metrics["steps"]
        pace = adaptive.next(pace, size, cost, run.algorithm.sampler.block_length)
        assert update.refreshing.pace == pace
    assert sampled_with[:2] == [1, 2]
    said = [text.split(": ")[1] for text in messages if text.startswith("next update: ")]
    assert said == [f"cache/refresh {a} -> {b}" for a, b in itertools.pairwise([*sampled_with, pace.refresh]) if a != b]


def test_positions_are_counted_sample_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, cache = RandomOrder(8, 1, block_length=4), DualCache(2)
    trajectory = roll_out(sampler, POLICY, prompts(POLICY, rows=5), everything=False, cache=cache)
    each = [cached_positions(trajectory[row : row + 1], cache, sampler, POLICY) for row in range(5)]
    total = tuple(map(sum, zip(*each, strict=True)))
    assert cached_positions(trajectory, cache, sampler, POLICY) == total
    monkeypatch.setattr("dlmrl_kit.training.cached_positions.POSITIONS_AT_ONCE", 2 * 8 * sampler.max_steps)
    assert cached_positions(trajectory, cache, sampler, POLICY) == total


@pytest.mark.parametrize("likelihood", ["StepLogProb", "StepTokenLogProb"])
@pytest.mark.parametrize("uses", [ADAPTIVE, ["cache=DualCache", "policy=CharacterLlama"]], ids=["adaptive", "fixed"])
def test_while_it_is_exact_it_is_the_recipe_without_a_cache(uses: list[str], likelihood: str, tmp_path: Path) -> None:
    """Bit for bit, and with its forwards: what was recorded is the policy's, so that nothing is computed again."""
    sets, exactly = [*SETS, "EntropyTopK.k = 2"], [f"likelihood={likelihood}"]
    found = []
    for name, more in (("cached", uses), ("exact", ["policy=CharacterLlama"])):
        own = [*sets, "DualCache.refresh = 1"] if "cache=DualCache" in more else sets
        run = new_run(tmp_path / name, "egspo", sets=own, uses=[*more, *exactly])
        run.update.difference = 0.0  # the check before the first update is another one with a correction
        with recorded_calls(run.policy) as calls:
            metrics = run.update(0)
        metrics = {key: value for key, value in metrics.items() if not key.startswith(("cache/", "correction/"))}
        found.append((metrics, len(calls), [p.detach().clone() for p in run.parameters.values()]))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(a, b) for a, b in zip(found[0][2], found[1][2], strict=True))


@pytest.mark.thorough
def test_what_costs_more_than_exact_rollouts_is_left(tmp_path: Path) -> None:
    """An exact forward for every step is what the exact rollout takes: it looks at each interval once."""
    sets = [*SETS, "AdaptiveRefresh.smallest_effective_sample_size = 0.001"]
    run = new_run(tmp_path, "egspo", sets=sets, uses=[*ADAPTIVE, "correction=TrajectoryImportance"])
    assert [run.update(number)["cache/refresh"] for number in range(6)] == [1, 2, 4, 8, 1, 1]


@pytest.mark.thorough
@pytest.mark.parametrize("smallest", [0.01, 1.0])
def test_a_run_that_adapts_resumes(smallest: float, tmp_path: Path) -> None:
    sets = [*SETS, "Trainer.updates = 4", "Trainer.eval_every = 0"]
    sets += [f"AdaptiveRefresh.smallest_effective_sample_size = {smallest}", "AdaptiveRefresh.try_again_after = 1"]
    small = recipe("egspo_sa", sets=sets, uses=ADAPTIVE)
    train(small, tmp_path / "whole")
    with pytest.raises(Stop):
        train(small, tmp_path / "run", observer=StopAfterTheFirstUpdate())
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert metric_rows(tmp_path / "run") == metric_rows(tmp_path / "whole")
    intervals = [value for _, value in read_metrics(tmp_path / "whole")["cache/refresh"]]
    assert intervals == ([1, 2, 4, 8] if smallest < 1 else [1, 2, 1, 2])


def test_what_cannot_measure_drift_is_refused_with_the_way_out() -> None:
    with pytest.raises(RecipeError, match=r"all weights of Uncorrected are 1: set Algorithm.correction = @Truncated"):
        build("egspo", uses=["cache=AdaptiveRefresh", "correction=Uncorrected"])
    assert build("egspo", uses=["cache=AdaptiveRefresh", "correction=TrajectoryImportance"]).correction is not None
    with pytest.raises(ValueError, match=r"AdaptiveRefresh.cache .*a cache with the setting refresh"):
        AdaptiveRefresh(cache=AdaptiveRefresh())
    with pytest.raises(ValueError, match=r"smallest_effective_sample_size .*above 0 and at most 1"):
        AdaptiveRefresh(0.0)
    with pytest.raises(ValueError, match=r"DualCache.refresh .*at least 1, or None"):
        DualCache(0)


def test_a_collector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"told once what to sample with, but AdaptiveRefresh changes it"):
        new_run(tmp_path, "egspo_sa", uses=["cache=AdaptiveRefresh", "collector=OneUpdateBehind"])


def test_the_dry_run_says_what_share_may_be_computed() -> None:
    def share(*sets: str, cache: str = "DualCache") -> Any:
        algorithm = build(
            "egspo", sets=["Sampler.block_length = 4", "Sampler.tokens_per_step = 1", *sets], uses=[f"cache={cache}"]
        )
        return computed_positions(algorithm, prompt_length=17)

    whole, exact = share(), share("DualCache.refresh = 1")
    assert whole == ((33 + 4 * 4) / (4 * 33),) * 2
    assert exact == (1.0, 1.0)
    half = share("DualCache.refresh = 2")  # two anchors, and a window in every step but the first
    assert half == ((2 * 33 + 3 * 4) / (4 * 33),) * 2
    assert share(cache="AdaptiveRefresh") == (whole[0], 1.0)
    algorithm = build("egspo", uses=["cache=AdaptiveRefresh"])
    count = forwards(algorithm, make_plan(algorithm))
    assert "(computing by measured drift 37% to 100% of the positions)" in states_in_words(count, (whole[0], 1.0))
    assert "(computing 37% of the positions)" in states_in_words(count, whole)


def test_it_goes_up_to_the_caches_own_interval() -> None:
    assert AdaptiveRefresh(cache=PrefixCache(6)).longest(16) == 6
    assert AdaptiveRefresh(cache=PrefixCache(6)).longest(4) == 4
    assert [pace.refresh for pace in AdaptiveRefresh().paces(16)] == [1, 2, 4, 8, 16]
    sampler = LowConfidence(16, 2)
    window = AdaptiveRefresh(cache=PrefixCache(6)).window(POLICY, 16, sampler.block_length)
    assert window == PrefixCache(6).window(POLICY, 16, sampler.block_length)
