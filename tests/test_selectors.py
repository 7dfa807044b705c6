"""Selectors against plain loops; expectations of the random ones by enumeration; padding, ties, ends of rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.selectors.base import Selector, is_nested
from dlmrl_kit.selectors.entropy_bound import EntropyBound
from dlmrl_kit.selectors.entropy_coverage import EntropyCoverage
from dlmrl_kit.selectors.entropy_importance import EntropyImportance
from dlmrl_kit.selectors.k_steps import FirstK, LastK, UniformSteps
from dlmrl_kit.selectors.random_steps import RandomSteps
from dlmrl_kit.selectors.shrunk_steps import ShrunkSteps
from dlmrl_kit.selectors.top_k import EntropyTopK

STEP, WEIGHT = ("selected", "step"), ("selected", "weight")
VALID, ENTROPY, COMMITTED = ("step", "valid"), ("step", "entropy"), ("step", "num_committed")

SUBSETS: dict[str, Callable[[int], Selector]] = {
    "EntropyTopK": EntropyTopK,
    "EntropyCoverage": lambda k: EntropyCoverage(1 / k),
    "EntropyCoverage max_steps": lambda k: EntropyCoverage(0.9, max_steps=k),
    "EntropyBound": lambda k: EntropyBound(0.5 * k),
    "UniformSteps": UniformSteps,
    "FirstK": FirstK,
    "LastK": LastK,
    "AllSteps": lambda k: AllSteps(),
}
RANDOM: dict[str, Callable[[int], Selector]] = {"RandomSteps": RandomSteps, "EntropyImportance": EntropyImportance}
EVERY = SUBSETS | RANDOM
subsets = pytest.mark.parametrize("make", SUBSETS.values(), ids=SUBSETS)
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
fast = settings(max_examples=60, deadline=None)


def trajectory(rows: list[list[float]], spare: int = 0, dtype: torch.dtype = torch.float32) -> TensorDict:
    """A batch whose rows have these entropies; what lies past the end of a row is NaN and 99 committed positions."""
    steps = max(len(row) for row in rows) + spare
    entropy = torch.full((len(rows), steps), torch.nan, dtype=dtype)
    committed = torch.full((len(rows), steps), 99)
    for i, row in enumerate(rows):
        entropy[i, : len(row)] = torch.tensor(row, dtype=dtype)
        committed[i, : len(row)] = torch.arange(len(row)) * 7 % 3 + 1
    valid = torch.tensor([[t < len(row) for t in range(steps)] for row in rows])
    step = {"valid": valid, "entropy": entropy, "num_committed": committed}
    return TensorDict({"step": step, "reward": torch.arange(len(rows)) / 4}, [len(rows)])


quarters = st.integers(0, 5).map(lambda i: i / 4)  # few values, so that ties happen
rows_of = st.lists(st.lists(quarters, min_size=1, max_size=7), min_size=1, max_size=4)
batches = st.builds(trajectory, rows_of, st.integers(0, 2))
budgets = st.integers(1, 9)


def run(selector: Selector, data: TensorDict, seed: int = 0) -> TensorDict:
    services = {"generator": torch.Generator().manual_seed(seed)} if "generator" in selector.requires else {}
    return selector(data.clone(), **services)


def chosen(result: TensorDict) -> list[list[int]]:
    """Steps of nonzero weight of each row."""
    pairs = zip(result[STEP].tolist(), result[WEIGHT].tolist(), strict=True)
    return [[s for s, w in zip(step, weight, strict=True) if w != 0] for step, weight in pairs]


def lengths(data: TensorDict) -> list[int]:
    return data[VALID].sum(-1).tolist()


def top(values: list[float], count: int) -> list[int]:
    """The steps of the ``count`` largest values, the earlier first among equals, in order of time."""
    return sorted(sorted(range(len(values)), key=lambda t: (-values[t], t))[:count])


@every
@fast
@given(batches, budgets, st.integers(0, 99))
def test_contract(make: Callable[[int], Selector], data: TensorDict, k: int, seed: int) -> None:
    selector, before = make(k), data.clone()
    services = {"generator": torch.Generator().manual_seed(seed)} if "generator" in selector.requires else {}
    result = selector(data, **services)
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


@fast
@given(batches, budgets)
def test_fixed_budgets_against_loops(data: TensorDict, k: int) -> None:
    entropy = [row[:n] for row, n in zip(data[ENTROPY].tolist(), lengths(data), strict=True)]
    assert chosen(run(EntropyTopK(k), data)) == [top(row, k) for row in entropy]
    assert chosen(run(FirstK(k), data)) == [list(range(len(row)))[:k] for row in entropy]
    assert chosen(run(LastK(k), data)) == [list(range(len(row)))[-k:] for row in entropy]
    assert chosen(run(AllSteps(), data)) == [list(range(len(row))) for row in entropy]
    width = min(k, data[VALID].shape[1])
    for selector in (EntropyTopK(k), FirstK(k), LastK(k), UniformSteps(k), RandomSteps(k)):
        assert run(selector, data)[STEP].shape[1] == width
    assert run(AllSteps(), data)[STEP].shape[1] == max(lengths(data))


@fast
@given(rows_of, st.integers(1, 20), st.one_of(st.none(), budgets))
def test_coverage_against_a_loop(rows: list[list[float]], twentieths: int, max_steps: int | None) -> None:
    alpha = Fraction(twentieths, 20)
    expected = []
    for row in rows:
        exact, count = [Fraction(h) for h in row], 1
        while sum(exact[t] for t in top(row, count)) < alpha * sum(exact):
            count += 1
        expected.append(top(row, count if max_steps is None else min(count, max_steps)))
    result = run(EntropyCoverage(float(alpha), max_steps), trajectory(rows, spare=2))
    assert chosen(result) == expected
    assert result[STEP].shape[1] == max(len(steps) for steps in expected)


@fast
@given(rows_of, st.integers(0, 30))
def test_bound_against_a_loop(rows: list[list[float]], quarter: int) -> None:
    data, epsilon = trajectory(rows, spare=1), quarter / 4
    expected = []
    for i, row in enumerate(rows):
        summed = [h * c for h, c in zip(row, data[COMMITTED][i].tolist(), strict=False)]
        kept = list(range(len(row)))
        for t in reversed(sorted(kept, key=lambda t: (-summed[t], t))[1:]):  # smallest first, at least one is kept
            if sum(summed[s] for s in range(len(row)) if s not in kept) + summed[t] > epsilon:
                break
            kept.remove(t)
        expected.append(kept)
    assert chosen(run(EntropyBound(epsilon), data)) == expected


def test_bound_counts_positions() -> None:
    """Step 1 has the lower mean entropy but commits more positions: step 0 is dropped."""
    data = trajectory([[0.5, 0.4, 1.0]])
    data[COMMITTED] = torch.tensor([[1, 3, 1]])
    assert chosen(run(EntropyBound(0.6), data)) == [[1, 2]]
    assert chosen(run(EntropyBound(0.0), data)) == [[0, 1, 2]]
    assert chosen(run(EntropyBound(100.0), data)) == [[1]]


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
    kept = selector.kept(data, None)
    for t in range(1, kept.shape[1]):
        beginning = TensorDict({"step": {name: data["step", name][:, :t] for name in names}}, [len(rows)])
        assert (kept[:, :t] <= selector.kept(beginning, None)).all()


def test_a_subclass_that_chooses_otherwise_is_not_nested() -> None:
    class Same(EntropyTopK):
        pass

    class Other(EntropyTopK):
        def kept(self, tensordict: Any, generator: Any) -> Tensor:
            return tensordict[VALID]

    assert is_nested(Same())
    assert not is_nested(Other())
    assert not is_nested(EntropyImportance())


@subsets
def test_selectors_that_take_steps_back_do_not_say_that_they_are_nested(make: Callable[[int], Selector]) -> None:
    selector, data = make(2), trajectory([[0.9, 0.1, 0.5, 3.0, 0.2, 2.0]])
    beginnings = [selector.kept(trajectory([data[ENTROPY][0, :t].tolist()]), None)[0] for t in range(1, 7)]
    once = all((beginnings[-1][: len(kept)] <= kept).all() for kept in beginnings)
    assert once or not selector.nested


floats = st.lists(st.lists(st.floats(0, 3, width=32), min_size=1, max_size=8), min_size=1, max_size=3)


@fast
@given(floats, st.floats(0.01, 1), st.floats(0.01, 1))
def test_coverage_is_monotone_and_covers(rows: list[list[float]], a: float, b: float) -> None:
    data = trajectory(rows)
    small, large = (chosen(run(EntropyCoverage(alpha), data)) for alpha in sorted((a, b)))
    for row, few, many in zip(rows, small, large, strict=True):
        assert set(few) <= set(many)
        assert sum(row[t] for t in many) >= max(a, b) * sum(row) * (1 - 1e-6)


@fast
@given(floats, st.floats(0, 10), st.floats(0, 10))
def test_bound_is_monotone_and_holds(rows: list[list[float]], a: float, b: float) -> None:
    data = trajectory(rows)
    summed = (data[ENTROPY].double() * data[COMMITTED]).tolist()
    strict, loose = (chosen(run(EntropyBound(epsilon), data)) for epsilon in sorted((a, b)))
    for i, row in enumerate(rows):
        assert set(loose[i]) <= set(strict[i])
        for epsilon, kept in zip(sorted((a, b)), (strict[i], loose[i]), strict=True):
            assert sum(summed[i][t] for t in range(len(row)) if t not in kept) <= epsilon * (1 + 1e-12)


@fast
@given(st.lists(st.lists(st.one_of(st.just(0.0), st.floats(0, 3)), min_size=1, max_size=8), min_size=1, max_size=3))
def test_full_coverage_keeps_exactly_the_steps_with_entropy(rows: list[list[float]]) -> None:
    expected = [[t for t, h in enumerate(row) if h > 0] or [0] for row in rows]
    assert chosen(run(EntropyCoverage(1.0), trajectory(rows, dtype=torch.float64))) == expected


def test_full_coverage_keeps_entropies_lost_in_rounding() -> None:
    data = trajectory([[1e-30, 3.0, 1e-20, 0.0, 5.0]])
    assert chosen(run(EntropyCoverage(1.0), data)) == [[0, 1, 2, 4]]
    assert chosen(run(EntropyCoverage(1 - 1e-6), data)) == [[1, 4]]


def test_full_coverage_of_long_rows_drops_steps_without_entropy() -> None:
    gen = torch.Generator().manual_seed(0)
    rows = [[*torch.rand(61, generator=gen, dtype=torch.float64).tolist(), 0.0, 0.0] for _ in range(20)]
    result = run(EntropyCoverage(1.0), trajectory(rows, dtype=torch.float64))
    assert chosen(result) == [list(range(61))] * 20


def test_coverage_is_not_upset_by_rounding() -> None:
    """0.9 of ten equal entropies is nine of them, though 1 - 0.9 < 0.1 in floating point."""
    assert chosen(run(EntropyCoverage(0.9), trajectory([[0.1] * 10]))) == [list(range(9))]


def test_negative_round_off_counts_as_no_entropy() -> None:
    assert chosen(run(EntropyCoverage(1.0), trajectory([[1.0, 5e-9, -1e-8, 2.0]]))) == [[0, 1, 3]]


@pytest.mark.parametrize(
    ("n", "k", "expected"),
    [
        (9, 3, [0, 4, 8]),
        (8, 4, [0, 2, 5, 7]),
        (4, 3, [0, 2, 3]),
        (5, 2, [0, 4]),
        (5, 1, [2]),
        (4, 1, [1]),
        (1, 3, [0]),
        (2, 5, [0, 1]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_uniform_steps_by_hand(n: int, k: int, expected: list[int]) -> None:
    assert chosen(run(UniformSteps(k), trajectory([[1.0] * n], spare=3))) == [expected]


@pytest.mark.parametrize("k", range(1, 14))
def test_uniform_steps_are_even(k: int) -> None:
    rows = chosen(run(UniformSteps(k), trajectory([[1.0] * n for n in range(1, 14)])))
    for n, steps in enumerate(rows, start=1):
        assert len(steps) == min(n, k)
        if len(steps) > 1:
            gaps = {b - a for a, b in itertools.pairwise(steps)}
            assert (steps[0], steps[-1]) == (0, n - 1)
            assert max(gaps) - min(gaps) <= 1


class Noise:
    """Stands in for ``torch.rand``: serves a prepared tensor."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __call__(self, *shape: Any, dtype: torch.dtype, **_: Any) -> Tensor:
        assert dtype == torch.float64, "noise is drawn in float64"
        size = shape[0] if not isinstance(shape[0], int) else shape
        assert tuple(size) == tuple(self.values.shape)
        return self.values


