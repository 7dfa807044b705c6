"""``dlmrl train RECIPE --dry-run``: what a recipe costs on its checkpoint, and one real update on a small random model.

Sizes come from ``config.json`` and the recipe; no weights are read. The small model has the architecture of the
checkpoint (kinds of layers, blocks, masks, ties), two narrow layers and random weights; the recipe's own components run
on it, with one prompt, short completions, and advantages drawn at random where all rewards are the same.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import plan
from dlmrl_kit.core.errors import RecipeError, TrainingError, UserError
from dlmrl_kit.core.keys import SELECTED_ADVANTAGE, SELECTED_WEIGHT, TOKEN_ADVANTAGE
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.results import Observer
from dlmrl_kit.policies.adapter import lora_config
from dlmrl_kit.policies.checkpoint_files import load_tokenizer
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.skeleton import SMALL, skeleton, small_policy, wrapped
from dlmrl_kit.recipe.load import Recipe
from dlmrl_kit.rollout.services import prompt_tokens
from dlmrl_kit.training.estimate import computed_positions, describe, forwards, memory
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.shapes import find_config, local_folder

PUZZLES = 8
"""Puzzles of each split that are looked at."""
ROWS = 4
"""Completions of the small update, at most."""
LENGTH = 32
"""Their tokens: as many whole blocks as fit, two at least where the recipe has so many."""
SMALL_RANK = 8
"""Rank of its adapter, at most."""
CHARACTERS_PER_TOKEN = 3.5
"""Of prompts whose tokenizer is not at hand."""


class ScaledDown:
    """A policy component that loads the small random model in place of a checkpoint.

    Args:
        source: the recipe's ``Pretrained``.
        config: the checkpoint's ``config.json``.
    """

    def __init__(self, source: Any, config: dict[str, Any]) -> None:
        self.source, self.config = source, config
        self.mask_id = None

    def load(self) -> Policy:
        """The small model, with an adapter and gradient checkpointing as the recipe has them."""
        policy = small_policy(self.config, _options(self.source))
        return _prepared(policy, self.source, min(self.source.lora_rank, SMALL_RANK))


class FewPuzzles:
    """A task with the first puzzles of each split alone, so that not all of them must be generated.

    Args:
        task: the recipe's.
    """

    def __init__(self, task: Any) -> None:
        self.task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["task"], name)

    def size(self, split: str) -> int:
        """Number of puzzles of a split, at most ``PUZZLES``."""
        return min(int(self.task.size(split)), PUZZLES)


def dry_run(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Reports what an update of a recipe costs, then runs one on a small model.

    Args:
        recipe: for training.
        say: takes the report line by line.

    Raises:
        UserError: a broken recipe, no configuration of its checkpoint, or an update that fails.
    """
    algorithm: Any = recipe.build()
    if not isinstance(algorithm, Algorithm):
        raise RecipeError(f"{recipe.name} is a recipe for {recipe.root}: only training recipes have a dry run")
    path = getattr(algorithm.policy, "path", None)
    if path is None:
        policy, small = algorithm.policy.load(), algorithm.policy
        say(f"model        {type(algorithm.policy).__name__}, built as it is")
    else:
        config, where = find_config(path)
        policy, small = _at_full_size(algorithm.policy, config), ScaledDown(algorithm.policy, config)
        say(f"model        {path}")
        say(f"sizes from   {where}")
    algorithm.sampler.attach(policy)
    length, how = _prompt_length(algorithm, path, policy)
    for line in costs(algorithm, policy, length, how):
        say(line)
    say(f"small update {small_update(algorithm, small, recipe.name)}")


def costs(algorithm: Algorithm, policy: Policy, prompt_length: int, how: str) -> list[str]:
    """The lines on parameters, memory and forwards."""
    total = sum(p.numel() for p in policy.model.parameters())
    trained = sum(p.numel() for _, p in policy.trainable())
    base = total - trained if policy.adapter is not None else total
    need, count, trainer = memory(algorithm, policy, prompt_length), forwards(algorithm), algorithm.trainer
    part = computed_positions(algorithm, prompt_length)
    cached = "" if part is None else f" (computing {part:.0%} of the positions)"
    states = [f"{count.samples} completions", f"rollout {count.rollout:,}{cached}"]
    extra = (("correction", count.correction), ("old", count.old), ("reference", count.reference))
    states += [f"{name} {number:,}" for name, number in extra if number]
    states.append(f"update {count.update:,} forward and backward")
    lines = [
        f"parameters   {base:,}, trainable {trained:,}"
        + (f" (LoRA of rank {getattr(algorithm.policy, 'lora_rank', 0)})" if policy.adapter is not None else ""),
        f"tokens       {prompt_length} of the prompt ({how}) and {algorithm.sampler.completion_length} of the "
        f"completion, in at most {algorithm.sampler.max_steps} denoising steps",
        "memory       estimates, for a GPU, computing in " + trainer.precision,
        f"  weights    {describe(need.weights)}",
        f"  optimiser  {describe(need.optimiser)} with gradients",
        f"  rollout    {describe(need.rollout)}, {trainer.rollout_batch_size or count.samples} completions at once",
        f"  update     {describe(need.update)}, {trainer.micro_batch_size} samples at once"
        + (", gradient checkpointing" if getattr(algorithm.policy, "gradient_checkpointing", False) else ""),
        f"  peak       {describe(need.peak)}",
        "forwards     of an update, at most: " + ", ".join(states),
    ]
    if count.restarts:
        lines.append(
            f"             and the completions that {', '.join(count.restarts)} samples from states on the way"
        )
    return lines


