"""What a run looks like in a terminal and in a file; the tables of its results."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.evaluations import evaluation

from dlmrl_kit.core.results import PretrainResult, RunObserver, RunResult
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.report.console import printable
from dlmrl_kit.report.evaluation_tables import table_of_evaluation, table_of_samples
from dlmrl_kit.report.run_console import RichRunObserver, duration, table_before_after

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
METRICS = {
    "reward": 0.5,
    "accuracy": 0.25,
    "loss": -0.01,
    "entropy": 0.3,
    "selected_steps": 4.0,
    "ratio": 1.0,
    "clip_fraction": 0.01,
    "kl": 0.003,
    "tokens_per_second": 5123.4,
    "skipped": 0.0,
}


def drive(observer: RunObserver, folder: Path, updates: int, first: int = 0) -> None:
    """Reports as the training loop does."""
    observer.on_start(
        folder=folder, recipe="egspo_sa", total_updates=updates, first_update=first, info={"device": "cpu"}
    )
    observer.on_eval(0, evaluation(0.4))
    observer.on_message("old and new [agree]")
    for update in range(first, updates):
        observer.on_update(update, METRICS)
        if (update + 1) % 10 == 0:
            observer.on_eval(update + 1, evaluation(0.5))
    before, after = evaluation(0.4), evaluation(0.7)
    observer.on_end(RunResult(folder, before, after, updates, 75.2, folder / "model", skipped=1))


def console(*, terminal: bool, width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, _environ={})


def output(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def test_lines_without_a_terminal(tmp_path: Path) -> None:
    target = console(terminal=False, width=40)
    with RichRunObserver(target) as observer:
        drive(observer, tmp_path, 100)
    text = output(target)
    assert not CONTROL.search(text)
    lines = [line for line in text.splitlines() if line.startswith("update ")]
    assert 15 <= len(lines) <= 25
    assert lines[0].startswith("update 1/100  reward 0.500  accuracy 25.0%  entropy 0.300  selected 4.0")
    assert lines[0].endswith("left")
    assert lines[-1].startswith("update 100/100")
    assert "old and new [agree]" in text
    assert "heldout accuracy after update 10: 50.0% [45.1, 54.9] of 400, reward 0.600" in text


@pytest.mark.parametrize(("size", "cautious"), [(29, True), (30, False)])
def test_an_evaluation_of_few_examples_says_how_little_it_means(tmp_path: Path, size: int, cautious: bool) -> None:
    result = evaluation(0.5, size=size)
    for show in (
        lambda observer: observer.on_eval(0, result),
        lambda observer: observer.on_end(RunResult(tmp_path, result, result, 1, 1.0, tmp_path / "model")),
        lambda observer: observer.console.print(table_of_evaluation(result)),
    ):
        target = console(terminal=False, width=200)
        show(RichRunObserver(target))
        assert (f"only {size} examples: each is 3.45 points" in output(target)) == cautious


def test_short_and_resumed_runs_print_every_update(tmp_path: Path) -> None:
    target = console(terminal=False)
    with RichRunObserver(target) as observer:
        drive(observer, tmp_path, 6, first=4)
    text = output(target)
    assert "resumed after update 4" in text
    assert re.findall(r"^update (\d)/6", text, re.M) == ["5", "6"]


def test_samples_are_spread_and_safe() -> None:
    sample = {"prompt": [{"role": "user", "content": "hé"}], "completion": "a\n[red]b\x1b[2J", "reward": None}
    target = console(terminal=False)
    observer = RichRunObserver(target, show_samples=2)
    observer.on_samples(4, [{**sample, "reward": number} for number in (0.5, 1.0)] + [sample, sample])
    first, second = "update 5, sample 1: reward 0.500\n", "update 5, sample 2: reward not finite\n"
    rest = '  prompt      [{"role": "user", "content": "hé"}]\n  completion  a\n              [red]b\\x1b[2J\n'
    assert output(target) == first + rest + second + rest
    RichRunObserver(quiet := console(terminal=False)).on_samples(4, [sample])
    assert output(quiet) == ""


def test_sparse_reports_are_not_missed(tmp_path: Path) -> None:
    """Pre-training reports every 50 steps only, which need not fall on the lines' own rhythm."""
    target = console(terminal=False)
    observer = RichRunObserver(target)
    observer.on_start(folder=tmp_path, recipe="p", total_updates=1500, first_update=0, info={})
    for done in range(50, 1501, 50):
        observer.on_update(done - 1, {"loss": 1.0})
    assert output(target).count("loss 1.0000") >= 15


def test_terminal_shows_bar_metrics_and_evaluations(tmp_path: Path) -> None:
    target = console(terminal=True, width=80)
    with RichRunObserver(target) as observer:
        drive(observer, tmp_path, 20)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output(target))
    for expected in ("20/20", "tokens/s", "5,123", "heldout accuracy before training: 40.0%", "after update 20"):
        assert expected in text


