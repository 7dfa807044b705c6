"""Each second of an update in one phase; nothing listens, and nothing is left behind, at the end."""

from __future__ import annotations

import contextlib
import re
import shlex
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.policies import TabularPolicy
from support.runs import model_path, recipe
from transformers import LlamaForCausalLM
from typer.testing import CliRunner, Result

from dlmrl_kit.cli.app import app
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.phases import listening, phase
from dlmrl_kit.loggers.metrics_csv import MetricsCSV
from dlmrl_kit.losses.ppo import StepPPO
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.selectors.top_k import EntropyTopK
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.training import profiling as module
from dlmrl_kit.training.gradient import Gradient, LogProbs
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.profiling import MODEL, PHASES, Clock, profile, report
from dlmrl_kit.training.update import Update

# ------------------------------------------------------------------------------------------------- the clock


NAMES = ("a", "b", "c")
TREES = st.recursive(
    st.tuples(st.sampled_from(NAMES), st.lists(st.integers(0, 9), min_size=1, max_size=3)).map(lambda t: (*t, [])),
    lambda inner: st.tuples(st.sampled_from(NAMES), st.lists(st.integers(0, 9), min_size=1), st.lists(inner)),
    max_leaves=8,
)
"""Phases: a name, seconds of work of its own, phases within it."""


def own_seconds(tree: Any, found: Counter[str]) -> Counter[str]:
    name, work, inner = tree
    found[name] += sum(work)
    for child in inner:
        own_seconds(child, found)
    return found


@pytest.mark.parametrize("asynchronous", [False, True])
@settings(max_examples=40, deadline=None)
@given(trees=st.lists(TREES, max_size=4))
def test_each_second_counts_for_the_innermost_phase_that_asked_for_it(trees: list[Any], asynchronous: bool) -> None:
    """Also on a device that works later than it is told to."""
    now, pending = 100.0, 0.0

    def work(seconds: float) -> None:
        nonlocal now, pending
        if asynchronous:
            pending += seconds
        else:
            now += seconds

    def wait() -> None:
        nonlocal now, pending
        now, pending = now + pending, 0.0

    def run(tree: Any) -> None:
        name, own, inner = tree
        with clock.phase(name):
            for index in range(max(len(own), len(inner))):
                if index < len(own):
                    work(own[index])
                if index < len(inner):
                    run(inner[index])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
        clock = Clock(wait)
        for tree in trees:
            work(5)  # outside of all phases
            wait()
            run(tree)
    wanted: Counter[str] = Counter()
    for tree in trees:
        own_seconds(tree, wanted)
    assert clock.seconds == pytest.approx(dict(wanted))


def test_marks_end_when_the_device_is_done() -> None:
    """What a phase asked for lies within its mark in a trace."""
    events: list[str] = []

    @contextlib.contextmanager
    def mark(name: str) -> Iterator[None]:
        events.append(f"begin {name}")
        yield
        events.append(f"end {name}")

    clock = Clock(lambda: events.append("wait"), mark)
    with clock.phase("a"):
        events.append("work")
    assert events[events.index("begin a") :][:4] == ["begin a", "work", "wait", "end a"]