def weighted_sums(result: TensorDict, values: Tensor) -> Tensor:
    """sum_k weight_k * x_{step_k} for x [T]."""
    return (result[WEIGHT].double() * values[result[STEP]]).sum(-1)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_random_steps_have_the_full_sum_as_expectation(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every order of the noise is equally likely: the mean over all orders is the expectation."""
    orders = torch.tensor(list(itertools.permutations(range(4))), dtype=torch.float64) / 10
    past_end = torch.full((len(orders), 1), 0.95, dtype=torch.float64)  # the largest noise lies past the end
    monkeypatch.setattr(torch, "rand", Noise(torch.cat([orders, past_end], dim=1)))
    data = trajectory([[1.0] * 4] * len(orders), spare=1, dtype=torch.float64)
    result = RandomSteps(k)(data)
    values = torch.tensor([3.0, -1.0, 0.5, 7.0, 1e9], dtype=torch.float64)
    torch.testing.assert_close(weighted_sums(result, values).mean(), values[:4].sum(), rtol=1e-14, atol=0)
    sets = [tuple(steps) for steps in chosen(result)]
    counts = {subset: sets.count(subset) for subset in itertools.combinations(range(4), min(k, 4))}
    assert set(counts.values()) == {len(orders) // len(counts)}, "every subset is equally likely"


@pytest.mark.parametrize("k", [1, 2])
def test_importance_has_the_full_sum_as_expectation(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All k-tuples of an even grid of noise: q = (1, 2, 2, 3) / 8, and a grid of 8 hits each step exactly 8 q times."""
    grid = [(i + 0.5) / 8 for i in range(8)]
    noise = torch.tensor(list(itertools.product(grid, repeat=k)), dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", Noise(noise))
    selector = EntropyImportance(k, floor=0.5)
    data = trajectory([[0.0, 1.0, 1.0, 2.0]] * len(noise), spare=2, dtype=torch.float64)
    expected = torch.tensor([0.125, 0.25, 0.25, 0.375, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(selector.probabilities(data)[0], expected, rtol=1e-14, atol=0)
    result = selector(data)
    values = torch.tensor([3.0, -1.0, 0.5, 7.0, 1e9, 1e9], dtype=torch.float64)
    torch.testing.assert_close(weighted_sums(result, values).mean(), values[:4].sum(), rtol=1e-14, atol=0)
    frequency = torch.bincount(result[STEP].flatten(), minlength=6).double() / result[STEP].numel()
    torch.testing.assert_close(frequency, expected, rtol=1e-14, atol=0)


@fast
@given(floats, st.floats(0.01, 1), st.integers(1, 5))
def test_importance_probabilities_and_weights(rows: list[list[float]], floor: float, k: int) -> None:
    """q against a loop; each step owns the noise interval of length q; probability * weight * k is 1 for every step."""
    data, selector = trajectory(rows, spare=1, dtype=torch.float64), EntropyImportance(k, floor)
    q = selector.probabilities(data)
    for i, row in enumerate(rows):
        total = sum(row)
        for t in range(q.shape[1]):
            share = (row[t] / total if total > 0 else 1 / len(row)) if t < len(row) else 0.0
            expected = (1 - floor) * share + floor / len(row) if t < len(row) else 0.0
            assert q[i, t].item() == pytest.approx(expected, rel=1e-12)
        upper, n = q[i].cumsum(-1), len(row)
        middle = upper[:n] - q[i, :n] / 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", Noise(middle[:, None].expand(n, k)))
            result = selector(torch.cat([data[i : i + 1]] * n))
        assert result[STEP].tolist() == [[t] * k for t in range(n)]
        torch.testing.assert_close(
            q[i, :n, None] * result[WEIGHT] * k, torch.ones(n, k, dtype=torch.float64), rtol=1e-12, atol=0
        )


def test_importance_edges_of_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise 0 gives the first step, noise just below 1 the last valid one, noise on a boundary the later one."""
    monkeypatch.setattr(torch, "rand", Noise(torch.tensor([[0.0, 0.125, 1 - 2**-53]] * 3, dtype=torch.float64)))
    data = trajectory([[0.0, 1.0, 1.0, 2.0], [1.0] * 10, [0.7]], spare=4)
    selector = EntropyImportance(3, floor=0.5)
    assert selector.probabilities(data).cumsum(-1)[1, -1] < 1, "the sum over row 1 is rounded down"
    assert selector(data)[STEP].tolist() == [[0, 1, 3], [0, 1, 9], [0, 0, 0]]


def test_importance_without_entropy_is_uniform() -> None:
    q = EntropyImportance(2).probabilities(trajectory([[0.0, 0.0, 0.0, 0.0]], spare=1))
    assert q.tolist() == [[0.25, 0.25, 0.25, 0.25, 0.0]]


@fast
@given(batches, budgets)
def test_importance_always_draws_k(data: TensorDict, k: int) -> None:
    result = run(EntropyImportance(k), data)
    assert result[STEP].shape == (len(data), k)
    assert (result[WEIGHT] > 0).all()


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
def test_the_generator_decides(make: Callable[[int], Selector]) -> None:
    data = trajectory([[0.5, 1.0, 0.25, 0.75, 1.0, 2.0]] * 8)
    assert make(2).requires == ("generator",)
    assert torch.equal(run(make(2), data, seed=1)[STEP], run(make(2), data, seed=1)[STEP])
    assert not torch.equal(run(make(2), data, seed=1)[STEP], run(make(2), data, seed=2)[STEP])
    before = torch.get_rng_state()
    run(make(2), data)
    assert torch.equal(before, torch.get_rng_state()), "the global generator is left alone"


@subsets
def test_the_others_need_no_service(make: Callable[[int], Selector]) -> None:
    assert make(1).requires == ()


@every
def test_float64_passes_through(make: Callable[[int], Selector]) -> None:
    rows = [[0.5, 1.0, 0.25], [1.0]]
    double = run(make(2), trajectory(rows, dtype=torch.float64))
    single = run(make(2), trajectory(rows))
    assert (double[WEIGHT].dtype, single[WEIGHT].dtype) == (torch.float64, torch.float32)
    assert torch.equal(double[STEP], single[STEP])
    torch.testing.assert_close(double[WEIGHT].float(), single[WEIGHT])


def test_random_steps_weights_are_exact_in_float64() -> None:
    result = run(RandomSteps(3), trajectory([[1.0] * 7], dtype=torch.float64))
    assert result[WEIGHT].tolist() == [[7 / 3] * 3]


@every
@pytest.mark.parametrize("k", [1, 3])
def test_a_single_step(make: Callable[[int], Selector], k: int) -> None:
    result = run(make(k), trajectory([[0.5], [0.0]]))
    assert [set(steps) for steps in chosen(result)] == [{0}, {0}]
    torch.testing.assert_close(result[WEIGHT].sum(-1), torch.ones(2))


@pytest.mark.parametrize("selector", [UniformSteps(2), RandomSteps(2), FirstK(2), LastK(2), AllSteps()])
def test_entropy_is_not_needed_by_the_rest(selector: Selector) -> None:
    data = trajectory([[0.5, 1.0, 0.25]]).select(VALID)
    assert list(selector.in_keys) == [VALID]
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
