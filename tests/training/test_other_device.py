"""The kit on a device of its own: what CUDA would refuse is refused, and the numbers are those of the CPU."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.block_checkpoints import diffusion_gemma_checkpoint, sdar_checkpoint
from support.device_waits import counted
from support.families import make_dream, make_llada, make_llada_moe
from support.kit_recipes import kit_recipes
from support.llada2 import llada2_checkpoint, sdar_moe_checkpoint
from support.other_device import Elsewhere, context, other_device
from support.policies import tiny_policy
from support.pretraining import tiny
from support.rollouts import ALIKE
from support.runs import recipe
from torch import Tensor

from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.pretraining.run import PretrainRun
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.rollout.environment import DenoisingEnv, SamplerPolicy
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.training.loop import Run

ONE = ["Trainer.updates = 1", "Trainer.inner_iterations = 1", "Trainer.minibatches = 1", "Trainer.eval_every = 0"]
"""One step of the optimiser: Adam's first one is the gradient's sign, and signs of zeros differ by rounding."""
SAMPLERS = [c.name for c in components("sampler") if c.package == "dlmrl_kit" and c.name != "PreferencePairs"]
SWAPS = [
    *[[f"sampler={name}"] for name in SAMPLERS if name not in ("EntropyBoundRenoising", *ALIKE)],
    *[[f"filter={c.name}"] for c in components("filter") if c.package == "dlmrl_kit"],
    ["cache=DualCache"],
    ["cache=PrefixCache", "correction=TrajectoryImportance", "likelihood=StepLogProb"],
    ["regulariser=KLExact", "selector=EntropyImportance"],
    ["selector=EntropyBound", "advantage=LeaveOneOut"],
    ["policy=CharacterLlama"],
]


class Loaded(PolicySource):
    """A policy component whose policy was loaded before: transformers uses ``meta`` for purposes of its own.

    There tied weights are tied again: torch moves a tensor of another class by making a new one.
    """

    def __init__(self, policy: Any, device: str) -> None:
        self.policy = policy.to(device)
        self.policy.model.tie_weights()

    def load(self) -> Any:
        """The policy."""
        return self.policy


def new_run(
    folder: Path, device: str, name: str = "egspo_sa", sets: Iterable[str] = (), uses: Iterable[str] = ()
) -> Run:
    """A run of a tiny recipe; to be made and to run within the device's context."""
    algorithm: Any = recipe(name, sets=[*sets, f"Trainer.device = {device!r}"], uses=uses).build()
    torch.manual_seed(0)
    policy = algorithm.policy.load()
    with context(device):
        algorithm.policy = Loaded(policy, device)
        return Run(algorithm, folder, name, RunObserver())


def update(folder: Path, device: str, name: str, sets: list[str], uses: list[str]) -> tuple[Tensor, dict[str, float]]:
    """Completions and metrics of one update of a tiny recipe."""
    run = new_run(folder, device, name, [*ONE, *sets], uses)
    with context(device):
        rollout = run.update.roll_out(0)
        found = {}
        if len(rollout.kept):
            found = run.update.prepare(rollout) | run.update.learn(rollout.kept, 0)
    assert all(isinstance(p, Elsewhere) == (device == "meta") for p in run.policy.parameters())
    found["reward"] = rollout.everything["reward"].mean().item()
    return rollout.everything["completion_ids"].cpu(), found


