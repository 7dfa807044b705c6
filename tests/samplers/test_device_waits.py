"""How often a denoising step waits for a GPU, counted on the stand-in for one (``support.device_waits``)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.device_waits import counted
from support.family_cases import CASES
from support.other_device import context, other_device
from support.policies import tiny_policy
from support.rollouts import OF_ANOTHER, prompts
from support.seeds import seeded

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.caches.prefix_cache import PrefixCache
from dlmrl_kit.core.behaviour import LOG_ZERO, Behaviour, certainty, log_mass
from dlmrl_kit.core.keys import STEP_DRAFT_IDS, STEP_GREEDY_IDS, STEP_MODEL_ENTROPY, STEP_MODEL_LOG_PROB, Key
from dlmrl_kit.core.trajectory import beside, bring, on_device, on_host, places, taken
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.recipe.catalogue import components, find
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.continuous import Continuous
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.samplers.speculative import Speculative
from dlmrl_kit.selectors.top_k import EntropyTopK
from dlmrl_kit.step_schedules.even_steps import EvenSteps

LENGTH, BLOCK, ROWS = 12, 4, 5
KEYS: tuple[Key, ...] = (STEP_GREEDY_IDS, STEP_MODEL_LOG_PROB, STEP_MODEL_ENTROPY)
KIT = [c for c in components("sampler") if c.package == "dlmrl_kit" and issubclass(c.cls, MaskSampler)]
SAMPLERS = [c.name for c in KIT if c.name not in OF_ANOTHER]
TOGETHER = {"LowConfidence", "TemperedLowConfidence", "DynamicLowConfidence"}
"""These draw tokens before they choose positions: the host asks for both at once. All others choose positions first."""
OF_TRANSFORMERS = {"bert": 1, "modernbert": 2}
"""Masked language models: transformers asks, once for each kind of layer, whether there is padding."""
FAMILIES = ["llada", "llada_moe", "llada2", "dream", "sdar", "sdar_moe", "fast_dllm", "a2d_qwen3", *OF_TRANSFORMERS]
USUAL = ("LowConfidence", "ConfidenceThreshold")


def waits(
    sampler: Sampler, policy: TransformersPolicy, cache: Cache | None = None, keys: tuple[Key, ...] = KEYS, **given: Any
) -> list[list[str]]:
    """What each denoising step but the last waited for; rows have prompts of unequal length."""
    prompt = seeded(prompts(policy, ROWS, width=9), 0)
    prompt["group"] = torch.arange(ROWS) // 4
    starts: list[int] = []
    with other_device() as device, pytest.MonkeyPatch.context() as patch:
        policy.to(device)
        policy.model.tie_weights()
        features: Callable[..., Any] = policy.features

        def watched(*given: Any) -> Any:
            starts.append(len(found))
            return features(*given)

        with counted() as found:
            patch.setattr(policy, "features", watched)
            sampler(prompt.to(device), policy=policy, cache=cache, keys=keys, **given)
    return [found[start:stop] for start, stop in itertools.pairwise(starts)]


def make(name: str, **options: Any) -> Sampler:
    per_step = {} if name in ("BernoulliOrder", "ConfidenceThreshold") else {"tokens_per_step": 2}
    made: Sampler = find(name, "sampler").cls(LENGTH, **{"block_length": BLOCK, **per_step, **options})
    return made


def ending() -> TransformersPolicy:
    """A policy whose texts end at different steps."""
    return tiny_policy(1)


def test_rows_end_early() -> None:
    policy = ending()
    out = make("LowConfidence")(seeded(prompts(policy, ROWS, width=9), 0), policy=policy)
    assert len({*out["step", "valid"].sum(-1).tolist()}) > 2


@pytest.mark.parametrize("name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.thorough) for n in SAMPLERS])
def test_a_step_waits_once_or_twice(name: str) -> None:
    steps = waits(make(name), ending())
    assert len(steps) >= 3
    assert {len(step) for step in steps} == {1 if name in TOGETHER else 2}, max(steps, key=len)


@pytest.mark.thorough
@pytest.mark.parametrize("name", USUAL)
def test_what_it_runs_row_by_row_adds_no_wait(name: str) -> None:
    """A guess waits as a step does: the host must know what was drawn to run the state."""
    own = 1 if name in TOGETHER else 2
    for states in (None, 3):
        steps = waits(Continuous(make(name), states), ending())
        assert {len(step) for step in steps} == {own}, max(steps, key=len)
    found = waits(Speculative(make(name), 1), ending())
    assert max(len(step) for step in found) <= own * 4  # two steps of rows, and a guess after each


REDRAWING = [
    ("EntropyBoundRenoising", {"steps": 4, "confidence_threshold": 0.0}, (STEP_GREEDY_IDS, STEP_DRAFT_IDS)),
    ("EntropyBoundRenoising", {"steps": 6, "confidence_threshold": 1.5, "top_p": 0.9}, KEYS),
    ("TokenEditing", {"steps": 6, "threshold": 0.2, "editing_threshold": 0.0}, ()),
]


@pytest.mark.parametrize(("name", "options", "keys"), REDRAWING)
def test_a_step_that_draws_again_waits_twice(name: str, options: dict[str, Any], keys: tuple[Key, ...]) -> None:
    """For the positions that are accepted, then for the tokens; and once where a block turns out to be finished."""
    sampler = find(name, "sampler").cls(LENGTH, block_length=BLOCK, **options)
    steps = waits(sampler, ending(), keys=keys)
    assert len(steps) >= 5
    assert {len(step) for step in steps} <= {1, 2}, max(steps, key=len)


OPTIONS: list[tuple[str, dict[str, Any], dict[str, Any], int]] = [
    ("LowConfidence", {"tokens_per_step": EvenSteps(4), "top_p": 0.9}, {}, 1),
    ("LowConfidence", {"stop_at_eos": False, "temperature": 0.0}, {"keys": ()}, 1),
    ("LowConfidence", {}, {"keys": (STEP_DRAFT_IDS, STEP_GREEDY_IDS)}, 1),
    ("LowConfidence", {}, {"cache": DualCache()}, 1),
    ("LowConfidence", {}, {"cache": PrefixCache()}, 1),
    # The selector is asked when features of so many bytes wait, which it seldom is: here it never does.
    ("LowConfidence", {}, {"may_choose": EntropyTopK(2).kept}, 1),
    ("EntropyOrder", {}, {"keys": (STEP_DRAFT_IDS,)}, 2),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "options", "given", "most"), OPTIONS)
def test_settings_do_not_add_to_it(name: str, options: dict[str, Any], given: dict[str, Any], most: int) -> None:
    assert {len(step) for step in waits(make(name, **options), ending(), **given)} == {most}


@pytest.mark.thorough
@pytest.mark.parametrize("name", FAMILIES)
def test_families_do_not_add_to_it(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    # Blocks that are cached, with the sampler of which the host does not know how many positions it takes.
    sampler, most = ("ConfidenceThreshold", 2) if case.block_size else ("LowConfidence", 1)
    steps = waits(make(sampler, block_length=case.block_size or BLOCK), case.load())
    assert steps
    assert {len(step) for step in steps} == {most + OF_TRANSFORMERS.get(name, 0)}, max(steps, key=len)


WAITING: list[tuple[int, Callable[[Any], Any]]] = [
    (1, lambda x: x.sum().item()),
    (1, lambda x: bool((x > 1).any())),
    (1, lambda x: x.tolist()),
    (1, lambda x: x.cpu()),
    (1, lambda x: x.nonzero()),
    (1, lambda x: torch.where(x > 1)),
    (1, lambda x: x[x > 1]),
    (1, lambda x: x.masked_select(x > 1)),
    (1, lambda x: x.unique()),
    (1, lambda x: torch.equal(x, x)),
    (1, lambda x: torch.repeat_interleave(x)),
    (2, lambda x: x.bincount()),
    (1, lambda x: torch.tensor([1], device=x.device)),
    (1, lambda x: x.new_tensor([1])),
    (1, lambda x: x[torch.tensor([0])]),
    (1, lambda x: x.__setitem__(x - x, 3)),
    (0, lambda x: x.__setitem__(x > 1, 3)),  # filled, without a list of places
    (0, lambda x: x[x - x]),
    (0, lambda x: torch.where(x > 1, x, 0)),
    (0, lambda x: x.masked_fill(x > 1, 0).sort()),
    (0, lambda x: x.masked_scatter(x > 1, x)),
    (0, lambda x: torch.ones(3, device=x.device) + 2),
    (0, lambda x: torch.tensor([1]).to(x.device, non_blocking=True)),
]


@pytest.mark.parametrize("mode", [True, False])
def test_what_counts(mode: bool) -> None:
    with other_device() as device, torch.inference_mode(mode):
        for number, (times, work) in enumerate(WAITING):
            x = torch.arange(3).to(device)
            with counted() as found:
                work(x)
            assert len(found) == times, (number, found)


def test_what_the_host_knows() -> None:
    with other_device() as device, counted() as found:
        mask = on_device(torch.tensor([[True, False, True], [False, True, True]]), device)
        row, column = places(mask)
        both = beside(mask, taken(mask, (slice(None), slice(1, 3))))
        rows = taken(both, on_device(torch.tensor([1]), device))
        assert found == []
        assert on_host(rows).tolist() == [[False, True, True, True, True]]
        assert found == []
        assert rows.tolist() == [[False, True, True, True, True]]  # which asks the device
        assert (row.tolist(), column.tolist()) == ([0, 0, 1, 1], [0, 2, 1, 2])
        del found[:]
        unknown, other = mask | mask, row[:3].expand(2, 3)
        bring(unknown, other)
        assert (on_host(unknown).tolist(), on_host(other).tolist()) == (on_host(mask).tolist(), [[0, 0, 1]] * 2)
        assert on_host(unknown).dtype == torch.bool
        assert on_host(beside(mask, ~mask)).shape == (2, 6)
        assert len(found) == 2
    here = torch.ones(2, 2, dtype=torch.bool)
    assert on_host(here) is here
    assert on_device(here, torch.device("cpu")) is here


def test_elsewhere_confidences_and_masses_are_those_of_the_cpu() -> None:
    logits = 6 * torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    logits[0] = torch.tensor([0.0] + [-200.0] * 49)
    behaviour, at, found = Behaviour(0.7, top_p=0.95), torch.arange(0, 40, 2), {}
    for device in ("cpu", "meta"):
        with context(device):
            there, index = logits.to(device), at.to(device)
            certain = certainty(there)
            some = certain.at(index)
            below = some.threshold(some.best, ties=index > 20)
            mass = log_mass(there, index, behaviour, some, below)
            found[device] = [part.cpu() for part in (*certain, below, mass)]
    for there, here in zip(found["meta"], found["cpu"], strict=True):
        torch.testing.assert_close(there, here, rtol=2e-6, atol=2e-6)
    assert (found["cpu"][-1] == LOG_ZERO).any()
