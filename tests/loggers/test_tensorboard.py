"""TensorBoard: exact values, and a resumed run."""

from __future__ import annotations

import math
from pathlib import Path

from support.loggers import drive

from dlmrl_kit.loggers.tensorboard import TensorBoard


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard(tmp_path: Path) -> None:
    drive(TensorBoard(), tmp_path, range(4), 0)
    read = scalars(tmp_path / "tensorboard", "reward")
    assert [step for step, _ in read] == [0, 1, 2, 3]
    assert all(math.isclose(value, step / 3, rel_tol=1e-6) for step, value in read)


def test_tensorboard_hides_what_a_resumed_run_logs_again(tmp_path: Path) -> None:
    drive(TensorBoard(), tmp_path, range(7), 0)
    drive(TensorBoard(), tmp_path, range(4, 6), 4)
    rewards = dict(scalars(tmp_path / "tensorboard", "reward"))
    assert sorted(rewards) == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in scalars(tmp_path / "tensorboard", "eval/accuracy")] == [0, 2, 4, 6]
