"""The number of blocks that recompute their activations follows from memory, and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import build, outcome, recipe, stopped
from support.several import Pool

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.core.errors import ParameterError, RecipeError, UserError
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.recompute import recomputed_blocks, text_blocks
from dlmrl_kit.pretraining.run import pretrain
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import activation_memory, free_memory, resume, train
from dlmrl_kit.training.activation_memory import GIB, fewest_blocks, recompute_as_needed
from dlmrl_kit.training.cluster import Cluster, Job
from dlmrl_kit.training.estimate import activations, memory
from dlmrl_kit.training.flops import arithmetic
from dlmrl_kit.training.start import start_training

DEEP = ["Pretrained.path = 'shipped:sudoku4x4'"]  # four blocks
AUTO = [*DEEP, "Pretrained.gradient_checkpointing = 'auto'"]


def sizes(algorithm: Algorithm) -> list[float]:
    """The bytes of activations with 0, 1, ... recomputed blocks."""
    policy = algorithm.policy.load()
    plan, blocks = make_plan(algorithm), len(text_blocks(policy.model))
    return [activations(algorithm, plan, policy, 17, number) for number in range(blocks + 1)]


FOUND = sizes(build(sets=AUTO))
"""Of the recipe that most tests here run; its prompts have 17 tokens."""


CHOOSING = build(sets=AUTO)
CHOOSING_POLICY = CHOOSING.policy.load()


@settings(max_examples=30, deadline=None)
@given(room=st.floats(0, 2 * FOUND[0]), limit=st.none() | st.floats(1, 2 * FOUND[0]))
def test_the_fewest_blocks_with_which_activations_fit(room: float, limit: float | None) -> None:
    algorithm, policy = build(sets=AUTO), CHOOSING_POLICY
    algorithm.policy.activation_gib = None if limit is None else limit / GIB
    plan = make_plan(algorithm)
    need = memory(algorithm, plan, policy, 17)
    others = need.weights + need.optimiser + need.update - FOUND[0]
    found = fewest_blocks(algorithm, plan, policy, 17, need, others + room)
    budget = room if limit is None else limit
    assert found.budget == pytest.approx(budget, abs=1)
    assert found.activations == FOUND[found.number]
    assert found.fits == (found.activations <= found.budget)
    assert found.fits or found.number == found.blocks == 4
    assert found.number == 0 or FOUND[found.number - 1] > found.budget
    assert found.is_refused is (limit is not None and not found.fits)


def test_estimates_follow_the_number_of_blocks() -> None:
    algorithm, policy = CHOOSING, CHOOSING_POLICY
    plan = make_plan(algorithm)
    updates = [memory(algorithm, plan, policy, 17, number).update for number in range(5)]
    steps = [before - after for before, after in pairwise(updates)]
    assert steps == pytest.approx([FOUND[0] - FOUND[1]] * 4)
    work = [arithmetic(algorithm, plan, policy, 17, number).update for number in range(5)]
    assert work[4] - work[0] == pytest.approx(4 * (work[1] - work[0]))
    whole = build(sets=[*DEEP, "Pretrained.gradient_checkpointing = True"])
    assert memory(whole, plan, whole.policy.load(), 17).update == updates[4]
    assert arithmetic(whole, plan, whole.policy.load(), 17).update == work[4]


def test_a_run_is_the_same_whatever_it_chose_and_chooses_anew_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = recipe(sets=[*AUTO, "Trainer.updates = 2", "Trainer.eval_every = 0"])
    told = [Told() for _ in range(3)]

    def run(free: float, work: Callable[[], object]) -> None:
        monkeypatch.setattr(activation_memory, "free_memory", lambda device: free)
        work()

    run(1e12, lambda: train(given, tmp_path / "whole", observer=told[0]))
    run(free_for(3), lambda: stopped(lambda: train(given, tmp_path / "run", observer=told[1]), 1))
    run(0.0, lambda: resume(tmp_path / "run", observer=told[2]))
    assert [one.chosen() for one in told] == [[f"{number} of 4 blocks are recomputed"] for number in (0, 3, 4)]
    assert "too little; lower Trainer.micro_batch_size" in told[2].lines[0]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def free_for(number: int) -> float:
    """The free memory in which a run chooses so many blocks."""
    need = memory(CHOOSING, make_plan(CHOOSING), CHOOSING_POLICY, 17)
    others = need.weights + need.optimiser + need.update - FOUND[0]
    return (others + FOUND[number] + 1) / (1 - activation_memory.FREE) - need.weights


class Told(RunObserver):
    """Keeps what a run says of its choice."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_message(self, text: str) -> None:
        if "gradient_checkpointing = 'auto'" in text:
            self.lines.append(text)

    def chosen(self) -> list[str]:
        return [line.partition("'auto': ")[2].partition(";")[0] for line in self.lines]


