"""Groups and partitions against loops."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlmrl_kit.core.trajectory import first_rows, number_in_group, partition


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 2)), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_groups_equal_the_loops(ids: list[tuple[int, int]]) -> None:
    group, other = (torch.tensor([pair[i] for pair in ids]) for i in range(2))
    assert number_in_group(group).tolist() == [sum(g == ids[i][0] for g, _ in ids[:i]) for i in range(len(ids))]
    index = partition(group, other).tolist()
    for i, j in itertools.combinations(range(len(ids)), 2):
        assert (index[i] == index[j]) == (ids[i] == ids[j])
    assert set(index) == set(range(len(set(ids))))
    assert first_rows(torch.tensor(index)).tolist() == [index.index(n) for n in range(len(set(ids)))]