def small_update(algorithm: Algorithm, source: Any, name: str) -> str:
    """Rolls out and takes one optimiser step with the recipe's components on a small policy; what happened, in words.

    Raises:
        TrainingError: old and new log-probabilities disagree, nothing changes, or a number is not finite.
    """
    small = copy.copy(algorithm)
    small.policy, small.task, small.loggers = source, FewPuzzles(algorithm.task), []
    small.sampler, small.trainer = _short(algorithm.sampler, source), copy.copy(algorithm.trainer)
    small.plan = plan(small)
    group = algorithm.trainer.group_size
    group = group if algorithm.sampler.group_size or group <= ROWS else ROWS
    changes = {"prompts_per_update": 1, "group_size": group, "minibatches": 1, "updates": 1, "device": "cpu"}
    for key, value in {**changes, "precision": "float32", "compile": None}.items():
        setattr(small.trainer, key, value)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(small, Path(folder), name, Observer())
        trajectory = run.collect(0).kept
        if len(trajectory) == 0:
            return "rolled out, and the recipe's filters kept nothing of it: a random model has no success"
        _credited(trajectory)
        before = {key: p.detach().clone() for key, p in run.parameters.items()}
        largest = run.updater.check_old(run.updater.prepare(trajectory))
        metrics = run.updater.update(trajectory, 0)
    changed = sum(not torch.equal(before[key], p) for key, p in run.parameters.items())
    if metrics["skipped"] or not all(math.isfinite(value) for value in metrics.values()) or not changed:
        raise TrainingError(f"the update of the small model failed: {metrics}, {changed} tensors changed")
    count = sum(p.numel() for p in run.policy.model.parameters())
    return (
        f"worked: a random model of {count:,} parameters, {group} completions, loss {metrics['loss']:.3g}, old and new "
        f"log-probabilities agree to {largest:.1e}, {changed} of {len(before)} tensors changed, "
        f"{time.perf_counter() - started:.1f} s"
    )


def _short(sampler: Any, source: Any) -> Any:
    """A copy of the sampler with short completions, and short blocks where the small model has short canvases."""
    twin = copy.copy(sampler)
    canvas = SMALL["canvas_length"] if isinstance(source, ScaledDown) and "canvas_length" in source.config else None
    whole = sampler.block_length >= sampler.completion_length
    block = canvas or (min(sampler.completion_length, LENGTH) if whole else sampler.block_length)
    blocks = -(-sampler.completion_length // sampler.block_length)
    twin.block_length = block
    twin.completion_length = min(blocks, max(LENGTH // block, 2)) * block
    if not whole and canvas is None:
        twin.completion_length = min(twin.completion_length, sampler.completion_length)
    return twin


def _credited(trajectory: Any) -> None:
    """Random advantages where there are none, so that gradients flow."""
    generator = torch.Generator().manual_seed(0)
    for key in (SELECTED_ADVANTAGE, "advantage", TOKEN_ADVANTAGE):
        found = trajectory.get(key, None)
        if found is not None and not bool((found != 0).any()):
            noise = torch.randn(found.shape, generator=generator).to(found)
            if key == SELECTED_ADVANTAGE:
                noise = noise * (trajectory[SELECTED_WEIGHT] > 0)
            trajectory.set(key, noise)


def _options(source: Any) -> LoadOptions:
    return LoadOptions(
        block_size=getattr(source, "block_size", None), chat_template=getattr(source, "chat_template", None)
    )


def _prepared(policy: Policy, source: Any, rank: int) -> Policy:
    if rank:
        policy.add_adapter(lora_config(policy.model, rank, source.lora_alpha))
    if source.gradient_checkpointing and policy.device.type != "meta":
        from dlmrl_kit.policies.recompute import recompute_blocks

        recompute_blocks(policy.model)
    return policy


def _at_full_size(source: Any, config: dict[str, Any]) -> Policy:
    """The checkpoint's policy on the meta device: sizes and precisions, no numbers."""
    options = _options(source)
    name = source.dtype if source.dtype != "auto" else config.get("torch_dtype") or config.get("dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"config.json names an unknown precision: {name!r}")
    with torch.device("meta"):
        model = skeleton(config, options).to(dtype)
        return _prepared(wrapped(model, config, options), source, source.lora_rank)


def _prompt_length(algorithm: Algorithm, path: str | None, policy: Policy) -> tuple[int, str]:
    """Tokens of the longest of a few prompts, and in words how they were counted."""
    task: Any = algorithm.task
    prompts = [task.example("train", index).prompt for index in range(min(PUZZLES, task.size("train")))]
    folder = None if path is None else local_folder(path)
    if folder is not None:
        policy = copy.copy(policy)
        policy.tokenizer = load_tokenizer(str(folder), {})
    length = max(len(prompt_tokens(policy, prompt)) for prompt in prompts)
    if path is None or folder is not None:
        return length, "the longest of a few"
    return math.ceil(length / CHARACTERS_PER_TOKEN), f"guessed: {CHARACTERS_PER_TOKEN} characters per token"
