"""One process: nothing is exchanged, and nothing waits."""

from __future__ import annotations

import pytest
import torch

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.processes import ALONE, joined


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
    """Before they meet: the store is not asked."""
    for name, value in {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        "dlmrl_kit.core.processes.rendezvous", lambda *_, **__: iter([(torch.distributed.HashStore(), 5, 6)])
    )
    with pytest.raises(RecipeError, match=r"3 processes on a machine with 2 GPUs \(rank 5 has none\)"), joined():
        pass
