"""Traces: denoising trajectories of one prompt in plain values, for people to look at, step by step.

``trace_group`` samples a group as training does and tells what every step was worth; ``trace_examples`` decodes as an
evaluation does. What was likely at the moment of a commit is computed again from the rebuilt states, as a likelihood
does, in pieces that fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.core.behaviour import entropy
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import (
    ADVANTAGE,
    COMMIT_STEP,
    COMPLETION_IDS,
    EXAMPLE,
    PROGRESS,
    PROMPT_IDS,
    PROMPT_MASK,
    SEED,
    SELECTED_ADVANTAGE,
    SELECTED_END,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_ENTROPY,
    STEP_GREEDY_IDS,
    STEP_LOG_PROB,
    STEP_NUM_COMMITTED,
    STEP_STATE_IDS,
    STEP_VALID,
    Key,
)
from dlmrl_kit.core.policy import Policy, Vocabulary, completion_features
from dlmrl_kit.core.prompt import Prompt
from dlmrl_kit.core.trajectory import committed_at, every_step, num_valid
from dlmrl_kit.likelihoods.steps import replay
from dlmrl_kit.rollout.rewards import Scorer
from dlmrl_kit.rollout.services import UpdateServices, prompt_batch
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.mask import logit_pieces
from dlmrl_kit.tasks.base import BaseTask, Example
from dlmrl_kit.training.update import run_stages

RUNNERS_UP = 4
"""How many tokens a position shows that could have been committed instead."""
STATES = 32
"""How many states go through the model at once."""


@dataclass(frozen=True)
class TokenTrace:
    """One position of a completion at the step that committed it.

    Attributes:
        text: of the final token.
        step: that committed it; None: it is behind the end of the text, and no step did.
        probability: of the token, under the behaviour distribution, or if that is greedy, under the model's own; None
            where ``step`` is.
        entropy: of that distribution in nats; None where ``step`` is.
        others: the most probable other tokens and their probabilities.
    """

    text: str
    step: int | None = None
    probability: float | None = None
    entropy: float | None = None
    others: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class StepTrace:
    """One denoising step.

    Attributes:
        committed: how many positions it committed.
        log_prob: of its action, in nats.
        entropy: mean over the committed positions, in nats; None where the sampler records none.
        reward: of the state before it, with all masks filled greedily at once; None where that is not known.
        weight: of the step in the update; 0: the selector left it out.
        advantage: None where the step is not trained.
    """

    committed: int
    log_prob: float
    entropy: float | None
    reward: float | None = None
    weight: float = 0.0
    advantage: float | None = None


@dataclass(frozen=True)
class SampleTrace:
    """One completion.

    Attributes:
        text: up to its end.
        reward: of the final text; None where the task was not asked.
        solved: from 0 to 1; None as ``reward``.
        tokens: of every position.
        steps: those that happened.
        canvases: the texts of all positions before each step and at the end, of samplers that redraw positions; None:
            one shows nothing before its step and its token afterwards.
    """

    text: str
    reward: float | None
    solved: float | None
    tokens: tuple[TokenTrace, ...]
    steps: tuple[StepTrace, ...]
    canvases: tuple[tuple[str, ...], ...] | None = None


@dataclass(frozen=True)
class Trace:
    """The completions of one prompt by one policy.

    Attributes:
        name: of the policy, such as "before training".
        prompt: as the model's user wrote it.
        answer: of the example.
        samples: of the prompt.
    """

    name: str
    prompt: str
    answer: str
    samples: tuple[SampleTrace, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary that ``json`` can write."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trace:
        """Rebuilds the trace that ``to_json`` wrote."""
        return cls(data["name"], data["prompt"], data["answer"], tuple(map(_sample_of, data["samples"])))


def _sample_of(data: Mapping[str, Any]) -> SampleTrace:
    tokens = tuple(TokenTrace(**{**token, "others": tuple(map(tuple, token["others"]))}) for token in data["tokens"])
    steps = tuple(StepTrace(**step) for step in data["steps"])
    canvases = None if data["canvases"] is None else tuple(map(tuple, data["canvases"]))
    return SampleTrace(data["text"], data["reward"], data["solved"], tokens, steps, canvases)


def trace_group(
    algorithm: Algorithm,
    policy: Policy,
    *,
    index: int = 0,
    split: str = "heldout",
    samples: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    name: str = "",
) -> Trace:
    """Samples a group of completions of one example as an update does, with what the update would make of each step.

    Args:
        algorithm: its components are attached to ``policy``.
        policy: the denoiser.
        index: of the example in ``split``.
        split: of the task.
        samples: in the group; None: as many as in training.
        temperature: of the sampler; None: its own.
        seed: of the sampling noise.
        name: of the trace.

    Raises:
        RecipeError: there is no such example.
    """
    task, trainer = algorithm.task, algorithm.trainer
    if not 0 <= index < task.size(split):
        raise RecipeError(f"example {index} is not in the {split} split, which has {task.size(split)}")
    plan = make_plan(algorithm)
    sampler = algorithm.sampler if temperature is None else algorithm.sampler.at_temperature(temperature)
    group_size = sampler.group_size or samples or trainer.group_size
    prompts = prompt_batch(task, split, [index], policy, group_size, sampler.completion_length, seed)
    prompts.set(PROGRESS, torch.zeros(len(prompts), device=policy.device))
    scorer = Scorer(task, split, policy)
    services = UpdateServices(policy, sampler, scorer, trainer.rollout_batch_size or len(prompts))
    greedy: set[Key] = {STEP_GREEDY_IDS} if STEP_GREEDY_IDS in sampler.optional_keys else set()
    with torch.no_grad():
        given = {**services.given_to(sampler), "keys": tuple({*plan.sampler.keys, *greedy}), "cache": algorithm.cache}
        trajectory = sampler(prompts, **given)
        rewards = _step_rewards(trajectory, scorer) if greedy else None
        stages = (*plan.before_rewards, *plan.with_rewards)
        kept = run_stages(stages, trajectory.copy(), services)[1]
        return _trace(name, task.example(split, index), _samples(policy, sampler, trajectory, scorer, rewards, kept))


def trace_examples(
    policy: Policy,
    decoder: Sampler,
    task: BaseTask,
    number: int,
    *,
    split: str = "heldout",
    name: str = "",
    seed: int = 0,
) -> list[Trace]:
    """Decodes the first ``number`` examples of a split, one sample of each; the seed is that of ``evaluation_seed``."""
    number = min(number, task.size(split))
    with torch.no_grad():
        prompts = prompt_batch(task, split, list(range(number)), policy, 1, decoder.completion_length, seed)
        found = decoder.decode(prompts, policy=policy)
        trajectory = prompts.update(found)
        samples = list(_samples(policy, decoder, trajectory, Scorer(task, split, policy)))
    return [_trace(name, task.example(split, index), [sample]) for index, sample in enumerate(samples)]


def _trace(name: str, example: Example, samples: Iterable[SampleTrace]) -> Trace:
    return Trace(name, _shown(example.prompt), example.answer, tuple(samples))


def _shown(prompt: Prompt) -> str:
    """Returns a prompt as text; of a conversation, what each one says."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _step_rewards(trajectory: TensorDictBase, scorer: Scorer) -> Tensor:
    """Scores every step's state, with all masks filled greedily at once: float32 [B, T]; 0 past the end of a row."""
    valid = trajectory[STEP_VALID]
    reward = scorer(trajectory[STEP_GREEDY_IDS][valid].long(), trajectory[EXAMPLE][:, None].expand_as(valid)[valid])
    return torch.zeros(valid.shape, device=valid.device).masked_scatter(valid, reward)


