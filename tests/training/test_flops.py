"""The arithmetic that a dry run reports, against torch's own counter of operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import dream_checkpoint, llada_checkpoint
from support.runs import build
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.cli.app import app
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.training.estimate import forwards, model_sizes
from dlmrl_kit.training.flops import Arithmetic, arithmetic, in_words


@pytest.mark.parametrize("make", [llada_checkpoint, dream_checkpoint])
def test_a_forward_is_counted_as_torch_counts_it(make: Any, tmp_path: Path) -> None:
    make(tmp_path)
    policy = load_policy(tmp_path, attention="eager")
    sizes, length, asked = model_sizes(policy), 20, 3
    ids, mask = torch.zeros(1, length, dtype=torch.long), torch.ones(1, length, dtype=torch.bool)
    positions = torch.zeros(1, length, dtype=torch.bool)
    positions[0, -asked:] = True
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy(ids, mask, positions)
    head = 2 * asked * sizes.hidden * policy.vocab_size
    blocks = 2 * sizes.weights * length + 4 * sizes.number * sizes.heads * sizes.head * length**2
    assert counter.get_total_flops() == blocks + head


def test_phases_add_up_and_follow_the_settings() -> None:
    def of(*sets: str) -> Arithmetic:
        algorithm = build("egspo", sets=sets)
        return arithmetic(algorithm, make_plan(algorithm), algorithm.policy.load(), 20)

    plain, twice = of(), of("Trainer.inner_iterations = 2")
    assert plain.total == plain.rollout + plain.scoring + plain.update
    assert (twice.rollout, twice.update) == (plain.rollout, 2 * plain.update)
    recomputed = of("Pretrained.gradient_checkpointing = True")
    assert plain.update < recomputed.update < 1.5 * plain.update
    adapted = of("Pretrained.lora_rank = 2")
    assert 0.6 < adapted.update / plain.update < 0.95  # two passes instead of three, and the adapter
    algorithm = build("egspo")
    assert forwards(algorithm, make_plan(algorithm)).correction == 0


def test_hours_are_arithmetic_over_rate() -> None:
    lines = in_words(Arithmetic(6e15, 1e15, 3e15), updates=360, gpus=2, tflops=500)
    assert lines[0] == "arithmetic   10 PFLOP per update: rollout 60%, scoring 10%, update 30%"
    assert lines[1].startswith("time         1 hours for 360 updates on 2 GPUs at 500 TFLOP/s each")


def test_a_rate_is_for_dry_runs_only() -> None:
    result = CliRunner().invoke(app, ["train", "--tflops", "8"])
    assert result.exit_code == 2
    assert "--tflops without --dry-run" in result.output
