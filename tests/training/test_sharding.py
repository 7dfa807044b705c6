"""Sharded policies: N processes that hold a part of the weights each take the updates of one that holds all."""

from __future__ import annotations

import copy
import functools
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import build
from support.several import Pool
from torch import nn

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.sharding import is_sharded, together
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.training.loop import Run

Given = tuple[str, list[str], list[str]]
OPEN = ["SuccessRange.low = 0.0", "SuccessRange.success = 0.3"]

CASES: dict[str, Given] = {
    "frozen reference": ("egspo_sa", [], []),
    "low-rank adapter": ("egspo_sa", ["Pretrained.lora_rank = 2"], []),
    "fewer prompts than processes": ("egspo_sa", ["Trainer.prompts_per_update = 1"], []),
    "value model": ("tracerl_value", [*OPEN, "Trainer.minibatches = 6"], []),
    "learned order": (
        "egspo_sa",
        ["Trainer.prompts_per_update = 5"],
        ["sampler=LearnedOrder", "likelihood=StepLogProb"],
    ),
    "tokens": ("dipo", ["ConfidenceThreshold.threshold = 0.35"], ["loss=TokenPPO", "regulariser=TokenKLK2"]),
    "live reference": ("egspo_sa", [], ["regulariser=KLExact+EntropyBonus"]),
    "pieces, in two passes": ("espo", ["Trainer.micro_batch_tokens = 40"], []),
    "micro-batches, recomputed": (
        "egspo_sa",
        ["Trainer.micro_batch_size = 2", "Pretrained.gradient_checkpointing = True"],
        [],
    ),
    "filter that keeps few": (
        "egspo",
        [
            "Trainer.prompts_per_update = 5",
            "SuccessRange.low = 0.3",
            "SuccessRange.high = 0.7",
            "SuccessRange.success = 0.25",
        ],
        ["filter=SuccessRange"],
    ),
    "minibatches of one sample": ("egspo", ["Trainer.prompts_per_update = 2", "Trainer.minibatches = 6"], []),
}


class Double(PolicySource):
    """Loads a checkpoint in float64, in which no fault hides behind rounding, and makes it larger.

    Args:
        source: loads the checkpoint, of one layer, whose head is the embeddings.
        deep: whether to make three layers of its one, and a head of its own.
    """

    def __init__(self, source: Pretrained, deep: bool) -> None:
        self.source, self.deep, self.mask_id, self.eos_ids = source, deep, source.mask_id, source.eos_ids

    def load(self) -> TransformersPolicy:
        policy = load_policy(self.source.path)
        model: Any = policy.model
        if self.deep:
            model.model.layers.extend(copy.deepcopy(model.model.layers[0]) for _ in range(2))
            model.config.num_hidden_layers = 3
            for number, layer in enumerate(model.model.layers):
                layer.self_attn.layer_idx = number
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        policy.double()
        self.source.prepare(policy, self.source.lora_rank)
        return policy


def updates(
    processes: Processes, given: Given, double: bool = True, deep: bool = True
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The metrics of two updates, and all weights after them."""
    name, sets, uses = given
    if not any(binding.startswith("Trainer.prompts_per_update") for binding in sets):
        sets = [*sets, "Trainer.prompts_per_update = 4"]
    built = algorithm = build(name, [*sets, "Trainer.sharding = 'full'"], uses)
    if double:
        source = Double(built.policy, deep)
        algorithm = Algorithm(built.task, source, trainer=built.trainer, logger=built.loggers, **built.fillings)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(algorithm, Path(folder), name, RunObserver(), processes)
        if double:
            for component in run.algorithm.components:
                component.double()
        sharded = [name for name, p in run.parameters.items() if is_sharded(p)]
        assert bool(sharded) is (processes.world > 1)
        metrics = [run.update(number) for number in range(2)]
        return metrics, {name: together(p.detach()).clone() for name, p in run.parameters.items()}


def compare(found: dict[int, list[Any]], tolerance: float) -> None:
    metrics, weights = found[1][0]
    assert all(math.isfinite(value) for update in metrics for value in update.values())
    for world in found.keys() - {1}:
        for own, others in found[world]:
            for update, expected in zip(own, metrics, strict=True):
                assert update == pytest.approx(expected, rel=tolerance, abs=tolerance)
            assert others.keys() == weights.keys()
            for name, value in others.items():
                torch.testing.assert_close(value, weights[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("label", CASES)
def test_a_case(pool: Pool, label: str) -> None:
    compare(pool.run(updates, CASES[label]), 1e-9)


def test_a_head_that_is_the_embeddings(pool: Pool) -> None:
    compare(pool.run(functools.partial(updates, deep=False), CASES["frozen reference"]), 1e-9)


def test_float32(pool: Pool) -> None:
    """Rounding is what is left."""
    given = ("egspo_sa", ["Trainer.learning_rate = 1e-4"], [])
    compare(pool.run(functools.partial(updates, double=False), given), 1e-5)