def test_other_threads_have_no_phases() -> None:
    clock = Clock()

    def other() -> None:
        with clock.phase("b"):
            done.append(True)

    done: list[bool] = []
    with clock.phase("a"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert done
    assert set(clock.seconds) == {"a"}


# --------------------------------------------------------------------------------------------------- updates


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files, empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    model_path()  # which goes elsewhere
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def test_phases_add_up_to_the_wall_time_of_the_measured_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    walls: dict[int, float] = {}
    inner = Update.__call__

    def timed(self: Update, number: int) -> dict[str, float]:
        started = time.perf_counter()
        metrics = inner(self, number)
        walls[number] = time.perf_counter() - started
        return metrics

    monkeypatch.setattr(Update, "__call__", timed)
    seconds = profile(recipe(), 2)
    assert sorted(walls) == [0, 1, 2]
    wall = (walls[1] + walls[2]) / 2
    assert wall <= sum(seconds.values()) < wall + 0.01
    assert set(seconds) == set(PHASES)
    assert all(value > 0 for value in seconds.values())


SLOW: list[tuple[str, Any, str, str]] = [
    ("egspo_sa", TransformersPolicy, "hidden_at", "body"),
    ("egspo_sa", LlamaForCausalLM, "get_output_embeddings", "head"),
    ("egspo_sa", torch.autograd, "backward", "backward"),
    ("egspo_sa", torch.optim.AdamW, "step", "optimiser"),
    ("egspo_sa", LowConfidence, "decide", "sampling"),
    ("egspo_sa", TransformersPolicy, "completion_texts", "rewards"),
    ("egspo_sa", LogProbs, "add_fixed", "old and reference"),
    ("egspo_sa", StepPPO, "forward", "update"),
    ("egspo_sa", EntropyTopK, "forward", "bookkeeping"),
]
"""Recipe, a method that is part of a phase, the phase."""


@pytest.mark.parametrize(("name", "owner", "method", "phase"), SLOW, ids=lambda v: getattr(v, "__name__", str(v)))
def test_time_goes_to_its_phase(
    name: str, owner: Any, method: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a method the process sleeps: far longer than the tiny model takes for all the rest of the phase."""
    calls = slowed(monkeypatch, owner, method, 0.02)
    seconds = profile(recipe(name), 1)
    assert calls
    assert seconds[phase] >= 0.02 * len(calls)


def slowed(patch: pytest.MonkeyPatch, owner: Any, method: str, seconds: float) -> list[Any]:
    """Makes a method sleep in the measured updates; returns a list that gets the first argument of each such call."""
    inner, update = getattr(owner, method), Update.__call__
    calls: list[Any] = []
    measured: list[int] = []

    def slow(*given: Any, **named: Any) -> Any:
        if measured:
            calls.append(given[0])
            time.sleep(seconds)
        return inner(*given, **named)

    def noticed(self: Update, number: int) -> dict[str, float]:
        if number > 0:
            measured.append(number)
        return update(self, number)

    patch.setattr(owner, method, slow)
    patch.setattr(Update, "__call__", noticed)
    return calls


def test_waiting_for_scores_is_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores may be computed in a thread: what counts is how long the update waits for them."""
    calls = slowed(monkeypatch, Sudoku4x4, "score", 0.03)
    seconds = profile(recipe(), 1)
    assert calls
    assert 0.03 * len(calls) / 2 < seconds["rewards"]


def test_examples_that_a_sampler_asks_for_are_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = slowed(monkeypatch, Sudoku4x4, "example", 0.02)
    seconds = profile(recipe("vrpo"), 1)
    for_prompts = 2
    assert len(calls) > for_prompts
    assert seconds["rewards"] >= 0.02 * (len(calls) - for_prompts)
    assert seconds["bookkeeping"] >= 0.02 * for_prompts


def test_completions_that_are_sampled_again_are_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = slowed(monkeypatch, LowConfidence, "decide", 0.01)
    seconds = profile(recipe("egspo_sa", uses=["advantage=MonteCarlo"], sets=["MonteCarlo.n = 1"]), 1)
    assert len(calls) > 4, "the rollout takes four steps"
    assert seconds["sampling"] >= 0.01 * len(calls)


class InOnePart(TabularPolicy):
    """A policy that defines ``forward`` alone, and takes its time."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return super().forward(input_ids, attention_mask, positions)


def test_a_policy_that_defines_forward_alone_is_body() -> None:
    policy, clock = InOnePart(vocab=2, length=3), Clock()
    ids, everywhere = torch.full((1, 3), policy.mask_id), torch.ones(1, 3, dtype=torch.bool)
    with listening(clock.phase):
        policy.head(policy.features(ids, everywhere, everywhere))
    assert set(clock.seconds) == {"body"}
    assert clock.seconds["body"] >= 0.02


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_listens_in_the_end(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks: list[Clock] = []
    backward = Gradient.accumulate

    def made(*given: Any) -> Clock:
        clocks.append(Clock(*given))
        return clocks[0]

    def broken(self: Gradient, *given: Any) -> float:
        if clocks:  # being measured
            raise ZeroDivisionError
        return backward(self, *given)

    monkeypatch.setattr(module, "Clock", made)
    if fails:
        monkeypatch.setattr(Gradient, "accumulate", broken)
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        profile(recipe(), 1)
    found = dict(clocks[0].seconds)
    assert found["body"] > 0
    with phase("body"):
        time.sleep(0.001)
    assert clocks[0].seconds == found


def test_nothing_is_evaluated_saved_or_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    for owner, method in ((Run, "_evaluate"), (Run, "_save"), (MetricsCSV, "open"), (MetricsCSV, "log")):
        monkeypatch.setattr(owner, method, never)
    sets = ["Trainer.updates = 2", "Trainer.eval_every = 1", "Trainer.checkpoint_every = 1"]
    assert profile(recipe(sets=sets), 3)["update"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]


def test_filters_that_keep_nothing_leave_no_update() -> None:
    result = dlmrl("--updates", "1", "--use", "filter=DropEqualRewards", "--set", "Sudoku4x4.cells_weight=0.0")
    assert result.exit_code == 0, result.output
    assert re.search(r"^ *backward +0\.0000 +0\.0% *$", result.stdout, re.M)
    assert "nothing was learned: the recipe's filters kept nothing of these rollouts\n" in result.stdout


def test_recipes_for_pretraining_are_refused() -> None:
    from dlmrl_kit.recipe.load import load_recipe

    with pytest.raises(RecipeError, match="pretrain_sudoku4x4 is a recipe for Pretraining: only training recipes"):
        profile(load_recipe("pretrain_sudoku4x4"), 1)


def test_report() -> None:
    seconds = dict.fromkeys(PHASES, 0.0) | {"body": 3.0, "head": 1.0, "sampling": 1.5, "rewards": 2.5}
    found = report("mine", 4, seconds)
    assert (found["recipe"], found["updates"], found["seconds"], found["not_model"]) == ("mine", 4, 8.0, 0.5)
    assert [row["phase"] for row in found["phases"]][:4] == ["body", "rewards", "sampling", "head"]
    assert {row["phase"]: row["share"] for row in found["phases"]} == {k: v / 8 for k, v in seconds.items()}
    assert not set(MODEL) - set(PHASES)


# --------------------------------------------------------------------------------------------------- command


def dlmrl(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["profile", "egspo_sa", *shlex.split(" ".join(recipe().overrides)), *arguments])
