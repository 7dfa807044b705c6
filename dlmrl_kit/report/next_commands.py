"""Commands to try after a run, made of the run's own recipe: each changes nothing but what its comment says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.results import PretrainResult, RunResult
from dlmrl_kit.core.run_folder import RECIPE
from dlmrl_kit.experiments.difference import filling
from dlmrl_kit.loggers.metrics_csv import FILE as METRICS
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.recipe.names import refs
from dlmrl_kit.recipe.resolve import Block, Bound

TRAINING = "egspo_sa"
"""The recipe that trains what was pre-trained."""

_CARRIED = ("task", "sampler")
"""The slots of a pre-training recipe whose fillings and settings training goes on with."""

_LENGTH = ".completion_length"

_LIST = "dlmrl list  # all components and recipes"


def commands_after_training(result: RunResult) -> list[str]:
    """Returns commands that lead on from a training run: evaluate it, change one thing, look something up."""
    folder = shlex.quote(str(result.folder))
    recipe = _stored(result.folder)
    trusted = " --allow-imports" if recipe is not None and recipe.imports else ""
    found = [f"dlmrl eval {folder}{trusted} --temperature 1 --samples 8  # pass@k, with sampled completions"]
    if (result.folder / METRICS).is_file():
        found.append(f"dlmrl plot {folder}  # all figures of the run, as PNG, PDF and SVG")
    if recipe is None:
        return [*found, _LIST]
    found += [f"dlmrl train {recipe.on_command_line}{trusted} {change}" for change in one_change(recipe)]
    return [*found, f"dlmrl show {_filling(recipe, 'selector').cls.__name__}  # what it does, and its paper", _LIST]


def one_change(recipe: Recipe) -> Iterator[str]:
    """Yields options that change one thing of a training recipe: another choice of as many steps, or the seed."""
    block = _filling(recipe, "selector")
    name, k = block.cls.__name__, block.parameters.get("k")
    other = "EntropyTopK" if name == "UniformSteps" else "UniformSteps"
    if k is not None:
        yield f"--use selector={other} --set {other}.k={k.text}  # as many steps, chosen in another way"
    elif name == "AllSteps":
        yield f"--use selector={other}  # some steps only"
    seed = recipe.bindings.get("Trainer.seed")
    if seed is not None and isinstance(seed.value, int):
        yield f"--seed {seed.value + 1}  # the same with another seed"


def commands_after_pretraining(result: PretrainResult) -> list[str]:
    """Returns commands that lead on from a pre-training run: evaluate the model, train it on the same task."""
    recipe = _stored(result.folder)
    trusted = " --allow-imports" if recipe is not None and recipe.imports else ""
    found = [f"dlmrl eval {shlex.quote(str(result.model))}{trusted}  # accuracy with other decoding settings"]
    options = None if recipe is None else training_options(recipe, result.model)
    if options is not None:
        command = shlex.join(["dlmrl", "train", TRAINING, *options])
        found.append(f"{command}  # reinforcement learning from here, on the same task")
    return found


def training_options(pretraining: Recipe, model: Path) -> list[str] | None:
    """Returns the options by which ``TRAINING`` trains a pre-trained model on the task of its pre-training.

    Returns:
        ``--use`` and ``--set`` for the policy's path, the task, and the settings of the sampler that the pre-training
        recipe has; None where that recipe cannot be made.
    """
    own = {bound.key: bound for slot in _CARRIED for block in _below(pretraining, slot) for bound in _settings(block)}
    of_task = {bound.key for block in _below(pretraining, "task") for bound in _settings(block)}
    sets = {"Pretrained.path": json.dumps(str(model))}
    sets |= {key: str(bound.text) for key, bound in own.items() if not bound.is_default}
    try:
        plain = load_recipe(TRAINING)
        uses = [f for f in (filling(pretraining, slot) for slot in _CARRIED) if f not in _fillings(plain)]
        found = load_recipe(TRAINING, uses=uses, sets=_as_options(sets)).bindings
        # What the training recipe sets in place of a default must not stay where the task depends on it.
        for key, bound in own.items():
            if key in found and found[key].text != bound.text and (key in of_task or key.endswith(_LENGTH)):
                sets[key] = str(bound.text)
        # What the training recipe says, too, need not be said.
        sets = {k: text for k, text in sets.items() if k not in plain.bindings or plain.bindings[k].text != text}
        load_recipe(TRAINING, uses=uses, sets=_as_options(sets))
    except UserError:
        return None
    options = [("--use", use) for use in uses] + [("--set", text) for text in _as_options(sets)]
    return [part for option in options for part in option]


def _as_options(sets: Mapping[str, str]) -> list[str]:
    return [f"{key}={text}" for key, text in sets.items()]


def _fillings(recipe: Recipe) -> list[str]:
    return [filling(recipe, slot) for slot in _CARRIED]


def _settings(block: Block) -> list[Bound]:
    return [bound for bound in block.parameters.values() if bound.text is not None]


def _stored(folder: Path) -> Recipe | None:
    """Loads the recipe of a run that has just ended, whose imports were allowed; None if it is not there any more."""
    try:
        return load_recipe(folder / RECIPE, allow_imports=True)
    except UserError:
        return None


def _filling(recipe: Recipe, slot: str) -> Block:
    """Returns the component in a slot that holds one."""
    return next(iter(_below(recipe, slot)))


def _below(recipe: Recipe, slot: str) -> list[Block]:
    """Returns the component in a slot, and all components that it refers to."""
    blocks = {(block.scope, block.gin_name): block for block in recipe.blocks}
    todo = [(ref.scope, ref.name) for ref in refs(recipe.blocks[0].parameters[slot].value)]
    found: dict[tuple[str, str], Block] = {}
    while todo:
        node = todo.pop(0)
        if node not in found:
            block = found[node] = blocks[node]
            held = [ref for bound in block.parameters.values() for ref in refs(bound.value)]
            todo += [(ref.scope or block.scope, ref.name) for ref in held]
    return list(found.values())
