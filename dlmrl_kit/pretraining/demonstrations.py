"""Demonstrations in a policy's tokens, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dlmrl_kit.core import seeding
from dlmrl_kit.core.behaviour import sample
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.demonstrators.base import Demonstrator
from dlmrl_kit.demonstrators.encoding import answer_tokens
from dlmrl_kit.pretrainers.base import Pretrainer
from dlmrl_kit.rollout.services import examples as examples_of
from dlmrl_kit.tasks.base import BaseTask


@dataclass(frozen=True)
class Demonstrations:
    """Encoded demonstrations of N examples, with A alternative completions each.

    Attributes:
        prompts: N lists of tokens.
        completions: N x A lists of tokens, without anything behind their end.
        probability: float [N, A], with which each alternative is drawn.
        left_out, cut: examples with completions that are too long, by what became of them.
    """

    prompts: list[list[int]]
    completions: list[list[list[int]]]
    probability: Tensor
    left_out: int = 0
    cut: int = 0

    def notes(self, split: str, length: int) -> list[str]:
        """Says how many examples of the split have a completion of more than ``length`` tokens, if any has."""
        fates = {"left out": self.left_out, "cut at the right": self.cut}
        return [
            f"{count} examples of {split} have an answer of more than {length} tokens: {fate}"
            for fate, count in fates.items()
            if count
        ]


class Batch(NamedTuple):
    """Some demonstrations as tensors, the first arguments of ``Pretrainer.objective``.

    Attributes:
        prompt_ids, prompt_mask: int64 and bool [B, P], left-padded.
        completion_ids: int64 [B, L], filled with the policy's ``filler_id`` behind their end.
        counted: bool [B, L], the positions that are learned.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    counted: Tensor


def encode_demonstrations(
    task: BaseTask,
    demonstrator: Demonstrator,
    policy: Policy,
    length: int,
    *,
    split: str = "pretrain",
    most: int | None = None,
    too_long: str = "refuse",
) -> Demonstrations:
    """Encodes the demonstrations of a split.

    Args:
        task, demonstrator: what is demonstrated, and by whom.
        policy: its tokenizer encodes.
        length: the most tokens of a completion.
        split: of the task.
        most: the most examples, from the first; None: all.
        too_long: what becomes of an example with a longer completion, as ``Pretrainer``.

    Raises:
        RecipeError: the split has fewer examples than the task says, a demonstration is longer than ``length`` tokens
            where that is refused, ``answer_tokens`` refuses one, or all are left out.
    """
    number = task.size(split) if most is None else min(most, task.size(split))
    prompts, completions, probability = [], [], []
    left_out = cut = 0
    for index, example in enumerate(examples_of(task, split, range(number))):
        entries = demonstrator.demonstrations(example)
        try:
            written = [answer_tokens(policy, example, text) for text, _ in entries]
        except RecipeError as error:
            raise RecipeError(f"{task.place(split, index)}: a demonstration cannot be written: {error}") from error
        longest = max(map(len, written))
        if longest > length:
            if too_long == "refuse":
                raise RecipeError(
                    f"{task.place(split, index)}: a demonstration has {longest} tokens, more than the sampler's "
                    f"completion_length = {length}; raise that, or say what becomes of it with too_long"
                )
            left_out, cut = left_out + (too_long == "leave_out"), cut + (too_long == "cut")
            if too_long == "leave_out":
                continue
            written = [row[:length] for row in written]
        try:
            prompts.append(policy.prompt_tokens(example.prompt, length, example.prefix, example.most))
        except RecipeError as error:
            raise RecipeError(f"{task.place(split, index)}: {error}") from error
        completions.append(written)
        probability.append([p for _, p in entries])
    if not prompts:
        raise RecipeError(f"{task.label()}: every answer of {split} has more than {length} tokens; nothing is left")
    return Demonstrations(prompts, completions, torch.tensor(probability, device=policy.device), left_out, cut)


def batch_of(
    data: Demonstrations, rows: Tensor, seed: Tensor, policy: Policy, settings: Pretrainer, most: int
) -> Batch:
    """Draws a completion for each of some examples, and makes tensors of them.

    Args:
        data: where they are from.
        rows: int64 [B], the examples.
        seed: int64 [B], of the draws.
        policy: whose tokens they are.
        settings: say how wide the completions are, and which positions are learned.
        most: the most tokens of a completion.
    """
    choice = sample(data.probability[rows].log(), seeding.uniforms(seed, purpose="demonstration"))
    chosen = [data.completions[row][pick] for row, pick in zip(rows.tolist(), choice.tolist(), strict=True)]
    prompt = policy.padded([data.prompts[row] for row in rows.tolist()])
    ended = [min(len(row) + 1, most) if not _is_ended(row, policy) else len(row) for row in chosen]
    width = most if settings.width == "completion" else max(ended)
    ids = torch.tensor([row + [policy.filler_id] * (width - len(row)) for row in chosen], device=policy.device)
    counted = torch.ones_like(ids, dtype=torch.bool)
    if settings.filler == "masked":
        counted = torch.arange(width, device=ids.device) < torch.tensor(ended, device=ids.device)[:, None]
    return Batch(prompt[PROMPT_IDS], prompt[PROMPT_MASK], ids, counted)


def _is_ended(row: Sequence[int], policy: Policy) -> bool:
    return bool(row) and row[-1] in policy.eos_ids
