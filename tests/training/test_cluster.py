"""The plan of a dry run: memory, bytes and seconds of each choice, and which is chosen."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from support.runs import build
from typer.testing import CliRunner

from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.cli.app import app
from dlmrl_kit.training.cluster import FREE, GIB, Cluster, Job, in_words
from dlmrl_kit.training.exchange import Exchange, units

SETS = ["Trainer.prompts_per_update = 6", "Trainer.group_size = 4", "Trainer.rollout_batch_size = 2"]


def job(cluster: Cluster, *sets: str, name: str = "egspo_sa", uses: tuple[str, ...] = ()) -> Job:
    algorithm = build(name, [*SETS, *sets], list(uses))
    return Job(algorithm, make_plan(algorithm), algorithm.policy.load(), 20, cluster)


def test_rings() -> None:
    exchange = Exchange(rollout=8.0, scattered=4.0, reduced=2.0)
    assert exchange.sent(4) == 0.75 * (8 + 4 + 2 * 2)
    within, between = Cluster(gpus=8, link=100), Cluster(gpus=8, nodes=2, link=100, network=10)
    assert within.seconds(100e9) == 1.0
    assert between.seconds(100e9) == 1.25  # what leaves a machine goes through eight adapters
    assert Cluster(gpus=1, nodes=2, network=10).seconds(100e9) == 10.0
    assert Cluster().seconds(100e9) == 0.0


@pytest.mark.parametrize(("world", "samples", "idle"), [(1, 24, 0.0), (4, 8, 0.25), (6, 4, 0.0), (12, 4, 0.5)])
def test_the_process_with_most_samples_is_what_counts(world: int, samples: int, idle: float) -> None:
    found = job(Cluster(world))
    assert found.samples == samples
    assert found.idle == pytest.approx(idle)
    lines = in_words(found)
    assert any("GPUs have nothing to do" in line for line in lines) is (world > 6)
    assert {c.rollout_batch for c in found.choices()} >= {1, 2, samples}


def test_sharding_divides_what_is_kept_and_adds_what_travels() -> None:
    found = job(Cluster(4))
    whole, full = (found.choice(sharding, 2, 2) for sharding in ("none", "full"))
    assert full.memory.weights < whole.memory.weights
    assert full.memory.optimiser < whole.memory.optimiser
    assert full.memory.rollout > whole.memory.rollout
    assert full.exchange.sent(4) > whole.exchange.sent(4)
    assert (full.rollout, full.update) == (whole.rollout, whole.update)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_world_of_one_cuts_nothing(rank: int) -> None:
    """All that is kept whole or in parts is the model; bfloat16 halves what travels of the blocks alone."""
    policy = job(Cluster(), f"Pretrained.lora_rank = {rank}").policy
    cut, half = units(policy, 1, False, False), units(policy, 1, True, False)
    assert sum(unit.stored for unit in cut.own) + cut.tied == 4 * policy.num_parameters
    assert sum(unit.gradients for unit in cut.own) + cut.trained == 4 * sum(p.numel() for _, p in policy.trainable())
    assert [unit.gathered for unit in half.blocks] == [unit.gathered / 2 for unit in cut.blocks]
    assert half.rest == cut.rest


def test_the_choice_is_the_fastest_that_fits() -> None:
    found = job(Cluster(2, memory=1.0))
    best = found.best(found.choices())
    assert best is not None
    assert best.sharding == "none"
    assert (best.rollout_batch, best.micro_batch) == (found.samples, found.samples)
    assert best.memory.peak <= (1 - FREE) * GIB
    nothing = replace(found, cluster=replace(found.cluster, memory=1e-6))
    assert in_words(nothing)[-1].startswith("choose       nothing: no choice fits into 1e-06 GiB")


def test_what_fits_in_parts_alone_is_sharded() -> None:
    deep = ["CharacterLlama.hidden_size = 32", "CharacterLlama.num_layers = 6", "Selector.k = 1"]
    found = job(Cluster(2), *deep, uses=("policy=CharacterLlama",))
    least = {s: min(c.memory.peak for c in found.choices() if c.sharding == s) for s in ("none", "full")}
    assert least["full"] < least["none"]
    limit = (least["full"] + least["none"]) / 2 / GIB / (1 - FREE)
    tight = replace(found, cluster=replace(found.cluster, memory=limit))
    best = tight.best(tight.choices())
    assert best is not None
    assert best.sharding == "full"


def test_rollouts_are_in_blocks_where_all_weights_do_not_fit_and_offloaded_where_parts_do_not() -> None:
    """Each needs less memory than what is tried before it, and is chosen where that does not fit."""
    large = ["CharacterLlama.hidden_size = 256", "CharacterLlama.num_layers = 8", "Selector.k = 1"]
    found = job(Cluster(4), *large, uses=("policy=CharacterLlama",))
    tiny = replace(found, cluster=replace(found.cluster, memory=1e-6))
    whole, in_blocks, offloaded = (
        min(choice.memory.peak for choice in choices if choice.sharding == "full")
        for choices in (found.choices(), tiny.choices(), tiny.choices(offloaded=True))
    )
    assert offloaded < in_blocks < whole
    for room, way in (
        ((in_blocks + whole) / 2, "--set \"Trainer.rollout_weights='blocks'\""),
        ((offloaded + in_blocks) / 2, "--set \"Trainer.offload='cpu'\""),
    ):
        lines = in_words(replace(found, cluster=replace(found.cluster, memory=room / GIB / (1 - FREE))))
        assert lines[-1].startswith(f"choose       --set \"Trainer.sharding='full'\" {way} ")
        assert any("in memory of the CPU" in line for line in lines) is ("offload" in way)


def test_offloaded_parts_are_what_the_card_does_not_hold() -> None:
    found = job(Cluster(4))
    own, away = (found.choice("full", 2, 2, offloaded).memory for offloaded in (False, True))
    assert away.offloaded > 0
    assert own.offloaded == 0
    assert own.weights + own.optimiser == pytest.approx(away.weights + away.optimiser + away.offloaded)
    assert (own.rollout, own.update, own.evaluation) == (away.rollout, away.update, away.evaluation)


def test_what_cannot_be_sharded_is_not_chosen() -> None:
    found = job(Cluster(2, memory=1.0), "Trainer.compile = 'default'")
    lines = in_words(found)
    assert any(line.strip().startswith("not possible: Trainer.sharding = 'full'") for line in lines)
    assert "Trainer.sharding='none'" in lines[-1]


def test_reading_weights_takes_over_where_batches_are_small() -> None:
    slow = job(Cluster(2, tflops=1e6, bandwidth=1e-6))
    one, all_ = (slow.choice("none", rows, 2).rollout for rows in (1, slow.samples))
    assert one == pytest.approx(slow.samples * all_)
    fast = job(Cluster(2, bandwidth=1e9))
    assert fast.choice("none", 1, 2).rollout == fast.choice("none", fast.samples, 2).rollout


def test_the_command_prints_the_plan() -> None:
    sets = ["--set", "Trainer.prompts_per_update=3"]
    torch.manual_seed(0)
    result = CliRunner().invoke(app, ["train", "--dry-run", *sets, "--gpus", "2", "--nodes", "2", "--network", "12.5"])
    assert result.exit_code == 0, result.output
    assert "on 4 GPUs at 300 TFLOP/s each" in result.output
    assert "plan         2 machines of 2 GPUs; assumed: 74.5 GiB" in result.output
    assert "network at 12.5 GB/s" in result.output
    assert re.search(r"1 of 4 GPUs have nothing to do", result.output)
    assert re.search(
        r'choose       --set "Trainer\.sharding=\'none\'" --set Trainer\.rollout_batch_size=8 ', result.output
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "2"], "--nodes without --dry-run"),
        (["--dry-run", "--nodes", "2"], "--nodes without --gpus N"),
        (["--dry-run", "--memory", "40", "--link", "9"], "--memory and --link without --gpus N"),
        (["--dry-run", "--gpus", "8", "--network", "9"], "--network without --nodes: one machine needs none"),
        (["--dry-run", "--gpus", "8", "--nodes", "0"], "--nodes"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