def _samples(
    policy: Policy,
    sampler: Sampler,
    trajectory: TensorDictBase,
    scorer: Scorer,
    rewards: Tensor | None = None,
    kept: TensorDictBase | None = None,
) -> Iterator[SampleTrace]:
    """Yields the trace of each row; ``rewards`` [B, T] are those of ``_step_rewards``, ``kept`` is what is trained."""
    ids = trajectory[COMPLETION_IDS]
    scores, texts = scorer.components(ids, trajectory[EXAMPLE]), policy.completion_texts(ids)
    weight, advantage = _trained(trajectory, kept)
    words, likely, final = Words(policy), _commits(policy, sampler, trajectory), ids.tolist()
    recorded = (STEP_NUM_COMMITTED, STEP_LOG_PROB, STEP_ENTROPY)
    number, log_prob, entropies = (trajectory[key].tolist() for key in recorded)
    happened = num_valid(trajectory).tolist()
    greedy = None if rewards is None else rewards.tolist()
    for row, (text, score) in enumerate(zip(texts, scores, strict=True)):
        tokens = tuple(_token(words, token, likely.get((row, position))) for position, token in enumerate(final[row]))
        steps = tuple(
            StepTrace(
                committed=number[row][t],
                log_prob=log_prob[row][t],
                entropy=entropies[row][t] if sampler.temperature else _mean_at(tokens, t),
                reward=None if greedy is None else greedy[row][t],
                weight=weight[row][t],
                advantage=advantage[row][t],
            )
            for t in range(happened[row])
        )
        canvases = _canvases(trajectory[row], len(steps), words)
        yield SampleTrace(text, float(score["reward"]), float(score["solved"]), tokens, steps, canvases)


