"""Every selector: the contract, order and company of rows, nesting, float64, parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.seeds import seeded
from support.selector_batches import (
    ENTROPY,
    RANDOM,
    STEP,
    SUBSETS,
    VALID,
    WEIGHT,
    batches,
    budgets,
    chosen,
    every,
    fast,
    lengths,
    run,
    subsets,
    trajectory,
    weighted_sums,
)
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.selectors.entropy_bound import EntropyBound
from dlmrl_kit.selectors.entropy_coverage import EntropyCoverage
from dlmrl_kit.selectors.entropy_importance import EntropyImportance
from dlmrl_kit.selectors.k_steps import FirstK, LastK, UniformSteps
from dlmrl_kit.selectors.random_steps import RandomSteps
from dlmrl_kit.selectors.shrunk_steps import ShrunkSteps
from dlmrl_kit.selectors.top_k import EntropyTopK


@every
@fast
@given(batches, budgets, st.integers(0, 99))
def test_contract(make: Callable[[int], Selector], data: TensorDict, k: int, seed: int) -> None:
    data = seeded(data, seed)
    selector, before = make(k), data.clone()
    result = selector(data)
    assert result is data
    assert set(data.keys(True, True)) == set(before.keys(True, True)) | {STEP, WEIGHT}
    for key in before.keys(True, True):
        torch.testing.assert_close(data[key], before[key], rtol=0, atol=0, equal_nan=True)
    assert set(selector.out_keys) == {STEP, WEIGHT}
    assert set(selector.in_keys) <= set(before.keys(True, True))
    step, weight = data[STEP], data[WEIGHT]
    assert (step.dtype, weight.dtype, step.shape) == (torch.int64, torch.float32, weight.shape)
    replaced = isinstance(selector, EntropyImportance)
    for n, steps, weights in zip(lengths(data), step.tolist(), weight.tolist(), strict=True):
        used = sum(w != 0 for w in weights)
        assert used >= 1
        assert all(w > 0 for w in weights[:used])
        assert all(0 <= s < n for s in steps[:used])
        assert steps[used:] == [0] * (len(steps) - used), "padding comes last"
        assert steps[:used] == sorted(steps[:used])
        assert replaced or len(set(steps[:used])) == used


@subsets
@fast
@given(batches, budgets, st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_result(
    make: Callable[[int], Selector], data: TensorDict, k: int, random: Any
) -> None:
    order = list(range(len(data)))
    random.shuffle(order)
    straight, permuted = run(make(k), data), run(make(k), data[order])
    assert torch.equal(permuted[STEP], straight[STEP][order])
    assert torch.equal(permuted[WEIGHT], straight[WEIGHT][order])


@subsets
@fast
@given(batches, budgets)
def test_a_row_does_not_depend_on_the_others(make: Callable[[int], Selector], data: TensorDict, k: int) -> None:
    together = chosen(run(make(k), data))
    assert together == [chosen(run(make(k), data[i : i + 1]))[0] for i in range(len(data))]


@pytest.mark.parametrize("name", [name for name in SUBSETS if name not in ("AllSteps",) and "Bound" not in name])
def test_subsets_have_weight_one_and_do_not_keep_everything(name: str) -> None:
    result = run(SUBSETS[name](2), trajectory([[1.0, 2.0, 0.5, 4.0, 0.25]]))
    assert 1 <= len(chosen(result)[0]) <= 2
    assert set(result[WEIGHT].unique().tolist()) <= {0.0, 1.0}


levels = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 3, width=32))  # ties are common


@pytest.mark.parametrize("make", [EntropyTopK, FirstK, LastK, ShrunkSteps])
@fast
@given(rows=st.lists(st.lists(levels, min_size=1, max_size=8), min_size=1, max_size=3), k=st.integers(1, 4))
def test_nested_selectors_never_take_back_what_they_left_out(
    make: Callable[[int], Selector], rows: list[list[float]], k: int
) -> None:
    selector, data = make(k), trajectory(rows)
    assert selector.nested
    names = ("valid", "entropy", "num_committed")
    kept = selector.kept(data)
    for t in range(1, kept.shape[1]):
        beginning = TensorDict({"step": {name: data["step", name][:, :t] for name in names}}, [len(rows)])
        assert (kept[:, :t] <= selector.kept(beginning)).all()


def test_a_subclass_that_chooses_otherwise_is_not_nested() -> None:
    class Same(EntropyTopK):
        pass

    class Other(EntropyTopK):
        def kept(self, tensordict: Any) -> Tensor:
            return tensordict[VALID]

    assert Same().nested
    assert not Other().nested
    assert not EntropyImportance().nested


@subsets
def test_selectors_that_take_steps_back_do_not_say_that_they_are_nested(make: Callable[[int], Selector]) -> None:
    selector, data = make(2), trajectory([[0.9, 0.1, 0.5, 3.0, 0.2, 2.0]])
    beginnings = [selector.kept(trajectory([data[ENTROPY][0, :t].tolist()]))[0] for t in range(1, 7)]
    once = all((beginnings[-1][: len(kept)] <= kept).all() for kept in beginnings)
    assert once or not selector.nested


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_expectation_by_sampling(make: Callable[[int], Selector], k: int) -> None:
    rows = 20_000
    data = trajectory([[0.1, 2.0, 0.5, 0.0, 1.0]], spare=1, dtype=torch.float64).expand(rows).contiguous()
    values = torch.tensor([1.0, 2.0, -3.0, 4.0, 0.5, 1e9], dtype=torch.float64)
    sums = weighted_sums(run(make(k), data, seed=5), values)
    assert sums.std() > 0.1
    assert abs(sums.mean() - values[:5].sum()) < 5 * sums.std() / rows**0.5


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
def test_the_seeds_decide(make: Callable[[int], Selector]) -> None:
    data = trajectory([[0.5, 1.0, 0.25, 0.75, 1.0, 2.0]] * 8)
    assert make(2).random
    assert "seed" in make(2).in_keys
    assert torch.equal(run(make(2), data, seed=1)[STEP], run(make(2), data, seed=1)[STEP])
    assert not torch.equal(run(make(2), data, seed=1)[STEP], run(make(2), data, seed=2)[STEP])
    before = torch.get_rng_state()
    run(make(2), data)
    assert torch.equal(before, torch.get_rng_state()), "the global generator is left alone"


@subsets
def test_the_others_need_no_seed(make: Callable[[int], Selector]) -> None:
    assert not make(1).random
    make(1)(trajectory([[0.5, 1.0]]))


@every
def test_none_needs_a_service(make: Callable[[int], Selector]) -> None:
    assert make(1).requires == ()


@every
def test_float64_passes_through(make: Callable[[int], Selector]) -> None:
    rows = [[0.5, 1.0, 0.25], [1.0]]
    double = run(make(2), trajectory(rows, dtype=torch.float64))
    single = run(make(2), trajectory(rows))
    assert (double[WEIGHT].dtype, single[WEIGHT].dtype) == (torch.float64, torch.float32)
    assert torch.equal(double[STEP], single[STEP])
    torch.testing.assert_close(double[WEIGHT].float(), single[WEIGHT])


@every
@pytest.mark.parametrize("k", [1, 3])
def test_a_single_step(make: Callable[[int], Selector], k: int) -> None:
    result = run(make(k), trajectory([[0.5], [0.0]]))
    assert [set(steps) for steps in chosen(result)] == [{0}, {0}]
    torch.testing.assert_close(result[WEIGHT].sum(-1), torch.ones(2))


@pytest.mark.parametrize("selector", [UniformSteps(2), RandomSteps(2), FirstK(2), LastK(2), AllSteps()])
def test_entropy_is_not_needed_by_the_rest(selector: Selector) -> None:
    data = trajectory([[0.5, 1.0, 0.25]]).select(VALID)
    assert {*selector.in_keys} <= {VALID, "seed"}
    assert run(selector, data)[WEIGHT].dtype == torch.float32


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: EntropyTopK(0), r"EntropyTopK\.k must be an integer, at least 1, got 0"),
    (lambda: EntropyTopK(2.0), r"EntropyTopK\.k must be an integer, at least 1, got 2\.0"),  # type: ignore[arg-type]
    (lambda: UniformSteps(0), r"UniformSteps\.k must be .* got 0"),
    (lambda: RandomSteps(-1), r"RandomSteps\.k must be .* got -1"),
    (lambda: FirstK(0), r"FirstK\.k must be .* got 0"),
    (lambda: LastK(0), r"LastK\.k must be .* got 0"),
    (lambda: EntropyImportance(0), r"EntropyImportance\.k must be .* got 0"),
    (lambda: EntropyImportance(1, floor=0.0), r"EntropyImportance\.floor must be in \(0, 1\], got 0\.0"),
    (lambda: EntropyImportance(1, floor=1.5), r"EntropyImportance\.floor must be in \(0, 1\], got 1\.5"),
    (lambda: EntropyCoverage(0.0), r"EntropyCoverage\.alpha must be in \(0, 1\], got 0\.0"),
    (lambda: EntropyCoverage(1.01), r"EntropyCoverage\.alpha must be in \(0, 1\], got 1\.01"),
    (lambda: EntropyCoverage(0.5, max_steps=0), r"EntropyCoverage\.max_steps must be .* or None, got 0"),
    (lambda: EntropyBound(-0.1), r"EntropyBound\.epsilon must be at least 0, got -0\.1"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message.split(" ")[0] for _, message in BAD])
def test_parameter_errors_name_component_and_parameter(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


COUNTING = [
    entry.cls
    for entry in components("selector")
    if entry.package == "dlmrl_kit" and {"k", "n", "shrink"} & {parameter.name for parameter in entry.parameters}
]
"""The selectors with a setting that counts steps."""


def test_the_selectors_that_count_are_found() -> None:
    names = {"FirstK", "LastK", "UniformSteps", "RandomSteps", "EntropyTopK", "TopAbsoluteAdvantage"}
    assert {cls.__name__ for cls in COUNTING} == names | {
        *("ConfusionSteps", "EntropyImportance", "EqualSegments", "ShrunkSteps", "SurprisalSteps")
    }


@pytest.mark.parametrize("cls", COUNTING)
def test_the_default_selects_something_on_the_default_task(cls: type[Selector]) -> None:
    """With as many entries as there are steps, every one of them would be ``AllSteps``, and all ablations equal."""
    steps = load_recipe("egspo_sa").build_algorithm().sampler.max_steps
    data = trajectory([[float(t * 5 % 8) for t in range(steps)]])
    for name in ("advantage", "margin", "token_log_prob"):
        data.set(("step", name), data[ENTROPY].clone())
    found = [tuple(row) for row in chosen(run(cls(), data))]
    assert steps == 8
    assert 1 < len(set(found[0])) < steps
