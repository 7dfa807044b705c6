"""``dlmrl train RECIPE --dry-run``: estimates what a recipe costs, and takes one update on a small random model.

Costs follow from ``config.json`` and the recipe; no weights are read. The small model has the architecture of the
checkpoint (kinds of layers, blocks, masks, ties), but only two narrow layers and random weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.policies.checkpoint_files import load_tokenizer
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.recompute import text_blocks
from dlmrl_kit.policies.skeleton import skeleton, wrapped
from dlmrl_kit.policies.text_bounds import beginning, unknown_tokens
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.recipe.load import Recipe
from dlmrl_kit.rollout.services import examples
from dlmrl_kit.rollout.tokens import Tokens
from dlmrl_kit.training.activation_memory import Recomputation
from dlmrl_kit.training.cluster import Cluster, Job
from dlmrl_kit.training.cluster import in_words as planned
from dlmrl_kit.training.estimate import Forwards, computed_positions, describe, evaluated_at_once, forwards, memory
from dlmrl_kit.training.flops import arithmetic, in_words
from dlmrl_kit.training.shapes import find_config, local_folder
from dlmrl_kit.training.small_update import EXAMPLES, ScaledDown, architecture_options, small_update

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS_PER_TOKEN = 3.5
"""For prompts whose tokenizer is not on this machine."""

ONE_GPU = Cluster()

PRECISIONS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The precisions of weights that ``config.json`` may name."""


def dry_run(recipe: Recipe, say: Callable[[str], None], cluster: Cluster = ONE_GPU, plan: bool = False) -> None:
    """Reports what an update of a recipe costs, then takes one on a small model.

    Data sets are not downloaded either: the kit's own few rows stand for them (``BaseTask.sketch``).

    Args:
        recipe: for training.
        say: is called with each line of the report.
        cluster: that the hours are estimated for.
        plan: whether to report the choices that there are on it, too.

    Raises:
        UserError: the recipe is broken, its checkpoint has no configuration, or the update fails.
    """
    algorithm, policy, small = _at_full_size(recipe, say)
    if algorithm.task.sketch() is not algorithm.task:
        say("examples     the kit's own, in the form of the data set, which a dry run does not download")
    length, how = longest_prompt(algorithm, policy)
    job = Job(algorithm, make_plan(algorithm), policy, length, cluster)
    found = recomputation(job)
    for line in costs(job, how, found):
        say(line)
    work = arithmetic(algorithm, job.plan, policy, length, job.recomputed(found))
    for line in in_words(work, algorithm.trainer.updates, cluster.world, cluster.tflops):
        say(line)
    for line in planned(job) if plan else ():
        say(line)
    say(f"small update {small_update(algorithm, small)}")


def job_of(recipe: Recipe, cluster: Cluster) -> Job:
    """Returns what a training recipe asks of a cluster, without weights; raises as ``dry_run``."""
    algorithm, policy, _ = _at_full_size(recipe, lambda line: None)
    return Job(algorithm, make_plan(algorithm), policy, longest_prompt(algorithm, policy)[0], cluster)


def _at_full_size(recipe: Recipe, say: Callable[[str], None]) -> tuple[Algorithm, TransformersPolicy, PolicySource]:
    """Builds a recipe; returns its algorithm, its policy at full size, and what loads a small one like it."""
    algorithm = recipe.build()
    if not isinstance(algorithm, Algorithm):
        raise RecipeError(f"{recipe.name} is a recipe for {recipe.root}: only training recipes have a dry run")
    source = algorithm.policy
    small: PolicySource = source
    if isinstance(source, Pretrained):
        config, where = find_config(source.path)
        policy, small = at_full_size(source, config), ScaledDown(source, config)
        say(f"model        {source.path}")
        say(f"sizes from   {where}")
    else:
        policy = source.load()
        say(f"model        {type(source).__name__}, built as it is")
    algorithm.sampler.attach(policy)
    return algorithm, policy, small


def recomputation(job: Job) -> Recomputation | None:
    """Returns how many blocks one card of a cluster would choose to recompute; None: the recipe says it.

    Raises:
        UserError: activations do not fit into what the recipe gives them.
    """
    whole = memory(job.algorithm, job.plan, job.policy, job.prompt_length)
    found = job.recomputation(job.algorithm, whole)
    return None if found is None else found.checked()


