"""Evaluation: accuracy and pass@k on a split of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from dlmrl_kit.tasks.base import BaseTask, Example, component_means
from dlmrl_kit.trainers.base import EVAL_BATCH_SIZE, PRECISIONS
from dlmrl_kit.training.opening import open_model, settings_of
from dlmrl_kit.training.replaced_settings import check_read

SHOWN = 8
"""How many completions an ``EvalResult`` shows."""


def pass_at_k(solved: int, samples: int, k: int) -> float:
    """Estimates the probability that at least one of k completions is right, if ``solved`` of ``samples`` were.

    The estimate is unbiased (arXiv 2107.03374).
    """
    return 1.0 - comb(samples - solved, k) / comb(samples, k)


@dataclass(frozen=True)
class EvalSettings:
    """Says what an evaluation decodes, and how; arguments as ``evaluate``.

    Raises:
        RecipeError: several samples per prompt at temperature 0, a temperature that is negative or not finite, or an
            unknown precision.
    """

    split: str = "heldout"
    size: int = 256
    temperature: float = 0.0
    samples_per_prompt: int = 1
    seed: int = 0
    batch_size: int = EVAL_BATCH_SIZE
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.samples_per_prompt > 1 and self.temperature == 0:
            raise RecipeError(
                "several samples per example at temperature 0 would all be the same; give a temperature above 0"
            )
        if not 0 <= self.temperature < inf:
            raise RecipeError(f"the temperature of an evaluation must be at least 0 and finite, got {self.temperature}")
        if self.precision not in PRECISIONS:
            raise RecipeError(f"unknown precision {self.precision!r}; available: {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class Answered:
    """An example, what a policy wrote to it, and the score of each completion.

    Attributes:
        index: of the example in its split.
        example: what was asked.
        completions: texts, ``samples_per_prompt`` of them.
        scores: of each completion, its components by name.
    """

    index: int
    example: Example
    completions: list[str]
    scores: list[dict[str, float]]

    @property
    def solved(self) -> int:
        """How many of the completions solve the example."""
        return round(sum(score["solved"] for score in self.scores))


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
        RecipeError: as ``EvalSettings``, or an unknown or empty split.
        NotFiniteError: a weight of the policy is NaN or infinite.
    """
    settings = EvalSettings(split, size, temperature, samples_per_prompt, seed, batch_size, precision)
    return summary(answer(policy, sampler, task, settings, processes), sampler, task, settings)


def answer(
    policy: Policy, sampler: Sampler, task: BaseTask, settings: EvalSettings, processes: Processes = ALONE
) -> list[Answered]:
    """Decodes the examples that an evaluation is about, and scores them.

    Args:
        policy, sampler, task: of a recipe.
        settings: which examples, and how they are decoded.
        processes: that share the examples; each of them gets all answers.

    Raises:
        RecipeError: an unknown or empty split.
        NotFiniteError: a weight of the policy is NaN or infinite.
    """
    check_split_of(task, settings.split)
    require_finite(weights_of(policy), "the policy cannot be evaluated")
    split, samples, batch_size = settings.split, settings.samples_per_prompt, settings.batch_size
    size = min(settings.size, task.size(split))
    decoder = sampler.at_temperature(settings.temperature)
    length, own_seed = sampler.completion_length, evaluation_seed(settings.seed)
    prompts = prompt_batch(task, split, list(range(size)), policy, samples, length, own_seed)
    prompts = prompts[prompts[GROUP] % processes.world == processes.rank]  # whole examples, in turn
    own, rows, pieces = [], [], []
    with policy.whole(), policy.in_step(), autocast(policy, settings.precision):
        for index, piece in cut(prompts, batch_size, length_order(prompts, batch_size)) if len(prompts) else ():
            rows.append(index)
            pieces.append(decoder.decode(piece, policy=policy)[COMPLETION_IDS])
    if rows:  # there may be fewer examples than processes
        ids = restored(pieces, rows)
        own_scores = Scorer(task, split, policy).components(ids, prompts[EXAMPLE])
        own = list(zip(own_scores, policy.completion_texts(ids), strict=True))
    by_example = _in_order(processes.gather(own), samples)
    return [
        Answered(index, task.example(split, index), [text for _, text in found], [score for score, _ in found])
        for index, found in enumerate(by_example)
    ]


def evaluation_seed(seed: int) -> int:
    """Returns the seed of the noise that the evaluations of a run with this seed are sampled with."""
    return derive_seed(seed, "evaluate")


def check_split_of(task: BaseTask, split: str) -> None:
    """Refuses to evaluate on a split that a task does not have, or that is empty.

    Raises:
        RecipeError: it is refused.
    """
    if split not in task.SPLITS:
        raise RecipeError(f"unknown split {split!r}; available: {', '.join(task.SPLITS)}")
    require_examples(task, split)


def _in_order(
    shares: Sequence[list[tuple[dict[str, float], str]]], samples: int
) -> list[list[tuple[dict[str, float], str]]]:
    """Puts the scores and texts of examples that processes took in turn, ``samples`` of each, into one order."""
    cut = [[share[first : first + samples] for first in range(0, len(share), samples)] for share in shares]
    return [example for turn in zip_longest(*cut, fillvalue=[]) for example in turn if example]


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


def powers(samples: int) -> list[int]:
    """Lists the k for which pass@k is reported of so many completions of each example."""
    return sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k < samples} | {samples})


def summary(answers: Sequence[Answered], sampler: Sampler, task: BaseTask, settings: EvalSettings) -> EvalResult:
    """Returns what the answers to examples come to; other arguments as ``answer``."""
    size, samples = len(answers), settings.samples_per_prompt
    means = component_means([score for answered in answers for score in answered.scores])
    shown = [
        {
            "prompt": answered.example.prompt,
            "completion": answered.completions[0],
            "answer": answered.example.answer,
            "solved": answered.scores[0]["solved"],
            "reward": answered.scores[0]["reward"],
        }
        for answered in answers[:SHOWN]
    ]
    passed = {k: sum(pass_at_k(answered.solved, samples, k) for answered in answers) / size for k in powers(samples)}
    return EvalResult(
        split=settings.split,
        size=size,
        accuracy=means["solved"],
        reward=means["reward"],
        components={name: value for name, value in means.items() if name not in ("solved", "reward")},
        pass_at_k=passed,
        decoding=_decoding(sampler.at_temperature(settings.temperature)),
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
        UserError: there is nothing to evaluate at ``path``, the recipe is broken, or an evaluation does not read one
            of ``sets``.
    """
    opened = open_model(path, recipe, sets, uses, allow_imports)
    check_read(opened.recipe, sets, temperature)
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
