"""Starts training and pre-training: loads the policy onto its device and builds its optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LRScheduler

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.bases import check_kinds
from dlmrl_kit.algorithm.dataflow import Plan, check_groups, make_plan
from dlmrl_kit.algorithm.elsewhere import check_collector
from dlmrl_kit.core.blame import named
from dlmrl_kit.core.component import PREFIX, Component, own_parameters, trained
from dlmrl_kit.core.errors import CheckpointError, ComponentError, RecipeError
from dlmrl_kit.core.finite import require_finite
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.seeding import derive_seed
from dlmrl_kit.policies.base import PolicySource, check_checkpointing
from dlmrl_kit.policies.sharding import Parts, together
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.policies.weight_files import tensor_types
from dlmrl_kit.rollout.services import check_prompts, require_examples
from dlmrl_kit.samplers.settings import check_cache
from dlmrl_kit.trainers.base import OptimiserSettings
from dlmrl_kit.training.activation_memory import recompute_as_needed
from dlmrl_kit.training.best_model import check_validation
from dlmrl_kit.training.optimiser import build_optimiser
from dlmrl_kit.training.sharded_memory import parts_of

COMPONENTS = "components.safetensors"
"""File in a model folder with the parameters that components trained beside the policy."""


class Started(NamedTuple):
    """What ``Update`` needs besides the algorithm, in the order of its arguments."""

    plan: Plan
    policy: TransformersPolicy
    optimiser: torch.optim.Optimizer
    scheduler: LRScheduler


def start_training(
    algorithm: Algorithm, processes: Processes = ALONE, say: Callable[[str], None] = lambda line: None
) -> Started:
    """Plans an algorithm and loads its policy; freezes the reference, recomputes activations, compiles or shards
    as the algorithm says.

    Args:
        algorithm: the components.
        processes: that train together; they start with the weights of the first one.
        say: is called with each line on what was left open and is chosen here.

    Raises:
        UserError: the components do not fit together, or the policy, device, cache or compiler cannot be used here.
    """
    given = {"task": algorithm.task, "policy": algorithm.policy, "trainer": algorithm.trainer}
    check_kinds({**given, "collector": algorithm.collector})
    check_groups(algorithm)
    plan, trainer = make_plan(algorithm), algorithm.trainer
    check_collector(algorithm, plan)
    require_examples(algorithm.task, "train", "heldout")
    check_validation(algorithm.task, trainer)
    policy, optimiser, scheduler = start_policy(
        algorithm.policy, trainer, trainer.optimiser_steps, algorithm.components
    )
    check_prompts(algorithm.task, "train", policy, algorithm.sampler.completion_length)
    check_cache(algorithm.sampler, policy, algorithm.cache)
    processes.copy_first(trained(policy, algorithm.components).values())
    if plan.needs_reference:
        policy.freeze_reference()
    if trainer.sharding != "none":
        _check_sharding(algorithm, policy)
    check_checkpointing(algorithm.policy, algorithm.policy.gradient_checkpointing)
    if algorithm.policy.gradient_checkpointing == "auto":
        say(recompute_as_needed(algorithm, plan, policy, processes).in_words())
    if trainer.sharding != "none" and processes.world > 1:
        _shard(policy, optimiser, processes, parts_of(algorithm, plan, policy, processes))
    if trainer.compile is not None:
        policy.compile_blocks(trainer.compile)
    return Started(plan, policy, optimiser, scheduler)


def _check_sharding(algorithm: Algorithm, policy: TransformersPolicy) -> None:
    """Refuses what does not go with sharded weights, also in one process, where nothing is sharded.

    Raises:
        UserError: a cache, compiled blocks, or weights that cannot be sharded.
    """
    policy.check_sharding()
    if algorithm.cache is not None:
        raise RecipeError(
            "Trainer.sharding = 'full' is not for a cache, which calls parts of blocks, whose weights are put together "
            "for whole blocks alone; take no cache, or set sharding to 'none'"
        )
    if algorithm.trainer.compile is not None:
        raise RecipeError(
            "Trainer.sharding = 'full' is not for Trainer.compile, which would compile the exchange of weights between "
            "processes with the blocks; set one of them to its default"
        )


def _shard(policy: TransformersPolicy, optimiser: torch.optim.Optimizer, processes: Processes, parts: Parts) -> None:
    """Shards the policy, and hands its new parameters to the optimiser."""
    before = policy.trainable()
    policy.shard(processes, parts)
    after = dict(policy.trainable())
    new = {id(parameter): after[name] for name, parameter in before}
    for group in optimiser.param_groups:
        group["params"] = [new.get(id(parameter), parameter) for parameter in group["params"]]
        # Operations on many tensors at once take none of a group that mixes whole and sharded ones.
        group["foreach"] = False


def whole_copy(policy: TransformersPolicy, source: PolicySource, seed: int, processes: Processes) -> TransformersPolicy:
    """Returns, in the first process, a policy on the CPU with the weights of a sharded one; every process calls this.

    Args:
        policy: the sharded one; the other processes get it back.
        source: that it was loaded from.
        seed: of the run.
    """
    whole = policy
    if processes.is_first:
        torch.manual_seed(derive_seed(seed, "init"))
        whole = source.load()
        to_full_precision(whole)
    own = dict(whole.trainable())
    with torch.no_grad():
        for name, parameter in policy.trainable():
            value = together(parameter)
            if processes.is_first:
                own[name].copy_(value)
    return whole


def start_policy(
    source: PolicySource, settings: OptimiserSettings, total_steps: int, components: Iterable[Component] = ()
) -> tuple[TransformersPolicy, torch.optim.Optimizer, LRScheduler]:
    """Loads the policy onto its device, attaches the components to it, and builds optimiser and schedule.

    Trained weights are at least float32 even if the checkpoint's are not, and new weights depend on the seed alone.

    Args:
        source: loads the policy.
        settings: seed, device and the optimiser's settings.
        total_steps: optimiser steps of the whole run.
        components: may train modules of their own, beside the policy.

    Raises:
        UserError: there is no such checkpoint or device, or a component trains modules for another run already.
    """
    torch.manual_seed(derive_seed(settings.seed, "init"))
    policy = source.load()
    if not isinstance(policy, TransformersPolicy):
        raise ComponentError(
            f"{named(type(source))}: load returned a {type(policy).__name__}; it should be a TransformersPolicy"
        )
    policy.to(find_device(settings.device))
    to_full_precision(policy)
    components = list(components)
    _refuse_trained(components)
    attach_components(components, policy)
    usual = [component for component in components if component.learning_rate is None]
    others = [
        (list(own_parameters([component]).values()), component.learning_rate)
        for component in components
        if component.learning_rate is not None
    ]
    optimiser, scheduler = build_optimiser(
        list(trained(policy, usual).values()),
        learning_rate=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule,
        warmup_steps=settings.warmup_steps,
        total_steps=total_steps,
        others=others,
    )
    return policy, optimiser, scheduler


def _refuse_trained(components: Iterable[Component]) -> None:
    """Refuses components whose modules another run has made: two runs would train the same parameters."""
    for component in components:
        if own_parameters([component]):
            raise RecipeError(
                f"{type(component).__name__} holds modules that another run trains; give this run one of its own, made "
                "by the constructor or by core.component.rebuilt"
            )


def attach_components(components: Iterable[Component], policy: Policy) -> None:
    """Lets components create the modules that they train, on the policy's device."""
    for component in components:
        component.attach(policy)
        component.to(policy.device)