def test_display_ends_when_training_fails(tmp_path: Path) -> None:
    target = console(terminal=True)
    with pytest.raises(RuntimeError, match="boom"), RichRunObserver(target) as observer:  # noqa: PT012
        observer.on_start(folder=tmp_path, recipe="r", total_updates=3, first_update=0, info={})
        raise RuntimeError("boom")
    assert output(target).rindex("\x1b[?25h") > output(target).rindex("\x1b[?25l")  # the cursor is visible again


def test_end_of_a_run(tmp_path: Path) -> None:
    for name in ("model", "curve.png", "metrics.csv"):
        (tmp_path / name).touch()
    target = console(terminal=False, width=160)
    with RichRunObserver(target) as observer:
        drive(observer, tmp_path, 3)
    end = output(target).split("3 updates done in 1 min 15 s, 1 skipped")[1]
    assert re.search(r"accuracy \[95% CI\] +40\.0% \[35\.3, 44\.9\] +70\.0% \[65\.3, 74\.3\] +\+30\.0 points", end)
    assert re.search(r"reward/cells +0\.600 +0\.900 +\+0\.300", end)
    assert "400 examples of heldout; greedy, sampler LowConfidence, tokens per step 2" in end
    for name in ("model", "curve.png", "metrics.csv"):
        assert str(tmp_path / name) in end
    assert f"dlmrl eval {tmp_path} " in end
    assert "dlmrl list" in end


def test_next_command_swaps_to_another_selector(tmp_path: Path) -> None:
    (tmp_path / "recipe.gin").write_text(load_recipe("egspo", uses=["selector=UniformSteps"]).text())
    target = console(terminal=False)
    observer = RichRunObserver(target)
    observer.on_start(folder=tmp_path, recipe="recipe", total_updates=1, first_update=0, info={})
    observer.on_end(RunResult(tmp_path, evaluation(0.1), evaluation(0.2), 1, 1.0, tmp_path / "model"))
    assert f"dlmrl train {tmp_path}/recipe.gin --use selector=EntropyTopK --set EntropyTopK.k=4" in output(target)
    assert output(target).startswith(f"{tmp_path.name}: 1 updates")


def test_every_evaluation_names_its_task(tmp_path: Path) -> None:
    result = evaluation(0.5, task="Countdown")
    target = console(terminal=False)
    observer = RichRunObserver(target)
    observer.on_eval(0, result)
    observer.on_end(RunResult(tmp_path, result, result, 1, 1.0, tmp_path / "model"))
    observer.on_end(PretrainResult(tmp_path, tmp_path / "model", 30, 8.2, 2.9, 0.25, 0.125, 0.5, "Countdown"))
    target.print(table_of_evaluation(result))
    text = output(target)
    assert "Countdown heldout accuracy before training: 50.0%" in text
    assert text.count("Countdown: 400 examples of heldout; greedy") == 2
    assert "accuracy on held-out examples of Countdown: greedy 25.0%" in text


def test_end_of_pretraining(tmp_path: Path) -> None:
    target = console(terminal=False)
    result = PretrainResult(tmp_path, tmp_path / "model", 30, 8.2, 2.9, 0.25, 0.125, 0.5)
    RichRunObserver(target).on_end(result)
    assert "30 steps done in 8 s, loss 2.9000" in output(target)
    assert "greedy 25.0%; at temperature 1 12.5%, pass@8 50.0%" in output(target)
    assert f"dlmrl eval {tmp_path}/model" in output(target)


def test_model_text_cannot_reach_the_terminal() -> None:
    target = console(terminal=False)
    target.print(table_of_samples(evaluation(0.1).samples))
    assert r"12[red]34\x1b[31m" in output(target)
    assert "\x1b" not in output(target)


@given(st.text())
def test_printable(text: str) -> None:
    assert not CONTROL.search(printable(text))
    assert all(c.isprintable() or c == "\n" for c in printable(text))
    if text.isprintable():
        assert printable(text) == text


def test_evaluation_table() -> None:
    target = console(terminal=False)
    decoding = {"sampler": "RandomOrder", "temperature": 0.9}
    target.print(table_of_evaluation(evaluation(0.5, pass_at_k={1: 0.5, 8: 0.75}, decoding=decoding)))
    assert "temperature 0.9, sampler RandomOrder" in output(target)
    assert re.search(r"pass@8 +75\.0%", output(target))


def test_before_after_with_other_components() -> None:
    target = console(terminal=False)
    target.print(table_before_after(evaluation(0.5, components={}), evaluation(0.5)))
    assert "reward/cells" not in output(target)
    assert "+0.0 points" in output(target)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
