"""TensorBoard: exact values, and a resumed run."""

from __future__ import annotations

import math
from pathlib import Path

from support.loggers import drive
from support.trackers import evaluation

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


def test_tensorboard_shows_samples_settings_and_figures(tmp_path: Path) -> None:
    from matplotlib.figure import Figure
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Figure(figsize=(1, 1)).savefig(tmp_path / "curve.png", dpi=20)
    (tmp_path / "recipe.gin").write_text("Trainer.seed = 0\n")
    logger = TensorBoard()
    logger.open(tmp_path, 0)
    logger.log_settings({"Trainer.seed": "0"})
    for name in ("recipe.gin", "curve.png", "not-known.html"):
        logger.log_file(2, tmp_path / name)
    logger.log_evaluation(3, evaluation())
    logger.close()
    assert [step for step, _ in scalars(tmp_path / "tensorboard", "eval/accuracy_low")] == [3]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["curve"]
    assert (events.Images("curve")[0].width, events.Images("curve")[0].height) == (20, 20)
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    assert texts["recipe/text_summary"] == "    Trainer.seed = 0"
    assert "prompt\n\n    1+1|<b>\n\ncompletion\n\n    2\n" in texts["samples/text_summary"]