def save_components(folder: Path, components: Iterable[Component]) -> None:
    """Writes the parameters that components trained to ``components.safetensors``; no file if there are none."""
    own = own_parameters(components)
    if own:
        save_file({name: p.detach().cpu().contiguous() for name, p in own.items()}, folder / COMPONENTS)


def load_components(folder: Path, components: Iterable[Component]) -> None:
    """Loads the parameters of attached components from a model folder, which may hold those of other components, too.

    Raises:
        CheckpointError: the folder does not hold them, or holds them in other shapes.
        NotFiniteError: they are NaN or infinite.
    """
    own = own_parameters(components)
    if not own:
        return
    names = ", ".join(dict.fromkeys(name.removeprefix(PREFIX).split(".")[0] for name in own))
    advice = (
        "evaluate the run that trained them, or decode with a sampler that needs none (--use sampler=LowConfidence)"
    )
    path = folder / COMPONENTS
    if not path.is_file():
        raise CheckpointError(f"{names} has trained modules of its own, but {path} does not exist: {advice}")
    try:
        tensor_types(path)
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    require_finite(((name, found[name]) for name in own if name in found), str(path))
    for name, parameter in own.items():
        if name not in found or found[name].shape != parameter.shape:
            has = f"of shape {list(found[name].shape)}" if name in found else "not there"
            raise CheckpointError(
                f"{path} does not fit {names}: {name} should have shape {list(parameter.shape)}, but is {has}; {advice}"
            )
        with torch.no_grad():
            parameter.copy_(found[name])


def to_full_precision(policy: Policy) -> None:
    """Makes trained weights float32 if they are in half precision, in which small updates would be rounded away."""
    for _, p in policy.trainable():
        if p.dtype in (torch.bfloat16, torch.float16):
            p.data = p.data.float()


def find_device(name: str) -> torch.device:
    """Returns the torch device of a ``device`` setting; ``auto`` is a GPU if there is one.

    Raises:
        RecipeError: the device cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RecipeError(f"device = {name!r} cannot be used here: {' '.join(str(error).split())}") from error
