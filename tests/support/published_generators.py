"""The published generators of three families as loops over one row, written from their descriptions.

They know nothing of the kit: ``logits`` is an independent model, and ``draw`` says which token was drawn where, or is
``best`` for greedy decoding. All of them rule out the tokens that the kit rules out, at the logits. What the releases
draw in a step that keeps nothing is read by nobody, and not drawn here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from support.oracles import loop_entropy, loop_probs
from torch import Tensor

Logits = Callable[[Tensor], Tensor]
Draw = Callable[[dict[int, list[float]]], dict[int, int]]
"""From the distribution that tokens are drawn from, by position, to a token for each position."""


def best(probs: dict[int, list[float]]) -> dict[int, int]:
    """Greedy decoding."""
    return {i: max(range(len(p)), key=lambda v, p=p: p[v]) for i, p in probs.items()}  # type: ignore[misc]


@dataclass
class Generation:
    """A row in the making: its tokens, and the positions that each denoising step committed, empty ones included."""

    ids: list[int]
    prompt: int
    mask: int
    steps: list[list[int]] = field(default_factory=list)

    def open(self, begin: int, end: int) -> list[int]:
        return [i for i in range(begin, end) if self.ids[i] == self.mask]

    def keep(self, score: dict[int, float], number: int, token: dict[int, int]) -> None:
        chosen = sorted(score, key=lambda i: (-score[i], i))[:number]
        for i in chosen:
            self.ids[i] = token[i]
        self.steps.append(sorted(i - self.prompt for i in chosen))

    @property
    def completion(self) -> list[int]:
        return self.ids[self.prompt :]

    def commit_step(self) -> list[int]:
        """The step of each position, counting the steps that committed anything."""
        step = {i: t for t, chosen in enumerate(filter(None, self.steps)) for i in chosen}
        return [step[i] for i in range(len(self.completion))]


def spread_evenly(number: int, steps: int) -> list[int]:
    """As many per step as divide evenly; what remains goes to the first steps, one each."""
    counts = [number // steps] * steps
    for i in range(number - sum(counts)):
        counts[i] += 1
    return counts


def dream_counts(number: int, steps: int, eps: float = 1e-3) -> list[int]:
    """int(masked * (1 - s / t)) between points of time that are evenly spaced from 1 to eps; the last step the rest."""
    time = torch.linspace(1, eps, steps + 1, dtype=torch.float32).numpy()
    counts = []
    for t, s in itertools.pairwise(time[:steps]):
        counts.append(int(np.float32(number - sum(counts)) * (np.float32(1) - s / t)))
    return [*counts, number - sum(counts)]


def _probs(logits: Logits, ids: list[int], positions: list[int], forbidden: Sequence[int], **b: Any) -> dict[int, Any]:
    with torch.no_grad():
        found = logits(torch.tensor(ids)).double()
    return {i: loop_probs(found[i].tolist(), **b, forbidden=forbidden) for i in positions}


def llada(
    logits: Logits, prompt: list[int], mask: int, forbidden: Sequence[int], draw: Draw,
    *, length: int, block: int, steps: int, temperature: float,
) -> Generation:  # fmt: skip
    """LLaDA: blocks from left to right; ranked by the probability at temperature 1 of the token drawn."""
    row = Generation(prompt + [mask] * length, len(prompt), mask)
    for begin in range(len(prompt), len(prompt) + length, block):
        for number in spread_evenly(block, steps * block // length):
            places = row.open(begin, begin + block) if number else []
            drawn = draw(_probs(logits, row.ids, places, forbidden, temperature=temperature))
            plain = _probs(logits, row.ids, places, forbidden)
            row.keep({i: plain[i][drawn[i]] for i in places}, number, drawn)
    return row


def sdar(
    logits: Logits, prompt: list[int], mask: int, forbidden: Sequence[int], draw: Draw,
    *, length: int, block: int, steps: int, behaviour: dict[str, Any], threshold: float | None = None,
) -> Generation:  # fmt: skip
    """SDAR's ``low_confidence_static``, with a threshold its ``low_confidence_dynamic``.

    Blocks are counted from the prompt's first token, and the row ends with a block. Ranked by the probability, after
    temperature and filters, of the token drawn. Where a first block has fewer open positions than the step commits, the
    release overwrites some of the prompt; here it takes what is open.
    """
    assert (len(prompt) + length) % block == 0
    row = Generation(prompt + [mask] * length, len(prompt), mask)
    for begin in range(len(prompt) // block * block, len(row.ids), block):
        for number in spread_evenly(block, steps):
            if number and (places := row.open(begin, begin + block)):
                q = _probs(logits, row.ids[: begin + block], places, forbidden, **behaviour)
                drawn = draw(q)
                score = {i: q[i][drawn[i]] for i in places}
                sure = 0 if threshold is None else sum(value > threshold for value in score.values())
                row.keep(score, max(number, sure), drawn)
    return row


def dream(
    logits: Logits, prompt: list[int], mask: int, forbidden: Sequence[int], draw: Draw,
    *, length: int, steps: int, alg: str, behaviour: dict[str, Any],
) -> Generation:  # fmt: skip
    """Dream without ``alg_temp``: all positions at once, ranked by the distribution after temperature and filters.

    At temperature 0 that is softmax(logits), and the best token is taken.
    """
    row = Generation(prompt + [mask] * length, len(prompt), mask)
    for number in dream_counts(length, steps):
        places = row.open(len(prompt), len(row.ids)) if number else []
        q = _probs(logits, row.ids, places, forbidden, **{**behaviour, "temperature": behaviour["temperature"] or 1.0})
        if alg == "maskgit_plus":
            drawn = draw(q)
            row.keep({i: q[i][drawn[i]] for i in places}, number, drawn)
            continue
        order = {
            "entropy": lambda p: -loop_entropy(p),
            "topk_margin": lambda p: sorted(p)[-1] - sorted(p)[-2],
        }[alg]
        score = {i: order(q[i]) for i in places}
        kept = sorted(places, key=lambda i: (-score[i], i))[:number]
        row.keep(score, number, draw({i: q[i] for i in sorted(kept)}))
    assert not any(math.isnan(value) for p in q.values() for value in p)
    return row
