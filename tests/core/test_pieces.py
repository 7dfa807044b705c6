"""Minibatches, micro-batches and pieces of a batch: a partition, whole groups, every used slot once."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from dlmrl_kit.core.trajectory import in_one_order, micro_batches, segment_pieces, shuffled


def batch(group: list[int]) -> TensorDict:
    size = len(group)
    mask = torch.ones(size, 2, dtype=torch.bool)
    return TensorDict({"group": torch.tensor(group), "row": torch.arange(size), "prompt_mask": mask}, [size])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 6), st.booleans())
def test_minibatches_are_a_partition(group: list[int], parts: int, whole: bool) -> None:
    cut = shuffled(torch.tensor(group), parts, torch.Generator().manual_seed(0), whole)
    assert len(cut) == parts
    assert sorted(torch.cat(cut).tolist()) == list(range(len(group)))
    if whole:
        groups = [{group[row] for row in part.tolist()} for part in cut]
        assert sum(len(found) for found in groups) == len(set(group))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20).map(sorted), st.integers(1, 5))
def test_processes_find_their_rows_in_the_order_of_one(group: list[int], world: int) -> None:
    """Whole groups in turn, as an update shares them: the rows of one process, each in exactly one of several."""
    shares = [[number for number in group if number % world == rank] for rank in range(world)]
    rows = []
    for rank in range(world):
        everyone, row = in_one_order([torch.tensor(share, dtype=torch.int64) for share in shares], rank)
        assert everyone.tolist() == group
        assert [shares[rank][i] for i in row[row >= 0].tolist()] == shares[rank]
        assert all(number % world == rank for number in everyone[row >= 0].tolist())
        rows.append(row)
    assert torch.equal((torch.stack(rows) >= 0).sum(0), torch.ones(len(group), dtype=torch.int64))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 8), st.booleans())
def test_micro_batches_keep_to_their_size_and_groups(group: list[int], size: int, whole: bool) -> None:
    group = sorted(group)
    cut = [part for _, part in micro_batches(batch(group), size, whole)]
    assert torch.cat([part["row"] for part in cut]).tolist() == list(range(len(group)))
    for part in cut:
        groups = set(part["group"].tolist())
        assert len(part) <= size or (whole and len(groups) == 1)
        if whole:
            assert all(group.count(g) == part["group"].tolist().count(g) for g in groups)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6), st.integers(1, 5))
def test_pieces_hold_every_used_slot_once(used: list[list[bool]], slots: int) -> None:
    weight = torch.tensor(used) * torch.arange(1.0, 4.0)
    micro = TensorDict({"selected": TensorDict({"weight": weight}, [len(used)])}, [len(used)])
    total = torch.zeros_like(weight)
    for rows, piece in segment_pieces(micro, slots):
        assert 1 <= int((piece["selected", "weight"] != 0).sum()) <= slots
        total.index_add_(0, rows, piece["selected", "weight"])
    assert torch.equal(total, weight)
