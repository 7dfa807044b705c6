"""Sharded policies: N processes that hold a part of the weights each take the updates of one that holds all."""

from __future__ import annotations

import copy
import functools
import math
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.block_checkpoints import BLOCK, sdar_checkpoint
from support.checkpoints import llada_moe_checkpoint
from support.llada2 import llada2_checkpoint, sdar_moe_checkpoint
from support.runs import build, recipe
from support.several import Pool
from torch import nn

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.policies.families.diffusion_gemma import DiffusionGemmaPolicy
from dlmrl_kit.policies.families.masked_lm import MaskedLMPolicy
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.recompute import recomputed_blocks
from dlmrl_kit.policies.sharding import is_sharded, together
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.tasks.base import BaseTask, Example
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.runs import train
from dlmrl_kit.training.start import start_training

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
    "pieces, in two passes": ("espo", ["Trainer.micro_batch_tokens = 60", "Trainer.prompts_per_update = 2"], []),
    "micro-batches, recomputed": (
        "egspo_sa",
        ["Trainer.micro_batch_size = 2", "Pretrained.gradient_checkpointing = True"],
        [],
    ),
    "micro-batches, partly recomputed": (
        "egspo_sa",
        [
            "Trainer.micro_batch_size = 2",
            "Pretrained.gradient_checkpointing = 'auto'",
            "Pretrained.activation_gib = 0.0012",
        ],
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


BLOCKS = "Trainer.rollout_weights = 'blocks'"
OFFLOAD = "Trainer.offload = 'cpu'"
WAYS: dict[str, tuple[str, list[str]]] = {
    "blocks, learned order": ("learned order", [BLOCKS]),
    "blocks, adapter": ("low-rank adapter", [BLOCKS]),
    "blocks, fewer prompts than processes": ("fewer prompts than processes", [BLOCKS]),
    "blocks, value model": ("value model", [BLOCKS]),
    "blocks, tokens": ("tokens", [BLOCKS]),
    "offload, frozen reference": ("frozen reference", [OFFLOAD]),
    "offload, blocks, learned order": ("learned order", [OFFLOAD, BLOCKS]),
    "offload, adapter": ("low-rank adapter", [OFFLOAD]),
}
"""Other ways to keep and to put together the weights of a case."""


class Letters(Sudoku4x4):
    """Rewards the first digit of an answer and its number of characters: what random models write differs in these."""

    def score(self, completion: str, example: Example) -> dict[str, float]:
        digits = [int(character) for character in completion if character.isdigit()]
        reward = (len(completion) % 7 + sum(digits[:1])) / 16
        return {"format": 1.0, "cells": 0.0, "solved": 0.0, "reward": reward}


class Double(PolicySource):
    """Loads a checkpoint in float64, in which no fault hides behind rounding, and makes it larger.

    Args:
        source: loads the checkpoint.
        deep: whether to make three layers where it has one, and a head of its own there.
    """

    def __init__(self, source: Pretrained, deep: bool) -> None:
        self.source, self.deep, self.mask_id, self.eos_ids = source, deep, source.mask_id, source.eos_ids
        self.gradient_checkpointing, self.activation_gib = source.gradient_checkpointing, source.activation_gib

    def load(self) -> TransformersPolicy:
        policy = load_policy(self.source.path, block_size=self.source.block_size)
        model: Any = policy.model
        if self.deep and len(model.model.layers) == 1:
            model.model.layers.extend(copy.deepcopy(model.model.layers[0]) for _ in range(2))
            model.config.num_hidden_layers = 3
            for number, layer in enumerate(model.model.layers):
                layer.self_attn.layer_idx = number
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.config._experts_implementation = "eager"  # torch's grouped products are not for float64
        policy.double()
        self.source.prepare(policy, self.source.lora_rank)
        return policy


def updates(
    processes: Processes, given: Given, double: bool = True, deep: bool = True, task: BaseTask | None = None
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The metrics of two updates, and all weights after them."""
    name, sets, uses = given
    if not any(binding.startswith("Trainer.prompts_per_update") for binding in sets):
        sets = [*sets, "Trainer.prompts_per_update = 4"]
    built = algorithm = build(name, [*sets, "Trainer.sharding = 'full'"], uses)
    if double:
        source = Double(built.policy, deep)
        algorithm = Algorithm(task or built.task, source, trainer=built.trainer, logger=built.loggers, **built.fillings)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(algorithm, Path(folder), name, RunObserver(), processes)
        if double:
            for component in run.algorithm.components:
                component.double()
        if algorithm.policy.activation_gib is not None:
            assert 0 < recomputed_blocks(run.policy.model) < 3, run.notes
        sharded = [name for name, p in run.parameters.items() if is_sharded(p)]
        assert bool(sharded) is (processes.world > 1)
        metrics = [run.update(number) for number in range(2)]
        return metrics, {name: together(p.detach()).clone() for name, p in run.parameters.items()}


def compare(found: dict[int, list[Any]], tolerance: float, but: Collection[str] = ()) -> None:
    metrics, weights = found[1][0]
    assert all(math.isfinite(value) for update in metrics for value in update.values())
    for world in found.keys() - {1}:
        for own, others in found[world]:
            for update, expected in zip(own, metrics, strict=True):
                for name in but:
                    update[name] = expected[name]
                assert update == pytest.approx(expected, rel=tolerance, abs=tolerance)
            assert others.keys() == weights.keys()
            for name, value in others.items():
                torch.testing.assert_close(value, weights[name], rtol=0, atol=tolerance, msg=name)


QUICK = ("learned order", "offload, blocks, learned order")


@pytest.mark.parametrize("label", [pytest.param(c, marks=() if c in QUICK else pytest.mark.thorough) for c in CASES])
def test_a_case(pool: Pool, label: str) -> None:
    compare(pool.run(updates, CASES[label]), 1e-9)


@pytest.mark.parametrize("label", [pytest.param(w, marks=() if w in QUICK else pytest.mark.thorough) for w in WAYS])
def test_another_way(pool: Pool, label: str) -> None:
    """Numbers are those of one process, however different the numbers of forwards are that processes need."""
    case, sets = WAYS[label]
    name, own, uses = CASES[case]
    found = pool.run(updates, CASES[case], worlds=(1,)) | pool.run(updates, (name, [*own, *sets], uses), worlds=(3,))
    compare(found, 1e-9)


def counted(processes: Processes, given: Given) -> tuple[int, tuple[list[dict[str, float]], dict[str, Any]]]:
    """As ``updates``, with the number of forwards that this process asked for."""
    original, asked = TransformersPolicy.in_turn, 0

    def in_turn(self: TransformersPolicy, *rest: Any) -> torch.Tensor:
        nonlocal asked
        asked += 1
        return original(self, *rest)

    TransformersPolicy.in_turn = in_turn  # type: ignore[method-assign]
    try:
        result = updates(processes, given)
    finally:
        TransformersPolicy.in_turn = original  # type: ignore[method-assign]
    return asked, result


@pytest.mark.thorough
def test_processes_that_need_different_numbers_of_forwards(pool: Pool) -> None:
    """One has two prompts, which it samples one after the other, and the others have one each."""
    name, sets, uses = CASES["micro-batches, recomputed"]
    sets = [*sets, "Trainer.rollout_batch_size = 3"]
    found = pool.run(updates, (name, sets, uses), worlds=(1,))
    own = pool.run(counted, (name, [*sets, BLOCKS], uses), worlds=(3,))[3]
    assert len({asked for asked, _ in own}) > 1
    compare(found | {3: [result for _, result in own]}, 1e-9)


FAMILIES: dict[str, tuple[str, list[str], list[str]]] = {
    "sdar": ("egspo_sa", [], []),
    "sdar, adapter": ("egspo_sa", [], ["Pretrained.lora_rank = 2"]),
    "sdar, blocks": ("egspo_sa", [], [BLOCKS]),
    "sdar, replayed": ("dipo", ["likelihood=BlockReplay"], [BLOCKS]),
    "llada2, adapter, blocks": ("egspo_sa", [], ["Pretrained.lora_rank = 2", BLOCKS]),
    "llada2": ("egspo_sa", [], []),
    "sdar_moe, blocks": ("egspo_sa", [], [BLOCKS]),
    "llada_moe, blocks": ("egspo_sa", [], [BLOCKS]),
}
"""A family, and what is done with it: recipe, swaps, settings."""
MAKERS: dict[str, Callable[[Path], Any]] = {
    "sdar": sdar_checkpoint,
    "llada2": functools.partial(llada2_checkpoint, block=BLOCK),
    "sdar_moe": sdar_moe_checkpoint,
    "llada_moe": llada_moe_checkpoint,
}


@pytest.mark.thorough
@pytest.mark.parametrize("label", FAMILIES)
def test_a_family(label: str, pool: Pool, tmp_path: Path) -> None:
    family = label.split(",")[0]
    MAKERS[family](tmp_path / "model")
    name, uses, more = FAMILIES[label]
    sets = [
        f"Pretrained.path = {str(tmp_path / 'model')!r}",
        f"Sampler.block_length = {BLOCK}",
        "Sampler.temperature = 1.0",
    ]
    if name != "dipo":
        sets += ["Sampler.tokens_per_step = 2"]
    if family in ("llada2", "sdar_moe"):
        sets += [f"Pretrained.block_size = {BLOCK}"]
    given = name, [*sets, *(binding for binding in more if binding != BLOCKS)], uses
    case = functools.partial(updates, task=Letters(num_train=7, num_heldout=5))
    found = pool.run(case, given, worlds=(1,)) | pool.run(case, (name, [*sets, *more], uses), worlds=(2,))
    assert min(metrics["grad_norm"] for metrics in found[1][0][0]) > 1e-3
    # Routers count the padding of blocks that are finished in other rows of a batch, too. transformers rounds hidden
    # states to float32 in LLaDA2's, whatever they are in.
    but = ["router/imbalance"] if family in ("llada2", "sdar_moe") else []
    compare(found, 1e-7 if family == "llada2" else 1e-9, but)


@pytest.mark.thorough
def test_a_head_that_is_the_embeddings(pool: Pool) -> None:
    compare(pool.run(functools.partial(updates, deep=False), CASES["frozen reference"]), 1e-9)


@pytest.mark.thorough
def test_float32(pool: Pool) -> None:
    """Rounding is what is left."""
    given = ("egspo_sa", ["Trainer.learning_rate = 1e-4"], [])
    compare(pool.run(functools.partial(updates, double=False), given), 1e-5)


def widths(processes: Processes) -> set[tuple[bool, int]]:
    """At how many positions the MLPs of the last layer and of the one before it were computed in an update."""
    algorithm = build("egspo", ["Trainer.sharding = 'full'", "Trainer.updates = 1"])
    source = Double(algorithm.policy, deep=True)
    algorithm = Algorithm(algorithm.task, source, trainer=algorithm.trainer, **algorithm.fillings)
    found = set()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(algorithm, Path(folder), "widths", RunObserver(), processes)
        layers = run.policy.model.get_submodule("model.layers").children()
        for number, layer in enumerate(layers):

            def note(module: nn.Module, given: Any, output: Any, number: int = number) -> None:
                found.add((number == 2, given[0].shape[1]))

            layer.get_submodule("mlp").register_forward_hook(note)
        run.update(0)
    return found


@pytest.mark.thorough
def test_the_last_layer_is_computed_at_the_asked_places_only(pool: Pool) -> None:
    """In fewer places than the layers before it, in one process and in two."""
    for own in (found for results in pool.run(widths, worlds=(1, 2)).values() for found in results):
        last, before = ({width for is_last, width in own if is_last is which} - {1} for which in (True, False))
        assert min(last) < min(before)
        assert max(last) < max(before)


def mixed(processes: Processes, precision: str, sets: Sequence[str] = ()) -> list[dict[str, float]]:
    once = ["Trainer.minibatches = 1", "Trainer.learning_rate = 1e-4", *sets]
    algorithm = build(sets=[*once, f"Trainer.precision = {precision!r}", "Trainer.sharding = 'full'"])
    with tempfile.TemporaryDirectory() as folder:
        run = Run(algorithm, Path(folder), "mixed", RunObserver(), processes)
        assert all(p.dtype == torch.float32 for p in run.parameters.values())
        with run.policy.whole():
            for name, weight in run.policy.model.get_submodule("model.layers").named_parameters():
                assert weight.dtype == (torch.float32 if "mlp.gate.weight" in name else getattr(torch, precision))
        return [run.update(number) for number in range(2)]


@pytest.mark.thorough
def test_bfloat16(pool: Pool) -> None:
    """Blocks compute in it: numbers are those of float32, up to its rounding, which in some runs turns a draw."""
    runs = []
    for seed in range(7):
        sets = [f"Trainer.seed = {seed}"]
        runs.append([pool.run(mixed, precision, sets, worlds=(2,))[2][0][0] for precision in ("bfloat16", "float32")])
    for name in ("entropy", "loss_objective", "grad_norm", "reward"):
        near = [half[name] == pytest.approx(whole[name], rel=0.03, abs=1e-3) for half, whole in runs]
        assert sum(near) > len(runs) / 2, (name, runs)
    assert all(half["entropy"] != pytest.approx(whole["entropy"], rel=1e-5) for half, whole in runs)


@pytest.mark.thorough
def test_bfloat16_with_experts(pool: Pool, tmp_path: Path) -> None:
    """Their routers compute in float32, and are put together in it."""
    llada_moe_checkpoint(tmp_path / "model")
    sets = [f"Pretrained.path = {str(tmp_path / 'model')!r}"]
    half, whole = (pool.run(mixed, precision, sets, worlds=(2,))[2][0][0] for precision in ("bfloat16", "float32"))
    assert half["entropy"] == pytest.approx(whole["entropy"], rel=0.03)
    assert half["entropy"] != pytest.approx(whole["entropy"], rel=1e-5)


@pytest.mark.parametrize(
    ("uses", "sets", "reason"),
    [
        (["cache=DualCache", "likelihood=StepTokenLogProb", "correction=Uncorrected"], [], "not for a cache"),
        ([], ["Trainer.compile = 'default'"], "not for Trainer.compile"),
    ],
)
def test_what_does_not_go_with_it(uses: list[str], sets: list[str], reason: str) -> None:
    algorithm = build("egspo", ["Trainer.sharding = 'full'", *sets], uses)
    with pytest.raises(RecipeError, match=f"Trainer.sharding = 'full' is {reason}"):
        start_training(algorithm)


KINDS = [DiffusionGemmaPolicy, MaskedLMPolicy]


@pytest.mark.parametrize("kind", KINDS)
def test_families_that_cannot_be_sharded(kind: type[TransformersPolicy]) -> None:
    policy = build().policy.load()
    policy.check_sharding()
    policy.__class__ = kind  # checkpoints of these families take seconds to make
    with pytest.raises(UserError, match=r"^Trainer.sharding = 'full' is not for .*; set it to 'none'$"):
        policy.check_sharding()


def test_weights_in_four_bits_cannot_be_sharded() -> None:
    """A weight says that bitsandbytes has stored it by an attribute of its own."""
    policy = build().policy.load()
    next(policy.parameters()).quant_state = object()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="weights in 4 bits"):
        policy.check_sharding()


@pytest.mark.thorough
def test_one_process_says_that_nothing_is_sharded(tmp_path: Path) -> None:
    told: list[str] = []

    class Observer(RunObserver):
        def on_message(self, text: str) -> None:
            told.append(text)

    train(recipe(sets=["Trainer.sharding = 'full'", "Trainer.updates = 1"]), tmp_path / "run", observer=Observer())
    assert "Trainer.sharding has no effect in one process, which holds all weights" in told
