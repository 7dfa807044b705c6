"""Rows of like prompt length run together, and their order is undone."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from dlmrl_kit.core.trajectory import cut, length_order, micro_batches, restored


def batch(lengths: list[int], group: list[int]) -> TensorDict:
    width, size = max(lengths), len(lengths)
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return TensorDict({"row": torch.arange(size), "group": torch.tensor(group), "prompt_mask": mask}, [size])


groups = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=8)
"""Length of the prompt and number of samples of each group."""


def of_groups(sizes: list[tuple[int, int]]) -> TensorDict:
    lengths = [length for length, count in sizes for _ in range(count)]
    return batch(lengths, [number for number, (_, count) in enumerate(sizes) for _ in range(count)])


@given(groups, st.integers(1, 12))
def test_the_order_is_a_stable_sort_that_is_undone(sizes: list[tuple[int, int]], size: int) -> None:
    data = of_groups(sizes)
    lengths = data["prompt_mask"].sum(-1).tolist()
    order = length_order(data, size)
    if len(data) <= size or len({*lengths}) == 1:
        assert order is None
    else:
        assert order is not None
        assert order.tolist() == sorted(range(len(data)), key=lambda row: -lengths[row])  # Python's sort is stable
    cuts = list(cut(data, size, order))
    assert all(torch.equal(piece["row"], rows) for rows, piece in cuts)
    assert [len(rows) for rows, _ in cuts] == [min(size, len(data) - first) for first in range(0, len(data), size)]
    rows, pieces = [list(part) for part in zip(*cuts, strict=True)]
    assert restored(pieces, rows)["row"].tolist() == list(range(len(data)))
    assert restored([piece["row"] for piece in pieces], rows).tolist() == list(range(len(data)))
    group = torch.cat([piece["group"] for piece in pieces])
    assert len(torch.unique_consecutive(group)) == len(sizes)  # the samples of a group stay together


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 4))
def test_pieces_that_divide_groups_have_prompts_of_one_length(lengths: list[int], size: int, parts: int) -> None:
    data = of_groups([(length, size * parts) for length in lengths])
    for _, piece in cut(data, size, length_order(data, size)):
        assert len({*piece["prompt_mask"].sum(-1).tolist()}) == 1


@given(groups, st.integers(1, 12), st.booleans())
def test_micro_batches_hold_prompts_of_like_length(sizes: list[tuple[int, int]], size: int, whole: bool) -> None:
    data = of_groups(sizes)
    found = list(micro_batches(data, size, whole))
    assert all(torch.equal(micro["row"], rows) for rows, micro in found)
    assert sorted(torch.cat([rows for rows, _ in found]).tolist()) == list(range(len(data)))
    for _, micro in found:
        assert len(micro) <= size or (whole and len({*micro["group"].tolist()}) == 1)
        if whole:
            assert all(sizes[g][1] == micro["group"].tolist().count(g) for g in {*micro["group"].tolist()})
    if len(data) > size:
        longest = [int(micro["prompt_mask"].sum(-1).max()) for _, micro in found]
        shortest = [int(micro["prompt_mask"].sum(-1).min()) for _, micro in found]
        assert all(above >= below for above, below in zip(shortest, longest[1:], strict=False))
