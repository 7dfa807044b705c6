"""Tiny recipes on a tiny trained denoiser, runs that are not started, and what a finished run leaves."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Algorithm, Swaps
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.corrections.apply import apply_correction
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.policies.saving import save_transformers
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.pretrainers.masked_diffusion import MaskedDiffusion
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.tasks.base import BaseTask
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.training.checkpoint import checkpoints
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.old_check import check_old
from dlmrl_kit.training.tensor_files import read
from dlmrl_kit.training.update import Rollout, Update

TINY = {
    "Sampler.tokens_per_step": "4",
    "Trainer.updates": "4",
    "Trainer.prompts_per_update": "2",
    "Trainer.group_size": "3",
    "Trainer.minibatches": "2",
    "Trainer.learning_rate": "0.01",
    "Trainer.eval_every": "2",
    "Trainer.eval_size": "4",
    "Trainer.traced_examples": "0",  # tests/training/test_trajectories.py has runs that trace
    "Trainer.checkpoint_every": "1",
    "Sudoku4x4.num_train": "7",
    "Sudoku4x4.num_heldout": "5",
    "Sudoku4x4.cells_weight": "0.7",
}
"""Four updates of two prompts with three samples each; 7 examples, so that passes end within an update."""
NEEDED = {
    "vrpo": {"Trainer.group_size": "2"},
    "sampler=Continuous": {"Continuous.sampler": "@LowConfidence()", "Continuous.states": "4"},
    "sampler=Speculative": {"Speculative.sampler": "@LowConfidence()"},
}
"""What recipes and swaps need besides: how many samples a sampler makes together, or which one it is for."""

NO_COUNT = {
    *(f"sampler={name}" for name in ("BernoulliOrder", "ConfidenceThreshold", "EntropyBoundRenoising", "TokenEditing"))
}
NO_COUNT |= {"dipo", "dultra", "learned_unmasking"}
"""Samplers, and recipes with them, that have no setting of how many tokens a step commits."""


@functools.cache
def model_path() -> str:
    """A checkpoint of 16 hidden units and one layer that writes mostly digits, and other ones in every state."""
    torch.manual_seed(0)
    policy = CharacterLlama(characters="1234_:", hidden_size=16, num_layers=1, num_heads=2).load()
    task = Sudoku4x4(4, 8, num_pretrain=64)
    examples = [task.example("pretrain", index) for index in range(64)]
    prompt = policy.encode([example.prompt for example in examples])
    answers = policy.encode([example.answer for example in examples])["prompt_ids"]
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.02)
    generator, place = torch.Generator().manual_seed(0), torch.arange(64) / 64
    for step in range(80):
        spread = (torch.rand(1, generator=generator) + place) % 1
        given = (prompt["prompt_ids"], prompt["prompt_mask"], answers, sample_seeds(64, "cpu", step), spread)
        loss = MaskedDiffusion().objective(policy, *given)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    generator.manual_seed(1)
    with torch.no_grad():  # so short a training leaves hardly any dependence on the state
        for name, p in policy.trainable():
            if "layers" in name and p.dim() == 2:
                p.add_(0.6 * torch.randn(p.shape, generator=generator))
        policy.model.model.norm.weight.mul_(2.0)
    folder = tempfile.mkdtemp(prefix="dlmrl-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_transformers(policy, folder)
    return folder


def recipe(name: str = "egspo_sa", sets: Iterable[str] = (), uses: Iterable[str] = ()) -> Recipe:
    """A recipe of the kit, tiny, on the tiny checkpoint; ``sets`` win over the tiny settings."""
    sets, uses = list(sets), list(uses)
    given = {binding.split("=")[0].strip() for binding in sets}
    small = dict(TINY)
    for part in (name, *uses):
        small |= NEEDED.get(part, {})
    if not any(use.startswith("policy=") for use in uses):
        small["Pretrained.path"] = repr(model_path())
    if NO_COUNT & {*uses, name}:
        del small["Sampler.tokens_per_step"]
    if any(use.startswith("task=") for use in uses):
        small = {key: value for key, value in small.items() if not key.startswith("Sudoku4x4.")}
    if not any(use.startswith("logger=") for use in uses):
        uses.append("logger=MetricsCSV")
    return load_recipe(name, sets=[*(f"{k} = {v}" for k, v in small.items() if k not in given), *sets], uses=uses)


def build(name: str = "egspo_sa", sets: Iterable[str] = (), uses: Iterable[str] = ()) -> Any:
    """The ``Algorithm`` of a tiny recipe."""
    algorithm = recipe(name, sets, uses).build()
    assert isinstance(algorithm, Algorithm)
    return algorithm


def new_run(
    folder: Path,
    name: str = "egspo_sa",
    sets: Iterable[str] = (),
    uses: Iterable[str] = (),
    swaps: Swaps | None = None,
    task: BaseTask | None = None,
    processes: Processes = ALONE,
) -> Run:
    """A run of a tiny recipe that was not started; components that no recipe can name are given as objects."""
    built = build(name, sets, uses)
    fillings = built.fillings | (swaps or Swaps())
    given = {"trainer": built.trainer, "collector": built.collector, "logger": built.loggers}
    algorithm = Algorithm(task or built.task, built.policy, **given, **fillings)
    return Run(algorithm, folder, name, RunObserver(), processes)


class Killed(BaseException):
    """Ends a run as a kill would: nothing catches it."""


def stopped(start: Callable[[], object], at: int, reason: type[BaseException] = Killed) -> None:
    """Starts a run, or goes on with one, that an exception ends right before update ``at``."""
    original = Run.step

    def step(self: Run, number: int) -> None:
        if number == at:
            raise reason
        original(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "step", step)
        with pytest.raises(reason):
            start()


def collect(run: Run, number: int = 0) -> Rollout:
    """The rollout of an update without what stays fixed during it, though that could be known already."""
    update = run.update
    plan = replace(update.plan, likelihood_early=False)
    return Update(run.algorithm, plan, run.policy, update.optimiser, update.scheduler).roll_out(number)


def prepared(update: Update, trajectory: TensorDictBase) -> TensorDictBase:
    """The trajectory with what stays fixed during an update, without the check before the first one."""
    update.log_probs.add_fixed(trajectory, update.trainer.inner_iterations)
    return trajectory if update.algorithm.correction is None else apply_correction(trajectory)


def old_difference(update: Update, trajectory: TensorDictBase) -> float:
    """The check before the first update: by how much old and new log-probabilities differ."""
    return check_old(trajectory, update.algorithm, update.cache, update.log_probs)


def rollout(run: Run, update: int = 0) -> TensorDictBase:
    """The rollout of an update with random advantages: the tiny denoiser is seldom right, so many real ones are 0."""
    trajectory = collect(run, update).kept
    weight = trajectory["selected", "weight"]
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(update))
    return trajectory.set(("selected", "advantage"), torch.where(weight > 0, noise, 0.0))


def weights(policy: Any) -> Tensor:
    """All trained weights, flat."""
    return torch.cat([p.detach().reshape(-1) for _, p in policy.trainable()])


def sgd(run: Run, rate: float = 1.0) -> Update:
    """The run's update with plain SGD: its steps are the gradients, not their signs as Adam's first ones."""
    optimiser = torch.optim.SGD([p for _, p in run.policy.trainable()], lr=rate)
    return Update(
        run.algorithm, run.update.plan, run.policy, optimiser, torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)
    )


def outcome(folder: Path) -> dict[str, Any]:
    """All that a finished run must leave whether or not it was interrupted; bytes, texts and rows, no times."""
    last = checkpoints(folder)[-1][1]
    result = json.loads((folder / "result.json").read_text())
    del result["seconds"]
    files = {"model": folder / "model" / "model.safetensors"}
    files |= {path.name: path for path in last.iterdir() if path.name != "checksums.json"}
    if (folder / "evaluations.json").exists():
        files["evaluations"] = folder / "evaluations.json"
    return {
        "result": result,
        "metrics": metric_rows(folder),
        "recipe": load_recipe(folder / "recipe.gin").text(header=False),
        "checkpoints": [done for done, _ in checkpoints(folder)],
        **{name: _content(path) for name, path in files.items()},
    }


def _content(path: Path) -> Any:
    """The bytes of a file; of a folder with parts of tensors, which any process may have written, those of tensors."""
    if path.is_file():
        return path.read_bytes()
    return {key: value.numpy().tobytes() for key, value in read(path.parent, path.name, lambda *_: None).items()}


def metric_rows(folder: Path) -> list[str]:
    """Rows of ``metrics.csv`` but for the times, each once: an evaluation may be logged again just after a kill."""
    path = folder / "metrics.csv"
    lines = path.read_text().splitlines() if path.exists() else []
    times = ("seconds", "cpu_seconds", "tokens_per_second")
    return list(dict.fromkeys(line for line in lines if line.split(",")[1] not in times))


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders that a run folder should not hold once it is finished."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


def perturb(policy: TransformersPolicy, seed: int = 0, scale: float = 0.03) -> None:
    """Moves the weights, as updates would: ratios leave 1 and the KL 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in policy.trainable():
            p.add_(scale * torch.randn(p.shape, generator=generator))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