class Words:
    """Writes single tokens as text.

    Args:
        policy: its tokenizer does it.
    """

    def __init__(self, policy: Vocabulary) -> None:
        self.tokenizer = policy.tokenizer
        self.known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        """Returns the text of a token; of one that is no whole character, or none, the tokenizer's name for it."""
        if token not in self.known:
            text = self.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            whole = text and "\ufffd" not in text
            self.known[token] = text if whole else str(self.tokenizer.convert_ids_to_tokens(token))
        return self.known[token]


@dataclass(frozen=True)
class Commit:
    """What a position could have become when it was committed: the step, and the likely tokens by number."""

    step: int
    probability: float
    entropy: float
    others: tuple[tuple[int, float], ...]


def _mean_at(tokens: Sequence[TokenTrace], step: int) -> float | None:
    """Averages the entropies of the tokens that a step committed; None if it committed none."""
    found = [token.entropy for token in tokens if token.step == step and token.entropy is not None]
    return sum(found) / len(found) if found else None


def _token(words: Words, token: int, commit: Commit | None) -> TokenTrace:
    if commit is None:
        return TokenTrace(words(token))
    others = tuple((words(other), probability) for other, probability in commit.others if probability > 0)
    return TokenTrace(words(token), commit.step, commit.probability, commit.entropy, others)


def _commits(policy: Policy, sampler: Sampler, trajectory: TensorDictBase) -> dict[tuple[int, int], Commit]:
    """Computes again, from the states, how likely each token was when it was committed: by row and position."""
    steps = every_step(trajectory)
    flat = replay(steps, policy.mask_id)
    row, step = flat.used.nonzero(as_tuple=True)
    at = committed_at(trajectory[COMMIT_STEP], steps[SELECTED_STEP])[flat.used]
    found: dict[tuple[int, int], Commit] = {}
    for first in range(0, len(row), STATES):
        rows = slice(first, first + STATES)
        prompt, ids, tokens = flat.prompt[rows], flat.ids[rows], trajectory[COMPLETION_IDS][row[rows]]
        features = completion_features(policy, prompt[PROMPT_IDS], prompt[PROMPT_MASK], ids, at[rows])
        for some, place in logit_pieces(at[rows].sum(-1), policy.vocab_size, at.device):
            view = sampler.seen(policy, features[place], at[rows][some], prompt[some])
            state, position = view.index
            chosen = tokens[some][state, position]
            log_probs = view.log_probs if sampler.temperature else view.logits.log_softmax(-1)
            best, token = log_probs.exp().topk(min(RUNNERS_UP + 1, policy.vocab_size), dim=-1)
            columns = (row[rows][some][state], step[rows][some][state], position, chosen)
            probability = log_probs.gather(-1, chosen[:, None]).squeeze(-1).exp()
            values = (probability, entropy(log_probs), best, token)
            for b, t, i, own, p, h, likely, names in zip(*(v.tolist() for v in (*columns, *values)), strict=True):
                others = [(name, q) for name, q in zip(names, likely, strict=True) if name != own][:RUNNERS_UP]
                found[b, i] = Commit(t, p, h, tuple(others))
    return found


def _trained(
    trajectory: TensorDictBase, kept: TensorDictBase | None
) -> tuple[list[list[float]], list[list[float | None]]]:
    """Returns the weight and the advantage of every step, by row: 0 and None where the update leaves it out."""
    rows, steps = trajectory[STEP_VALID].shape
    weight: list[list[float]] = [[0.0] * steps for _ in range(rows)]
    advantage: list[list[float | None]] = [[None] * steps for _ in range(rows)]
    if kept is None or len(kept) == 0:
        return weight, advantage
    number = {seed: row for row, seed in enumerate(trajectory[SEED].tolist())}
    ends = kept.get(SELECTED_END, kept[SELECTED_STEP] + 1)
    of_row = kept.get(ADVANTAGE, None)
    worth = kept.get(SELECTED_ADVANTAGE, None if of_row is None else of_row[:, None].expand_as(ends))
    for i, k in kept[SELECTED_WEIGHT].nonzero().tolist():
        row = number[int(kept[SEED][i])]
        for t in range(int(kept[SELECTED_STEP][i, k]), min(int(ends[i, k]), steps)):
            weight[row][t] = float(kept[SELECTED_WEIGHT][i, k])
            advantage[row][t] = None if worth is None else float(worth[i, k])
    return weight, advantage


def _canvases(row: TensorDictBase, steps: int, words: Words) -> tuple[tuple[str, ...], ...] | None:
    """Returns the texts of all positions before each step and at the end, of a sampler that redraws; else None."""
    stored = row.get(STEP_STATE_IDS, None)
    if stored is None:
        return None
    canvases = [*stored[:steps].tolist(), row[COMPLETION_IDS].tolist()]
    return tuple(tuple(words(token) for token in canvas) for canvas in canvases)