def compare(folder: Path, name: str, uses: list[str], *sets: str) -> None:
    """The same update on both devices."""
    (there, found), (here, expected) = (update(folder, d, name, list(sets), uses) for d in ("meta", "cpu"))
    assert torch.equal(there, here)
    assert len(expected) >= 5 or uses[0].startswith("filter=")
    assert found == pytest.approx(expected, rel=5e-4, abs=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("name", kit_recipes())
def test_a_recipe_trains_there_as_here(name: str, tmp_path: Path) -> None:
    compare(tmp_path, name, ["filter=none"])  # which may keep nothing here


@pytest.mark.thorough
@pytest.mark.parametrize("uses", SWAPS, ids=" ".join)
def test_components_run_there_as_here(uses: list[str], tmp_path: Path) -> None:
    compare(tmp_path, "egspo_sa", uses)


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", ALIKE)
@pytest.mark.parametrize("schedule", ["EvenSteps", "LinearTimeSteps"])
def test_step_schedules_run_there_as_here(sampler: str, schedule: str, tmp_path: Path) -> None:
    sets = (f"Sampler.tokens_per_step = @{schedule}()", f"{schedule}.steps = 5", "Sampler.temperature = 0.8")
    compare(tmp_path, "egspo_sa", [f"sampler={sampler}"], *sets)


def test_an_update_waits_seldom(tmp_path: Path) -> None:
    """In a micro-batch for selection, prompts, committed positions, denominators, the largest ratio and metrics."""
    sets = [*ONE, "Trainer.micro_batch_size = 1"]
    run = new_run(tmp_path, "meta", sets=sets, uses=["filter=none"])
    starts: list[int] = []
    backward = run.update.gradient._backward
    with context("meta"):
        rollout = run.update.roll_out(0)
        run.update.prepare(rollout)
        with counted() as found, pytest.MonkeyPatch.context() as patch:
            patch.setattr(run.update.gradient, "_backward", lambda *g: (starts.append(len(found)), backward(*g))[1])
            run.update.learn(rollout.kept, 0)
    assert len(starts) == len(rollout.kept) >= 4
    assert {after - before for before, after in itertools.pairwise(starts)} == {7}, found
    assert starts[0] <= 7 + 7  # of a minibatch
    assert len(found) - starts[-1] <= 4


def only(digits: range, vocabulary: int) -> str:
    """Forbids all tokens but four digits, so that some cells are right."""
    return f"Pretrained.forbidden_ids = {tuple(i for i in range(vocabulary) if i not in digits)}"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("make", "digits", "vocabulary", "sets", "uses"),
    [
        (make_llada, range(1, 5), 21, [], []),
        (make_llada_moe, range(1, 5), 21, [], []),
        (make_dream, range(1, 5), 20, ["Pretrained.lora_rank = 4"], ["cache=DualCache"]),
        (sdar_checkpoint, range(16, 20), 264, ["Sampler.block_length = 4"], []),
        (llada2_checkpoint, range(1, 5), 24, ["Sampler.block_length = 4", "Pretrained.block_size = 4"], []),
        pytest.param(
            *(sdar_moe_checkpoint, range(16, 20), 264),
            *(["Sampler.block_length = 4", "Pretrained.block_size = 4"], []),
            marks=pytest.mark.thorough,
        ),
        (
            diffusion_gemma_checkpoint,
            range(1, 5),
            22,
            ["Sampler.block_length = 4", "EntropyBoundRenoising.steps = 3", "Selector.k = 2"],
            ["sampler=EntropyBoundRenoising"],
        ),
    ],
)
def test_families_run_there_as_here(
    make: Any, digits: range, vocabulary: int, sets: list[str], uses: list[str], tmp_path: Path
) -> None:
    make(tmp_path)
    path = f"Pretrained.path = {str(tmp_path)!r}"
    compare(tmp_path / "run", "egspo_sa", uses, path, only(digits, vocabulary), *sets)


@pytest.mark.thorough
def test_adapters_and_micro_batches(tmp_path: Path) -> None:
    compare(tmp_path, "egspo_sa", [], "Pretrained.lora_rank = 4", "Trainer.micro_batch_tokens = 64")


@pytest.mark.thorough
def test_a_run_is_resumed_there(tmp_path: Path) -> None:
    for updates in (1, 2):
        run = new_run(tmp_path, "meta", sets=[f"Trainer.updates = {updates}"])
        with other_device():
            result = run.run()
    assert result.updates == 2
    assert [name for name in os.listdir(tmp_path / "checkpoints") if not name.startswith(".")] != []


def test_pre_training_there_and_here(tmp_path: Path) -> None:
    losses = []
    for device in ("meta", "cpu"):
        built: Any = tiny(f"MaskedDiffusion.device = {device!r}", "MaskedDiffusion.steps = 2").build()
        torch.manual_seed(0)
        policy = built.policy.load()
        with context(device):
            built.policy = Loaded(policy, device)
            run = PretrainRun(built, tmp_path / device, "tiny", RunObserver())
            losses.append(run.run(run.start()).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_environment_there_and_here() -> None:
    policy, found = tiny_policy(characters="1234_:"), {}
    for device in ("cpu", "meta"):
        with context(device):
            Loaded(policy, device)
            env = DenoisingEnv(Sudoku4x4(4, 8, num_train=8), policy, 4, batch_size=3)
            actor = SamplerPolicy(LowConfidence(4, 2), policy)
            end = env.rollout(3, actor, break_when_any_done=False, break_when_all_done=True)
            found[device] = end["next", "completion_ids"].cpu()
    assert torch.equal(found["cpu"], found["meta"])


def test_tensors_of_two_devices_do_not_mix() -> None:
    with other_device() as device:
        here, there = torch.arange(3.0), torch.arange(3.0, device=device)
        assert isinstance(there + 1, Elsewhere)
        assert (there * torch.tensor(2.0)).tolist() == [0, 2, 4]  # a scalar may be anywhere
        assert there[torch.tensor([2, 0])].tolist() == [2, 0]  # and an index
        assert there[[1]].tolist() == [1]
        assert torch.equal(there.cpu(), here)
        assert type(there.cpu()) is torch.Tensor
        for mixed in (lambda: here + there, lambda: torch.cat([here, there]), lambda: torch.where(here > 1, there, 0)):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(RuntimeError, match="indices"):
            here[there.long()]
        with pytest.raises(TypeError, match="cpu"):
            there.numpy()
