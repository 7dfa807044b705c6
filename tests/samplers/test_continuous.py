"""Continuous batching and speculative denoising: the sampler's own trajectories, seed by seed, from fewer forwards."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from support.block_checkpoints import sdar_checkpoint
from support.policies import TabularPolicy, recorded_calls, tiny_policy
from support.rollouts import SAMPLERS, make, no_prompt, prompts, roll_out
from support.seeds import seeded
from tensordict import TensorDict
from torch import Tensor

import dlmrl_kit.samplers.base
from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.audit.enumeration import enumerate_trajectories
from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.caches.prefix_cache import PrefixCache
from dlmrl_kit.core.component import own_parameters
from dlmrl_kit.core.keys import COMMIT_STEP, COMPLETION_IDS, PROBABILITY
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.seeding import combine_seeds
from dlmrl_kit.policies.pretrained import load_policy
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.continuous import Continuous
from dlmrl_kit.samplers.entropy_bound_renoising import EntropyBoundRenoising
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.learned_order import LearnedOrder
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.samplers.speculative import Speculative
from dlmrl_kit.training.card_decoding import decoding_without_the_kit

LENGTH = 7
POLICY = tiny_policy(characters="abcd", initializer_range=0.25, layers=1, hidden=16).to(torch.float64)
WAYS: dict[str, Any] = {
    "no limit": lambda sampler: Continuous(sampler),
    "three places": lambda sampler: Continuous(sampler, 3),
    "one ahead": lambda sampler: Speculative(sampler, 1),
    "all ahead": lambda sampler: Speculative(sampler, 2 * LENGTH),
    "places for guesses": lambda sampler: Speculative(sampler, 3, 5),
}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"tokens_per_step": 2, "block_length": 4, "temperature": 1.5},
    {"tokens_per_step": 3, "top_k": 3, "stop_at_eos": False},
]
each_way = pytest.mark.parametrize("way", WAYS)
some_ways = pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[] if "guesses" in way else pytest.mark.thorough) for way in WAYS]
)


def named(sampler: Any) -> str:
    return type(sampler).__name__


def same(found: TensorDict, expected: TensorDict) -> None:
    assert {*found.keys(True, True)} == {*expected.keys(True, True)}
    for key in expected.keys(True, True):
        if expected[key].is_floating_point():
            torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-9)
        else:
            assert torch.equal(found[key], expected[key]), key


def grouped(rows: int = 8, policy: Any = POLICY) -> TensorDict:
    """Rows in pairs with the same prompt, each with a seed of its own; some prompts are shorter."""
    return seeded(prompts(policy, rows=rows // 2)[torch.arange(rows) // 2], 0)


@pytest.mark.parametrize("number", range(len(SAMPLERS)), ids=lambda number: SAMPLERS[number].__name__)
def test_every_number_is_that_of_the_sampler(number: int) -> None:
    sampler = make(SAMPLERS[number], LENGTH, **SETTINGS[number % len(SETTINGS)])
    way = [*WAYS.values()][number % len(WAYS)]
    same(roll_out(way(sampler), POLICY, grouped()), roll_out(sampler, POLICY, grouped()))


@pytest.mark.thorough
@each_way
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("cls", SAMPLERS, ids=lambda cls: cls.__name__)
def test_with_all_settings(cls: type[MaskSampler], settings: dict[str, Any], way: str) -> None:
    sampler, given = make(cls, LENGTH, **settings), seeded(grouped(12), 1)
    same(roll_out(WAYS[way](sampler), POLICY, given.clone()), roll_out(sampler, POLICY, given.clone()))


@some_ways
def test_greedy_completions_wait_for_the_selector(way: str) -> None:
    """Features behind the block are kept for the steps that may be selected, of rows at different steps."""

    def late(so_far: Any) -> Tensor:
        valid = so_far["step", "valid"]
        return valid & (torch.arange(valid.shape[1]) % 2 == 1)

    sampler = LowConfidence(LENGTH, block_length=3)
    given: dict[str, Any] = {"keys": [("step", "greedy_ids")], "may_choose": late}
    same(roll_out(WAYS[way](sampler), POLICY, grouped(), **given), roll_out(sampler, POLICY, grouped(), **given))


@some_ways
@pytest.mark.parametrize("cache", [DualCache(), PrefixCache(), DualCache(2)], ids=["dual", "prefix", "refreshed"])
def test_with_a_cache(cache: Any, way: str) -> None:
    sampler = LowConfidence(LENGTH, block_length=3)
    found, expected = (roll_out(s, POLICY, grouped(), cache=cache) for s in (WAYS[way](sampler), sampler))
    same(found, expected)


@some_ways
def test_of_a_block_causal_model(way: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("sdar")
    sdar_checkpoint(folder)
    policy = load_policy(str(folder)).double()
    size = policy.block_size
    assert size is not None
    sampler = LowConfidence(2 * size + 1, block_length=size)
    keys: Any = [("step", "greedy_ids")]
    found, expected = (roll_out(s, policy, grouped(6, policy), keys=keys) for s in (WAYS[way](sampler), sampler))
    same(found, expected)


@some_ways
def test_it_goes_on_from_any_state(way: str) -> None:
    sampler = LowConfidence(LENGTH, 2, block_length=4)
    given = grouped()
    half = roll_out(sampler, POLICY, given.clone())["completion_ids"]
    half = half.masked_fill(torch.arange(LENGTH) % 2 == 0, POLICY.mask_id)
    found, expected = (s.resume(given, half, policy=POLICY) for s in (WAYS[way](sampler), sampler))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)


# Probabilities, exactly: noise is cut into cells within which the sampler takes the same trajectory.


def cells(policy: TabularPolicy) -> tuple[Tensor, Tensor]:
    """Cuts the noise of all steps and positions, uniform in [0, 1), where some state's draw changes.

    Returns:
        A point of each cell, float64 [N, T, L], and the volumes of the cells, [N]; T is L.
    """
    length, vocab = policy.length, policy.vocab
    kinds = torch.cartesian_prod(*[torch.arange(vocab + 1)] * length).reshape(-1, length)
    masked = kinds == policy.mask_id
    bounds = []
    for step in range(length):
        for place in range(length):
            states = kinds[(masked.sum(-1) == length - step) & masked[:, place]]
            at = torch.zeros_like(states, dtype=torch.bool)
            at[:, place] = True
            logits = policy(states, at, at)[:, :vocab] if len(states) else torch.zeros(0, vocab)
            inner = logits.softmax(-1).cumsum(-1)[:, :-1].flatten().detach()
            bounds.append(torch.cat([torch.tensor([0.0, 1.0], dtype=torch.float64), inner]).sort().values)
    middle = [(edges[1:] + edges[:-1]) / 2 for edges in bounds]
    width = [edges.diff() for edges in bounds]
    points = torch.cartesian_prod(*middle).reshape(-1, length, length)
    return points, torch.cartesian_prod(*width).reshape(len(points), -1).prod(-1)


def listed(sampler: MaskSampler, policy: Policy) -> dict[tuple[int, ...], float]:
    """The probability of each trajectory, by the audit."""
    every = enumerate_trajectories(sampler, policy, no_prompt(1).set("group", torch.zeros(1, dtype=torch.int64)))
    return dict(zip(codes(every), every[PROBABILITY].tolist(), strict=True))


def codes(trajectories: Any) -> list[tuple[int, ...]]:
    both = torch.cat([trajectories[COMPLETION_IDS], trajectories[COMMIT_STEP].long()], -1)
    return [tuple(row) for row in both.tolist()]


def integrated(sampler: MaskSampler, policy: TabularPolicy, patch: pytest.MonkeyPatch) -> dict[tuple[int, ...], float]:
    """The probability of each trajectory, as the volume of the noise from which it is drawn."""
    points, volumes = cells(policy)
    batch = no_prompt(len(points)).set("seed", torch.arange(len(points)))
    of_steps = torch.stack([combine_seeds(batch["seed"], step) for step in range(policy.length)], -1)
    known, order = of_steps.flatten().sort()

    def noise(seed: Tensor, rows: Tensor, positions: Tensor, purpose: str) -> Tensor:
        return points.flatten(0, 1)[order[torch.searchsorted(known, seed)]][rows, positions]

    patch.setattr(dlmrl_kit.samplers.base, "uniforms_at", noise)
    total: Counter[tuple[int, ...]] = Counter()
    for code, volume in zip(codes(sampler(batch, policy=policy)), volumes.tolist(), strict=True):
        total[code] += volume
    return {**total}


def check_probabilities(sampler: MaskSampler, way: str, policy: TabularPolicy, patch: pytest.MonkeyPatch) -> None:
    expected, found = listed(sampler, policy), integrated(WAYS[way](sampler), policy, patch)
    assert found.keys() == expected.keys()
    assert len(found) > 2
    for code, probability in expected.items():
        assert found[code] == pytest.approx(probability, rel=1e-10, abs=1e-14)


@each_way
@pytest.mark.parametrize("sampler", [LowConfidence(2), EntropyOrder(2), ConfidenceThreshold(2)], ids=named)
def test_probabilities_of_trajectories(sampler: MaskSampler, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_probabilities(sampler, way, TabularPolicy(2, 2, seed=1, scale=2.0), monkeypatch)


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", [LowConfidence(2), EntropyOrder(2), ConfidenceThreshold(2)], ids=named)
@each_way
def test_probabilities_with_more_tokens(sampler: MaskSampler, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_probabilities(sampler, way, TabularPolicy(3, 2, seed=1, scale=2.0), monkeypatch)


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["no limit", "one ahead", "all ahead"])
def test_probabilities_of_more_steps(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_probabilities(LowConfidence(3), way, TabularPolicy(2, 3, seed=2), monkeypatch)


# Forwards.


def forwards(sampler: MaskSampler, given: TensorDict, policy: Any = POLICY) -> list[int]:
    """How many states each forward of a rollout runs."""
    with recorded_calls(policy) as calls:
        sampler(given.clone(), policy=policy)
    return [len(ids) for ids, _, _ in calls]


def test_places_are_filled_until_no_row_waits() -> None:
    sampler, given = LowConfidence(LENGTH, stop_at_eos=True), seeded(prompts(POLICY, 12, width=6), 0)
    steps = sampler(given.clone(), policy=POLICY)["step", "valid"].sum(-1)
    assert len({*steps.tolist()}) > 2, "rows should end at different steps"
    found = forwards(Continuous(sampler, 4), given)
    assert max(found) <= 4
    assert sum(forwards(Continuous(sampler), given)) <= sum(found) <= int(steps.sum())
    in_pieces = sum(int(piece.max()) for piece in steps.split(4))
    assert len(found) < in_pieces


def test_equal_states_are_run_once() -> None:
    one = seeded(prompts(POLICY, 1), 0)
    given = torch.cat([one] * 5)
    assert forwards(Continuous(LowConfidence(LENGTH, stop_at_eos=False)), given) == [1] * LENGTH, "equal seeds"
    apart = seeded(torch.cat([one] * 5), 3)
    assert forwards(Continuous(LowConfidence(LENGTH, temperature=1.5)), apart)[0] == 1


def test_right_guesses_save_forwards() -> None:
    """Where predictions do not depend on the state every guess is right."""
    table = TabularPolicy(3, 6)
    with torch.no_grad():
        table.table.copy_(table.table[:1].expand_as(table.table))
    given = seeded(no_prompt(4), 0)
    assert len(forwards(LowConfidence(6), given, table)) == 6
    assert len(forwards(Speculative(LowConfidence(6), 1), given, table)) == 4, "nothing is known before the first"
    assert len(forwards(Speculative(LowConfidence(6), 5), given, table)) == 2
    limited = forwards(Speculative(LowConfidence(6), 5, 8), given, table)
    assert len(limited) == 4
    assert max(limited) <= 8


def test_a_forward_takes_one_step_at_least_and_one_more_than_its_guesses_at_most() -> None:
    given = seeded(prompts(POLICY, 1), 0)
    sampler = LowConfidence(LENGTH, temperature=1.5, stop_at_eos=False)
    for ahead in (1, 2, 4):
        found = forwards(Speculative(sampler, ahead), given)
        assert LENGTH / (ahead + 1) <= len(found) <= LENGTH
        assert LENGTH <= sum(found) <= len(found) * (ahead + 1)


@pytest.mark.parametrize("states", [None, 1, 5, 64])
def test_no_forward_runs_more_states_than_is_said(states: int | None) -> None:
    sampler, given = LowConfidence(LENGTH, temperature=1.5), seeded(prompts(POLICY, 6), 0)
    for batched, most in ((Continuous(sampler, states), 6), (Speculative(sampler, 2, states), 18)):
        assert max(forwards(batched, given)) <= batched.states_at_once(6) == min(most, states or most)
    assert sampler.states_at_once(6) == 6 == max(forwards(sampler, given))


@pytest.mark.parametrize("cls", [LowConfidence, EntropyOrder, RandomOrder])
def test_wrong_guesses_cost_states_and_save_nothing(cls: type[MaskSampler]) -> None:
    """A model that is sure of token 0 where the number of masks is even, and of 1 where it is odd."""
    table, length = TabularPolicy(2, 4), 4
    kinds = torch.cartesian_prod(*[torch.arange(3)] * length).flip(-1)  # in the order of the table
    token = (kinds == table.mask_id).sum(-1) % 2
    with torch.no_grad():
        table.table.copy_(1e6 * torch.nn.functional.one_hot(token, 3)[:, None].expand_as(table.table))
    given = seeded(no_prompt(1), 0)
    assert forwards(make(cls, length), given, table) == [1, 1, 1, 1]
    assert forwards(Speculative(make(cls, length), 1), given, table) == [1, 2, 2, 1], (
        "nothing to guess before and after"
    )
    assert sum(forwards(Speculative(make(cls, length), 3), given, table)) == 4 + 2 + 1


# What a sampler of samplers passes on.


def test_modules_of_the_sampler_are_trained() -> None:
    sampler = Speculative(LearnedOrder(LENGTH), 2)
    sampler.attach(POLICY)
    assert own_parameters([sampler])
    same(roll_out(sampler, POLICY, grouped()), roll_out(sampler.sampler, POLICY, grouped()))


def test_copies_keep_what_is_sampled_and_how() -> None:
    sampler = Speculative(ConfidenceThreshold(LENGTH, threshold=0.4), 2, 9)
    greedy = sampler.at_temperature(0.0)
    assert (greedy.temperature, greedy.sampler.temperature, sampler.sampler.temperature) == (0.0, 0.0, 1.0)
    small = sampler.resized(sampler.sizes, LowConfidence(3).sizes)
    assert isinstance(small, Speculative)
    assert (small.completion_length, small.sampler.completion_length, small.ahead, small.states) == (3, 3, 2, 9)


class Twins(LowConfidence):
    group_size = 2


class OwnLoop(LowConfidence):
    def advance(self, *given: Any) -> None:
        super().advance(*given)


class Cooled(LowConfidence):
    def processing(self, prompt: Any, positions: Tensor) -> Any:
        return lambda logits, place: 3 * logits

    def exact_advantage(self) -> Any:
        return GroupMean()


def test_what_the_sampler_does_to_logits_and_asks_of_the_audit_is_passed_on() -> None:
    sampler = Cooled(LENGTH, block_length=4)
    found = Speculative(sampler, 2)
    same(roll_out(found, POLICY, grouped()), roll_out(sampler, POLICY, grouped()))
    assert not torch.equal(
        roll_out(found, POLICY, grouped())["step", "log_prob"],
        roll_out(Speculative(LowConfidence(LENGTH, block_length=4), 2), POLICY, grouped())["step", "log_prob"],
    )
    assert isinstance(found.exact_advantage(), GroupMean)
    process = found.processing(no_prompt(1), torch.ones(1, LENGTH, dtype=torch.bool))
    assert process is not None
    assert process(torch.ones(1), slice(None)) == 3


def test_a_model_card_decodes_as_what_is_sampled() -> None:
    sampler = LowConfidence(LENGTH)
    assert decoding_without_the_kit(POLICY, Continuous(sampler)) == decoding_without_the_kit(POLICY, sampler)


@pytest.mark.parametrize(
    "sampler",
    [
        Twins(4),
        OwnLoop(4),
        EntropyBoundRenoising(4, 4),
        Continuous(LowConfidence(4)),
        Speculative(LowConfidence(4)),
        LowConfidence,
    ],
    ids=named,
)
def test_samplers_that_cannot_be_run_row_by_row_are_refused(sampler: Any) -> None:
    for cls in (Continuous, Speculative):
        with pytest.raises(ValueError, match="one that fills masks, each sample by itself, and step by step"):
            cls(sampler)


@pytest.mark.parametrize("given", [{"states": 0}, {"states": -1}, {"ahead": 0}, {"ahead": -3}])
def test_numbers_out_of_range_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        Speculative(LowConfidence(4), **given)