def test_a_budget_that_is_too_small_for_any_number_is_refused(tmp_path: Path) -> None:
    given = recipe(sets=[*AUTO, "Pretrained.activation_gib = 1e-6"])
    message = r"Pretrained\.activation_gib = 1e-06 is too small: .* take about .* although all 4 blocks are recomputed"
    with pytest.raises(ParameterError, match=message):
        train(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["Pretrained.gradient_checkpointing = 'some'"], "gradient_checkpointing must be .*'auto'.*got 'some'"),
        ([*AUTO[1:], "Pretrained.activation_gib = 0"], "activation_gib must be positive, or None, got 0"),
        ([*AUTO[1:], "Pretrained.activation_gib = float('nan')"], "activation_gib"),
        (["Pretrained.activation_gib = 2.0"], "activation_gib must be None without gradient_checkpointing = 'auto'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(sets: list[str], message: str) -> None:
    with pytest.raises((RecipeError, ParameterError), match=message):
        build(sets=sets)


def test_python_may_not_say_1_for_true() -> None:
    wrong: Any = 1
    with pytest.raises(ParameterError, match="gradient_checkpointing must be True, False or 'auto', got 1"):
        Pretrained("shipped:sudoku4x4", gradient_checkpointing=wrong)


def test_a_source_of_ones_own_may_not_say_what_means_nothing() -> None:
    algorithm = build(uses=["policy=CharacterLlama"])
    algorithm.policy.gradient_checkpointing = "always"  # type: ignore[assignment]
    with pytest.raises(
        ParameterError, match=r"CharacterLlama.gradient_checkpointing must be True, False or 'auto', got 'always'"
    ):
        start_training(algorithm)


def test_pre_training_does_not_choose(tmp_path: Path) -> None:
    sets = ["Pretrained.path = 'shipped:sudoku4x4'", "Pretrained.gradient_checkpointing = 'auto'"]
    given = load_recipe("pretrain_sudoku4x4", sets=sets, uses=["policy=Pretrained"])
    with pytest.raises(UserError, match="gradient_checkpointing must be True or False in pre-training"):
        pretrain(given, tmp_path / "run")


def test_a_cluster_chooses_for_each_micro_batch() -> None:
    sets = [*AUTO, "Trainer.prompts_per_update = 64", "Trainer.micro_batch_size = 192"]
    algorithm = build(sets=sets)
    policy = algorithm.policy.load()

    def job(gib: float) -> Job:
        return Job(algorithm, make_plan(algorithm), policy, 20, Cluster(memory=gib, bandwidth=1e-9))

    large = job(80).choice("none", 1, 192)
    assert large.recomputation is not None
    assert large.recomputation.number == 0
    gib = 0.9 * large.memory.peak / GIB / (1 - activation_memory.FREE)
    tight, small = job(gib).choice("none", 1, 192), job(gib).choice("none", 1, 8)
    assert tight.recomputation is not None
    assert small.recomputation is not None
    assert 0 < tight.recomputation.number < 4
    assert small.recomputation.number == 0
    assert tight.memory.update < large.memory.update
    assert job(gib).fits(tight)
    again = tight.recomputation.number / 4  # weights are read once more in that share of the blocks
    assert tight.update == pytest.approx((2 + again) / 2 * large.update)
    algorithm.policy.activation_gib = 1e-6
    refused = job(80).choice("none", 1, 192)
    assert not job(80).fits(refused)


def alike(processes: Processes, rooms: list[float]) -> tuple[int, int]:
    """What the processes choose if they have so many bytes free each, and how many blocks recompute then."""
    algorithm = build(sets=[*AUTO, "Trainer.sharding = 'full'"])
    before = activation_memory.free_memory
    activation_memory.free_memory = lambda device: rooms[processes.rank]
    try:
        policy = start_training(algorithm, processes).policy
    finally:
        activation_memory.free_memory = before
    return recomputed_blocks(policy.model), 4


@pytest.mark.thorough
def test_all_processes_choose_what_the_one_with_least_memory_needs(pool: Pool) -> None:
    assert pool.run(alike, [1e12, 1e12], worlds=(2,))[2] == [(0, 4)] * 2
    assert pool.run(alike, [1e12, 0.0], worlds=(2,))[2] == [(4, 4)] * 2


def test_weights_that_are_there_already_count_as_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """With free memory for gradients, optimiser and activations, and none for weights, nothing is recomputed."""
    algorithm = build(sets=AUTO)
    policy, plan = algorithm.policy.load(), make_plan(algorithm)
    policy.freeze_reference()
    need = memory(algorithm, plan, policy, 17)
    monkeypatch.setattr(activation_memory, "FREE", 0.0)
    monkeypatch.setattr(activation_memory, "free_memory", lambda device: need.optimiser + need.update)
    algorithm.policy.quantisation = "nf4"  # packed weights are counted as they are
    policy.model.register_parameter("packed", torch.nn.Parameter(torch.zeros(999, 1, dtype=torch.uint8), False))
    found = recompute_as_needed(algorithm, plan, policy, ALONE)
    assert (found.number, recomputed_blocks(policy.model)) == (0, 0)
    monkeypatch.setattr(activation_memory, "free_memory", lambda device: need.optimiser + need.update - 100)
    assert recompute_as_needed(algorithm, plan, policy, ALONE).number == 1


def test_free_memory_of_a_machine_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_memory, "free_in_cgroup", lambda root, own: 4000.0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory.free_memory(torch.device("cpu")) == 1000


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_the_smallest_room_of_control_groups_counts(tmp_path: Path) -> None:
    root, own = tmp_path / "fs", tmp_path / "cgroup"
    assert free_memory.free_in_cgroup(root, own) == float("inf")
    own.write_text("0::/a/b\n")
    group(root, {})
    group(root / "a", {"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": "anon 5\ninactive_file 50\n"})
    group(root / "a/b", {"memory.max": "max\n", "memory.current": "400\n"})
    assert free_memory.free_in_cgroup(root, own) == 150
    group(root / "a/b", {"memory.max": "420\n"})
    assert free_memory.free_in_cgroup(root, own) == 20
    own.write_text("4:cpu,memory:/x\n1:cpuset:/a/b\n0::/\n")
    group(root / "memory/x", {"memory.limit_in_bytes": "70\n", "memory.usage_in_bytes": "90\n"})
    assert free_memory.free_in_cgroup(root, own) == 0
    stat = "inactive_file 1\ntotal_inactive_file 30\n"
    group(root / "memory/x", {"memory.limit_in_bytes": "70\n", "memory.usage_in_bytes": "90\n", "memory.stat": stat})
    assert free_memory.free_in_cgroup(root, own) == 10
    group(root / "memory/x", {"memory.high": "65\n"})
    assert free_memory.free_in_cgroup(root, own) == 5


def test_control_groups_whose_files_say_nothing_limit_nothing(tmp_path: Path) -> None:
    root, own = tmp_path / "fs", tmp_path / "cgroup"
    own.write_text("\nnonsense\n0::/a\n")
    for name in ("memory.max", "memory.current", "memory.stat"):
        group(root / "a", {"memory.max": "1000", "memory.current": "900", "memory.stat": "file 1", name: ""})
        assert free_memory.free_in_cgroup(root, own) == (100 if name == "memory.stat" else float("inf"))
    group(root / "a", {"memory.max": "1000", "memory.current": "900", "memory.stat": "inactive_file"})
    assert free_memory.free_in_cgroup(root, own) == 100
