"""What the tests of training share: a tiny trained denoiser, tiny recipes, what a run leaves, processes that die."""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor

# not only in the functions: the fork server imports this module once for all processes
import dlmrl_kit.pretraining.loop
import dlmrl_kit.training.loop
from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.results import Observer
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.pretrainers.masked_diffusion import MaskedDiffusion
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.rollout.services import encode
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.training.checkpoint import checkpoints
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.update import Updater

TESTS = Path(__file__).parent
TINY = {
    "Sampler.tokens_per_step": "4",
    "Trainer.updates": "4",
    "Trainer.prompts_per_update": "2",
    "Trainer.group_size": "3",
    "Trainer.minibatches": "2",
    "Trainer.learning_rate": "0.01",
    "Trainer.eval_every": "2",
    "Trainer.eval_size": "4",
    "Trainer.checkpoint_every": "1",
    "Sudoku4x4.num_train": "7",
    "Sudoku4x4.num_heldout": "5",
    "Sudoku4x4.cells_weight": "0.7",
}
"""Four updates of two prompts with three samples each; 7 puzzles, so that passes end within an update."""
TOGETHER = {
    "d_treerpo": {"Tree.branching": "2", "Trainer.group_size": "4"},
    "vrpo": {"Trainer.group_size": "2"},
    "sampler=Tree": {"Trainer.group_size": "4"},
}
"""Sizes of what makes the samples of a prompt together, recipes and swaps: the sampler says how many."""


@functools.cache
def model_path() -> str:
    """A checkpoint of 16 hidden units and one layer that writes mostly digits, and other ones in every state."""
    torch.manual_seed(0)
    policy = CharacterLlama(characters="1234_:", hidden_size=16, num_layers=1, num_heads=2).load()
    task = Sudoku4x4(4, 8, num_pretrain=64)
    examples = [task.example("pretrain", index) for index in range(64)]
    prompt = encode(policy, [example.prompt for example in examples])
    answers = encode(policy, [example.answer for example in examples])["prompt_ids"]
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        loss = MaskedDiffusion().objective(policy, prompt["prompt_ids"], prompt["prompt_mask"], answers, generator)
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
    policy.save_pretrained(folder)
    return folder


def recipe(name: str = "egspo_sa", sets: Iterable[str] = (), uses: Iterable[str] = ()) -> Recipe:
    """A recipe of the kit, tiny, on the tiny checkpoint; ``sets`` win over the tiny settings."""
    sets, uses = list(sets), list(uses)
    given = {binding.split("=")[0].strip() for binding in sets}
    small = dict(TINY)
    for part in (name, *uses):
        small |= TOGETHER.get(part, {})
    if not any(use.startswith("policy=") for use in uses):
        small["Pretrained.path"] = repr(model_path())
    if {"sampler=ConfidenceThreshold", "sampler=EntropyBoundRenoising"} & {*uses} or name == "dipo":
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


def new_run(folder: Path, name: str = "egspo_sa", sets: Iterable[str] = (), uses: Iterable[str] = ()) -> Run:
    """A run of a tiny recipe that was not started."""
    return Run(build(name, sets, uses), folder, name, Observer())


def rollout(run: Run, update: int = 0) -> TensorDictBase:
    """The rollout of an update with random advantages: the tiny denoiser is seldom right, so many real ones are 0."""
    trajectory = run.collect(update).kept
    weight = trajectory["selected", "weight"]
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(update))
    return trajectory.set(("selected", "advantage"), torch.where(weight > 0, noise, 0.0))


def weights(policy: Any) -> Tensor:
    """All trained weights, flat."""
    return torch.cat([p.detach().reshape(-1) for _, p in policy.trainable()])


def sgd(run: Run, rate: float = 1.0) -> Updater:
    """The run's updater with plain SGD: its steps are the gradients, not their signs as Adam's first ones."""
    optimiser = torch.optim.SGD([p for _, p in run.policy.trainable()], lr=rate)
    return Updater(run.algorithm, run.policy, optimiser, torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0))


