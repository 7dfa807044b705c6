"""What a sampler sees in a state and what it decides there, and the log-probability of the tokens of a decision."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dlmrl_kit.core.behaviour import LOG_ZERO, Behaviour, Certainty, behaviour_log_probs, by_rows, certainty, draw


@dataclass(frozen=True)
class View:
    """What a sampler sees in a state: predictions at the N positions it may commit, in row-major order.

    ``logits``: [N, V], forbidden tokens at -inf. ``behaviour``: how they become probabilities. ``allowed``: bool
    [B, L]. ``features``: what the policy's head reads, [N, D], for samplers that ask for it (``needs_features``).
    """

    logits: Tensor
    behaviour: Behaviour
    allowed: Tensor
    features: Tensor | None = None

    @cached_property
    def log_probs(self) -> Tensor:
        """Log-probabilities of the behaviour distribution, [N, V]."""
        return behaviour_log_probs(self.logits, self.behaviour)

    @cached_property
    def certainty(self) -> Certainty:
        """What gives the confidence of any token at each of the N positions; without gradient."""
        return certainty(self.logits)

    def confidence(self, tokens: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Confidence of one token at each of the N positions, or at those of bool [N]: [n]; without gradient."""
        logits = self.logits.detach()
        row = torch.arange(len(logits), device=logits.device) if chosen is None else chosen.nonzero().squeeze(-1)
        return self.certainty.at(row).confidence(logits[row, tokens])

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """A token for each of the N positions from the behaviour distribution: int64 [N]."""
        return draw(self.logits, self.behaviour, generator)

    @cached_property
    def index(self) -> tuple[Tensor, Tensor]:
        """Row and position of each of the N predictions: two int64 [N]."""
        rows, positions = self.allowed.nonzero(as_tuple=True)
        return rows, positions

    def narrow(self, allowed: Tensor) -> View:
        """The view of some of these positions, bool [B, L]; itself if it is all of them."""
        inside = allowed[self.allowed]
        if bool(inside.all()):
            return self
        features = None if self.features is None else self.features[inside]
        return View(self.logits[inside], self.behaviour, allowed, features)

    def dense(self, values: Tensor, fill: float) -> Tensor:
        """Puts values [N] back into [B, L], ``fill`` elsewhere."""
        return values.new_full(self.allowed.shape, fill).masked_scatter(self.allowed, values)

    def row_sum(self, values: Tensor, rows: Tensor) -> Tensor:
        """Sums values [n] that belong to ``rows`` [n] into [B]."""
        return values.new_zeros(self.allowed.shape[0]).index_add(0, rows, values)


@dataclass(frozen=True)
class Decision:
    """An action: the positions committed (bool [B, L]) and their tokens (int64 [B, L], read where committed).

    ``rank`` (int64 [B, L]): order of the draw, for samplers whose action is an ordered draw. ``drawn`` (bool [B, L]):
    where ``tokens`` holds a draw, for samplers that draw more tokens than they commit.
    """

    committed: Tensor
    tokens: Tensor
    rank: Tensor | None = None
    drawn: Tensor | None = None

    def at(self, rows: slice) -> Decision:
        """The decision of some of its rows."""
        return Decision(*(None if part is None else part[rows] for part in vars(self).values()))  # type: ignore[arg-type]


def token_log_probs(view: View, decision: Decision) -> tuple[Tensor, Tensor]:
    """Behaviour log-probability of each committed token [n], and its row [n]."""
    chosen = decision.committed[view.allowed]
    tokens = decision.tokens[decision.committed]

    def pick(logits: Tensor, tokens: Tensor) -> Tensor:
        return behaviour_log_probs(logits, view.behaviour).gather(-1, tokens[:, None]).squeeze(-1)

    picked = by_rows(pick, view.logits, tokens, at=chosen.nonzero().squeeze(-1))
    return picked.clamp(min=LOG_ZERO), view.index[0][chosen]


def token_log_prob(view: View, decision: Decision) -> Tensor:
    """Token part of the action's log-probability: [B], sum over committed positions of log p(token)."""
    return view.row_sum(*token_log_probs(view, decision))


def highest(scores: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """The ``count`` [B] highest scores among ``allowed`` [B, L] as a bool mask; ties go to the lower position."""
    return (rank_of(scores, allowed) < count[:, None]) & allowed


def rank_of(scores: Tensor, allowed: Tensor) -> Tensor:
    """Rank (0 = highest) of each score in its row, int64 [B, L]; allowed positions come first, ties in order."""
    floor = torch.finfo(scores.dtype).min
    scores = scores.clamp(min=floor).masked_fill(~allowed, -torch.inf)
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )


def subsets(allowed: Tensor, count: Tensor) -> list[Tensor]:
    """Every set of ``count`` [B] positions of ``allowed`` [B, L] as a mask [B, L]; empty in rows without that set."""
    length = allowed.shape[-1]
    sizes = sorted({int(size) for size in count if size > 0})
    sets = [s for size in sizes for s in itertools.combinations(range(length), size)]
    masks = []
    for positions in sets:
        mask = torch.zeros_like(allowed)
        mask[:, list(positions)] = True
        possible = (mask <= allowed).all(-1) & (count == len(positions))
        masks.append(mask & possible[:, None])
    return masks
