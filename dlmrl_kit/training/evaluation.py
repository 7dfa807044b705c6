"""Evaluation: accuracy and pass@k on a split of a task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from math import comb, inf

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.finite import require_finite, weights_of
from dlmrl_kit.core.keys import COMPLETION_IDS, EXAMPLE, GROUP
from dlmrl_kit.core.policy import Policy, autocast
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.core.seeding import derive_seed
from dlmrl_kit.core.trajectory import cut, length_order, restored
from dlmrl_kit.rollout.rewards import Scorer
from dlmrl_kit.rollout.services import prompt_batch, require_examples
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.tasks.base import BaseTask, component_means
from dlmrl_kit.trainers.base import EVAL_BATCH_SIZE, PRECISIONS
from dlmrl_kit.training.opening import open_model, settings_of

SHOWN = 8
"""How many completions an ``EvalResult`` shows."""


def pass_at_k(solved: int, samples: int, k: int) -> float:
    """Estimates the probability that at least one of k completions is right, if ``solved`` of ``samples`` were.

    The estimate is unbiased (arXiv 2107.03374).
    """
    return 1.0 - comb(samples - solved, k) / comb(samples, k)


def evaluate(
    policy: Policy,
    sampler: Sampler,
    task: BaseTask,
    *,
    split: str = "heldout",
    size: int = 256,
    temperature: float = 0.0,
    samples_per_prompt: int = 1,
    seed: int = 0,
    batch_size: int = EVAL_BATCH_SIZE,
    precision: str = "float32",
    processes: Processes = ALONE,
) -> EvalResult:
    """Decodes the first ``size`` examples of a split and scores them.

    Args:
        policy, sampler, task: of a recipe.
        split: ``train``, ``heldout`` or ``pretrain``.
        size: number of examples; a smaller split is used completely.
        temperature: replaces the sampler's; 0 decodes greedily, without top-k and top-p.
        samples_per_prompt: completions per example, for pass@k.
        seed: of the sampling noise; sample k of an example draws the same, whatever ``size`` and ``batch_size`` are.
        batch_size: completions decoded at once.
        precision: what the forwards compute in: ``float32`` or ``bfloat16``, as in the rollouts of a run.
        processes: that share the examples; each of them gets the result.

    Raises:
        RecipeError: several samples per prompt at temperature 0, a temperature that is negative or not finite, an
            unknown precision, or an unknown or empty split.
        NotFiniteError: a weight of the policy is NaN or infinite.
    """
    if samples_per_prompt > 1 and temperature == 0:
        raise RecipeError(
            "several samples per example at temperature 0 would all be the same; give a temperature above 0"
        )
    if not 0 <= temperature < inf:
        raise RecipeError(f"the temperature of an evaluation must be at least 0 and finite, got {temperature}")
    if precision not in PRECISIONS:
        raise RecipeError(f"unknown precision {precision!r}; available: {', '.join(PRECISIONS)}")
    if split not in task.SPLITS:
        raise RecipeError(f"unknown split {split!r}; available: {', '.join(task.SPLITS)}")
    require_examples(task, split)
    require_finite(weights_of(policy), "the policy cannot be evaluated")
    size = min(size, task.size(split))
    decoder = sampler.at_temperature(temperature)
    length, own_seed = sampler.completion_length, derive_seed(seed, "evaluate")
    prompts = prompt_batch(task, split, list(range(size)), policy, samples_per_prompt, length, own_seed)
    prompts = prompts[prompts[GROUP] % processes.world == processes.rank]  # whole examples, in turn
    own, rows, pieces = [], [], []
    with policy.whole(), autocast(policy, precision):
        for index, piece in cut(prompts, batch_size, length_order(prompts, batch_size)) if len(prompts) else ():
            rows.append(index)
            pieces.append(decoder.decode(piece, policy=policy)[COMPLETION_IDS])
    if rows:  # there may be fewer examples than processes
        ids = restored(pieces, rows)
        own_scores = Scorer(task, split, policy).components(ids, prompts[EXAMPLE])
        own = list(zip(own_scores, policy.completion_texts(ids), strict=True))
    scores, texts = _in_order(processes.gather(own), samples_per_prompt)
    return _summary(scores, texts, task, split, size, samples_per_prompt, _decoding(decoder))


def _in_order(
    shares: Sequence[list[tuple[dict[str, float], str]]], samples: int
) -> tuple[list[dict[str, float]], list[str]]:
    """Puts the scores and texts of examples that processes took in turn, ``samples`` of each, into one order."""
    cut = [[share[first : first + samples] for first in range(0, len(share), samples)] for share in shares]
    joined = [one for turn in zip_longest(*cut, fillvalue=[]) for example in turn for one in example]
    return [score for score, _ in joined], [text for _, text in joined]


def _decoding(sampler: Sampler) -> dict[str, object]:
    per_step = sampler.tokens_per_step
    return {
        "sampler": type(sampler).__name__,
        "temperature": sampler.temperature,
        "top_k": sampler.top_k,
        "top_p": sampler.top_p,
        "tokens_per_step": per_step if isinstance(per_step, int) else repr(per_step),
        "block_length": sampler.block_length,
        "completion_length": sampler.completion_length,
    }


def _summary(
    scores: list[dict[str, float]],
    texts: list[str],
    task: BaseTask,
    split: str,
    size: int,
    samples: int,
    decoding: dict[str, object],
) -> EvalResult:
    means = component_means(scores)
    solved = [
        round(sum(score["solved"] for score in scores[first : first + samples]))
        for first in range(0, len(scores), samples)
    ]
    ks = sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k < samples} | {samples})
    shown = []
    for position in range(min(SHOWN, size)):
        example = task.example(split, position)
        score = scores[position * samples]
        shown.append(
            {
                "prompt": example.prompt,
                "completion": texts[position * samples],
                "answer": example.answer,
                "solved": score["solved"],
                "reward": score["reward"],
            }
        )
    return EvalResult(
        split=split,
        size=size,
        accuracy=means["solved"],
        reward=means["reward"],
        components={name: value for name, value in means.items() if name not in ("solved", "reward")},
        pass_at_k={k: sum(pass_at_k(right, samples, k) for right in solved) / size for k in ks},
        decoding=decoding,
        samples=shown,
        task=task.label(),
    )


def evaluate_path(
    path: str,
    *,
    recipe: str | None = None,
    split: str = "heldout",
    size: int = 512,
    temperature: float = 0.0,
    samples_per_prompt: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    precision: str | None = None,
    sets: Sequence[str] = (),
    uses: Sequence[str] = (),
    allow_imports: bool = False,
) -> EvalResult:
    """Evaluates the model of a run folder, or any other model, with the task and sampler of a recipe.

    Args:
        path, recipe, sets, uses, allow_imports: as ``open_model``.
        split, size, temperature, samples_per_prompt, seed: as ``evaluate``.
        batch_size, precision: as ``evaluate``; None: as the recipe's training evaluates.

    Raises:
        UserError: there is nothing to evaluate at ``path``, or the recipe is broken.
    """
    opened = open_model(path, recipe, sets, uses, allow_imports)
    built = opened.build()
    settings = settings_of(built)
    policy = opened.load(built, [built.sampler])
    return evaluate(
        policy,
        built.sampler,
        built.task,
        split=split,
        size=size,
        temperature=temperature,
        samples_per_prompt=samples_per_prompt,
        seed=seed,
        batch_size=batch_size or settings.eval_batch_size,
        precision=precision or settings.precision,
    )