def outcome(folder: Path) -> dict[str, Any]:
    """All that a finished run must leave whether or not it was interrupted; bytes, texts and rows, no times."""
    last = checkpoints(folder)[-1][1]
    result = json.loads((folder / "result.json").read_text())
    del result["seconds"]
    files = {"model": folder / "model" / "model.safetensors"}
    files |= {name: last / name for name in ("weights.safetensors", "optimiser.safetensors", "state.json")}
    if (folder / "evaluations.json").exists():
        files["evaluations"] = folder / "evaluations.json"
    return {
        "result": result,
        "metrics": metric_rows(folder),
        "recipe": load_recipe(folder / "recipe.gin").text(header=False),
        "checkpoints": [done for done, _ in checkpoints(folder)],
        **{name: path.read_bytes() for name, path in files.items()},
    }


def metric_rows(folder: Path) -> list[str]:
    """Rows of ``metrics.csv`` but for the times, each once: an evaluation may be logged again just after a kill."""
    path = folder / "metrics.csv"
    lines = path.read_text().splitlines() if path.exists() else []
    return list(dict.fromkeys(line for line in lines if line.split(",")[1] not in ("seconds", "tokens_per_second")))


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders that a run folder should not hold once it is finished."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


# --------------------------------------------------------------------------------- processes that die

PRELOAD = "DLMRL_TESTS_PRELOAD"
WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def writes(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    """Whether an audit event changes files: a rename, a removal, a new folder, opening a file of the run to write."""
    if event == "open":
        path, mode, _ = arguments
        return isinstance(path, str) and path.startswith(folder) and isinstance(mode, str) and mode[0] in "wax"
    return event in WRITES


def die_at(number: int, folder: Path) -> None:
    """This process gets SIGKILL right before its ``number``-th change of a file; 0: never, and the count is written."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if writes(event, arguments, str(folder)):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    if number == 0:
        multiprocessing.util.Finalize(None, lambda: write_atomic(folder.with_name("writes"), str(seen)), exitpriority=9)


def train_file(path: Path, folder: Path, number: int) -> None:
    """Trains a recipe file, or goes on with its run; dies at the ``number``-th change of a file."""
    torch.set_num_threads(1)
    die_at(number, folder)
    try:
        loaded = load_recipe(path)
        if loaded.root == "Pretraining":
            dlmrl_kit.pretraining.loop.pretrain(loaded, folder)
        elif (folder / "recipe.gin").exists():
            dlmrl_kit.training.loop.resume(folder)
        else:
            dlmrl_kit.training.loop.train(loaded, folder)
    except BaseException:
        folder.with_name("traceback").write_text(traceback.format_exc())
        raise


def trained_alone(path: Path, folder: Path) -> int:
    """Trains a recipe file in a process that lives to its end; the number of times it changed a file."""
    child = process(train_file, path, folder, 0)
    child.join()
    failure = folder.with_name("traceback")
    assert child.exitcode == 0, failure.read_text() if failure.exists() else "no traceback"
    return int(folder.with_name("writes").read_text())


@functools.cache
def _processes() -> Any:
    """Processes forked from one that has imported everything: they start in a fraction of a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_helpers"])
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv(PRELOAD, "1")
        forkserver.ensure_running()
    return context


def _preload() -> None:
    """Imports what a run imports, in the process that all others are forked from. No backward pass: it has threads."""
    for name in ("matplotlib.backends.backend_agg", "matplotlib.figure", "peft", "transformers.optimization"):
        importlib.import_module(name)
    CharacterLlama(hidden_size=16, num_layers=1, num_heads=2).load()
    Sudoku4x4(num_train=1).example("train", 0)
    load_recipe("egspo_sa").build()


if PRELOAD in os.environ:
    _preload()


def process(target: Callable[..., None], *arguments: Any) -> Any:
    """A started process; ``kill`` it or ``join`` it."""
    started = _processes().Process(target=target, args=arguments, daemon=True)
    started.start()
    return started


def killed(code: int | None) -> bool:
    """Whether this is the exit code of a process that got SIGKILL."""
    return code == -signal.SIGKILL


def spread(total: int, parts: int) -> Iterator[int]:
    """``parts`` numbers spread evenly over 1 .. total."""
    for index in range(parts):
        yield 1 + index * (total - 1) // max(parts - 1, 1)
