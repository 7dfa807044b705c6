"""One process: nothing is exchanged, and nothing waits."""

from __future__ import annotations

import pytest
import torch

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.processes import ALONE, joined, own_gpu


def test_one_process_exchanges_nothing() -> None:
    value = torch.ones(2)
    ALONE.add_up([value])
    ALONE.copy_first([value])
    assert value.tolist() == [1, 1]
    assert ALONE.gather("own") == ["own"]
    assert ALONE.of_first(lambda: 3) == 3
    assert (ALONE.rank, ALONE.world, ALONE.is_first, ALONE.name, ALONE.speaks(), ALONE.waits) == (
        0,
        1,
        True,
        "",
        True,
        False,
    )
    with joined() as processes:
        assert processes is ALONE


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for local in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", local)
        own_gpu()
    assert chosen == [0, 1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match="3 processes on a machine with 2 GPUs"):
        own_gpu()