def costs(job: Job, how: str, found: Recomputation | None) -> list[str]:
    """Returns the lines of the report on parameters, memory and forwards.

    Args:
        job: of one card.
        how: says how the tokens of a prompt were counted.
        found: what one card chooses, from ``recomputation``.
    """
    algorithm, plan, policy, prompt_length = job.algorithm, job.plan, job.policy, job.prompt_length
    trainer, source = algorithm.trainer, algorithm.policy
    trained = sum(p.numel() for _, p in policy.trainable())
    base = policy.num_parameters - trained if policy.adapter is not None else policy.num_parameters
    adapter = f" (LoRA of rank {source.lora_rank})" if policy.adapter is not None else ""
    again, count = job.recomputed(found), forwards(algorithm, plan)
    need = memory(algorithm, plan, policy, prompt_length, again)
    lines = [
        f"parameters   {base:,}, trainable {trained:,}{adapter}",
        f"tokens       {prompt_length} of the prompt ({how}) and {algorithm.sampler.completion_length} of the "
        f"completion, in at most {algorithm.sampler.max_steps} denoising steps",
        "memory       estimates, for a GPU, computing in " + trainer.precision,
        f"  weights    {describe(need.weights)}",
        f"  optimiser  {describe(need.optimiser)} with gradients",
        f"  rollout    {describe(need.rollout)}, {trainer.rollout_batch_size or count.samples} completions at once",
        f"  update     {describe(need.update)}, {trainer.micro_batch_size} samples at once"
        + (f", {again} of {len(text_blocks(policy.model))} blocks recomputed" if again else ""),
        f"  evaluation {describe(need.evaluation)}, {evaluated_at_once(trainer)} completions at once",
        f"  peak       {describe(need.peak)}",
        *(() if found is None else (f"recomputed   {found.in_words(f'a card of {job.cluster.memory:g} GiB')}",)),
        "forwards     of an update, at most: " + states_in_words(count, computed_positions(algorithm, prompt_length)),
    ]
    if count.restarts:
        lines.append(
            f"             and the completions that {', '.join(count.restarts)} samples from states on the way"
        )
    return lines


def states_in_words(count: Forwards, computed: tuple[float, float] | None) -> str:
    """Says how many states go through the model in an update.

    Args:
        count: the numbers.
        computed: share of the positions that a cached rollout computes, as ``computed_positions`` returns it.
    """
    cached = ""
    if computed is not None:
        low, high = (f"{share:.0%}" for share in computed)
        share = high if low == high else f"by measured drift {low} to {high}"
        cached = f" (computing {share} of the positions)"
    parts = [f"{count.samples} completions", f"rollout {count.rollout:,}{cached}"]
    again = (("correction", count.correction), ("old", count.old), ("reference", count.reference))
    parts += [f"{name} {number:,}" for name, number in again if number]
    return ", ".join([*parts, f"update {count.update:,} forward and backward"])


def at_full_size(source: Pretrained, config: dict[str, Any]) -> TransformersPolicy:
    """Makes the checkpoint's policy on the meta device, with its sizes and precisions but without numbers.

    Args:
        source: the recipe's.
        config: the checkpoint's ``config.json``.

    Raises:
        UserError: the kit does not know the architecture or the precision.
    """
    options = architecture_options(source)
    name = source.dtype if source.dtype != "auto" else config.get("torch_dtype") or config.get("dtype") or "float32"
    if str(name) not in PRECISIONS:
        raise UserError(f"config.json names an unknown precision: {name!r}")
    with torch.device("meta"):
        model = skeleton(config, options)
        model.to(dtype=PRECISIONS[str(name)])  # type: ignore[call-arg]  # transformers wraps it without its types
        policy = wrapped(model, config, options)
        source.prepare(policy, source.lora_rank)
    return policy


def longest_prompt(algorithm: Algorithm, policy: TransformersPolicy) -> tuple[int, str]:
    """Counts the tokens of the longest of a few prompts, and says how they were counted.

    Without the checkpoint's tokenizer on this machine, the number is guessed from the number of characters.
    """
    task, source, tokens = algorithm.task.sketch(), algorithm.policy, Tokens.of(policy)
    folder = local_folder(source.path) if isinstance(source, Pretrained) else None
    counted = folder is not None or not isinstance(source, Pretrained)
    if folder is not None:
        tokens = _with_tokenizer(tokens, load_tokenizer(str(folder), {}))
    elif not counted:
        tokens = replace(tokens, max_length=None)  # as it is in other tokens
    rate = 1.0 if counted else CHARACTERS_PER_TOKEN
    lengths = []
    for example in examples(task, "train", range(min(EXAMPLES, task.size("train")))):
        length = math.ceil(len(tokens.whole_prompt(example.prompt, example.prefix)) / rate)
        lengths.append(length if example.most is None else min(length, example.most))
    return max(lengths), "the longest of a few" if counted else f"guessed: {rate} characters per token"


def _with_tokenizer(tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Returns a stand-in's tokens with the checkpoint's own tokenizer; its mask is not known here: none is found."""
    begins, unknown = beginning(tokenizer), unknown_tokens(tokenizer)
    return replace(tokens, tokenizer=tokenizer, mask_id=-1, prefix_ids=begins, unknown_ids=unknown)
