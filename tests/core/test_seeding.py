"""Random numbers without hidden state: against a plain loop, uniform, independent, the same however a batch is cut."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.segment_loops import BITS, GOLDEN, combined, mix, uniform
from support.statistics import chi_square, chi_square_limit
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.core import seeding
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.seeding import combine_seeds, derive_seed, generator, sample_seeds, seeds_of, uniforms, uniforms_at
from dlmrl_kit.selectors.random_steps import RandomSteps

seeds = st.integers(-(2**63), 2**63 - 1)
fast = settings(max_examples=60, deadline=None)


def test_the_loop_is_splitmix64() -> None:
    """Published outputs for the seed 1234567."""
    wanted = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821)
    assert tuple(mix(1234567 + (i + 1) * GOLDEN) for i in range(5)) == wanted


@fast
@given(st.lists(seeds, min_size=1, max_size=4), st.lists(st.integers(1, 4), max_size=3), st.text(max_size=8))
def test_uniforms_equal_the_loop(rows: list[int], shape: list[int], purpose: str) -> None:
    found = uniforms(torch.tensor(rows), *shape, purpose=purpose)
    assert found.dtype == torch.float64
    assert found.shape == (len(rows), *shape)
    for row, seed in zip(found.flatten(1) if shape else found[:, None], rows, strict=True):
        assert row.tolist() == [uniform(seed, purpose, i) for i in range(len(row))]
        assert all(0 <= value < 1 for value in row.tolist())


@fast
@given(seeds, st.integers(0, 2**40))
def test_combined_seeds_equal_the_loop(seed: int, number: int) -> None:
    found = combine_seeds(torch.tensor([seed]), torch.tensor([number]))
    assert found.dtype == torch.int64
    assert found.item() & BITS == combined(seed, number)
    assert torch.equal(found, combine_seeds(torch.tensor([seed]), torch.tensor([number])))


def test_int16_numbers_are_not_cut() -> None:
    assert torch.equal(
        combine_seeds(torch.tensor([5]), torch.tensor([7], dtype=torch.int16)),
        combine_seeds(torch.tensor([5]), torch.tensor([7])),
    )


def test_neither_rows_nor_longer_shapes_change_a_number() -> None:
    seed = sample_seeds(9, "cpu", 1)
    whole = uniforms(seed, 6, 5, purpose="a")
    rows = [7, 0, 3, 3]
    assert torch.equal(uniforms(seed[rows], 6, 5, purpose="a"), whole[rows])
    assert torch.equal(uniforms(seed, 4, 5, purpose="a"), whole[:, :4])
    assert torch.equal(uniforms(seed, 30, purpose="a"), whole.flatten(1))
    assert torch.equal(torch.cat([uniforms(part, 6, 5, purpose="a") for part in seed.split(2)]), whole)
    assert uniforms(seed[:0], 6, 5, purpose="a").shape == (0, 6, 5)
    assert uniforms(seed, purpose="a").shape == (9,)
    assert torch.equal(uniforms(seed, purpose="a"), whole[:, 0, 0])


def moments_are_uniform(values: Tensor) -> None:
    """Mean 1/2, variance 1/12, equal bins, no correlation with the number before; five standard errors."""
    values = values.flatten()
    n = len(values)
    assert abs(values.mean().item() - 1 / 2) < 5 * (1 / 12 / n) ** 0.5
    assert abs((values - 0.5).square().mean().item() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    bins = torch.histc(values, 64, 0, 1).tolist()
    statistic, degrees = chi_square(bins, [1 / 64] * 64)
    assert statistic < chi_square_limit(degrees)
    uncorrelated(values[:-1], values[1:])


def uncorrelated(a: Tensor, b: Tensor) -> None:
    correlation = 12 * ((a - 0.5) * (b - 0.5)).mean().item()
    assert abs(correlation) < 5 / a.numel() ** 0.5


ROWS, COLUMNS = 256, 256
SEEDS: dict[str, Tensor] = {
    "of samples": sample_seeds(ROWS, "cpu", 3, "update", 1),
    "0, 1, 2 ...": torch.arange(ROWS),
    "single bits and their neighbours": torch.tensor(
        sorted({(1 << i) + j for i in range(62) for j in range(5)})[:ROWS]
    ),
    "of draws": combine_seeds(torch.full((ROWS,), 12345), torch.arange(ROWS)),
}


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_uniforms_are_uniform_along_and_across_rows(seed: Tensor) -> None:
    assert len(seed) == ROWS
    values = uniforms(seed, COLUMNS, purpose="mask")
    moments_are_uniform(values)
    moments_are_uniform(values.T)


def test_purposes_rows_draws_and_iterations_are_independent() -> None:
    seed = sample_seeds(ROWS, "cpu", 3)
    named = {purpose: uniforms(seed, COLUMNS, purpose=purpose) for purpose in ("mask", "order", "")}
    for a, b in itertools.combinations(named.values(), 2):
        uncorrelated(a, b)
    of_number = {i: combine_seeds(seed, torch.full((ROWS,), i)) for i in range(3)}
    both = {(i, j): combine_seeds(of_number[i], torch.full((ROWS,), j)) for i in range(2) for j in range(2)}
    streams = [seed, *of_number.values(), *both.values()]
    for a, b in itertools.combinations(streams, 2):
        assert not torch.isin(a, b).any()
        uncorrelated(uniforms(a, COLUMNS, purpose="mask"), uniforms(b, COLUMNS, purpose="mask"))
        uncorrelated(uniforms(a, COLUMNS, purpose="mask")[:, 1:], uniforms(b, COLUMNS, purpose="mask")[:, :-1])
    values = named["mask"]
    for shift in (1, 2, 16):
        uncorrelated(values[shift:], values[:-shift])
        uncorrelated(values[:, shift:], values[:, :-shift])


def test_pairs_of_numbers_fill_the_square() -> None:
    """Neighbours along a row, and the first numbers of neighbouring rows and purposes, in an 8 x 8 grid."""
    seed = torch.arange(4096)
    first, second = uniforms(seed, 2, purpose="ratio").unbind(1)
    other = uniforms(seed, purpose="mask")
    for a, b in ((first, second), (first[1:], first[:-1]), (first, other)):
        cells = torch.bincount((a * 8).long() * 8 + (b * 8).long(), minlength=64).tolist()
        statistic, degrees = chi_square(cells, [1 / 64] * 64)
        assert statistic < chi_square_limit(degrees)


def test_some_numbers_of_a_row_are_those_of_the_whole_row() -> None:
    seed, some = sample_seeds(5, "cpu", 2), torch.rand(5, 40, generator=torch.Generator().manual_seed(0)) < 0.3
    rows, number = some.nonzero(as_tuple=True)
    assert torch.equal(uniforms_at(seed, rows, number, "a"), uniforms(seed, 40, purpose="a")[some])
    assert uniforms_at(seed, rows[:0], number[:0]).shape == (0,)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**62))
def test_a_number_for_all_is_that_number_for_each(seed: int, number: int) -> None:
    seeds = torch.tensor([seed, 1])
    assert torch.equal(combine_seeds(seeds, number), combine_seeds(seeds, torch.tensor([number, number])))


def test_missing_seeds_are_an_error_of_one_line() -> None:
    with pytest.raises(UserError, match=r"^RandomSteps draws from the seed of each sample, the key 'seed'") as caught:
        seeds_of(TensorDict({}, [3]), RandomSteps(2))
    assert "\n" not in str(caught.value)


def test_sample_seeds_are_distinct_and_depend_on_every_name() -> None:
    many = sample_seeds(20_000, "cpu", 0, "update", 3)
    assert len(many.unique()) == 20_000
    others = [sample_seeds(50, "cpu", *names) for names in ((0, "update", 4), (1, "update", 3), (0, "other", 3), (0,))]
    assert len(torch.cat([many[:50], *others]).unique()) == 250
    assert torch.equal(many[:50], sample_seeds(50, "cpu", 0, "update", 3))


def test_derived_seeds_fit_a_generator() -> None:
    found = {derive_seed(seed, *names) for seed in range(20) for names in ((), ("a",), ("a", 1), ("a", "1", 0))}
    assert len(found) == 20 * 4
    assert all(0 <= seed < 2**63 for seed in found)
    a, b = (torch.rand(3, generator=generator("cpu", 4, "x")) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.rand(3, generator=generator("cpu", 4, "y")))


def test_seeds_are_the_same_in_every_version() -> None:
    """A change here changes every run that anyone has ever seeded."""
    assert seeding.derive_seed(0, 3, "restart") == 6580138378567896450
    assert seeding.derive_seed(1) == 3874038210105081456


def test_seeds_differ_where_their_names_do() -> None:
    parts = [(seed, update, name) for seed in range(4) for update in range(25) for name in ("a", "b")]
    seeds = {seeding.derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeding.derive_seed(1, 23) != seeding.derive_seed(12, 3)
    draws = [torch.rand(3, generator=seeding.generator("cpu", 0, name)) for name in ("a", "a", "b")]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
