"""One pass over the vocabulary: what a step of a rollout needs of its logits, computed while they are in the cache.

In a large vocabulary the softmaxes of draw, confidence, entropy and order term each read and write tensors of the size
of the logits, which takes as long as the head's product. Here the head runs in tiles of columns. Of each tile two sums
of exponentials are taken per block of 256 tokens, one at temperature 1 for confidences and one at the behaviour's, and
the largest logit. All that a step asks afterwards needs these and a second look at few blocks: the one in which a draw
falls, that of the best token, and those in which some tokens are above the threshold of the order term and some below.

The logits are kept for it, in memory that the next piece of a rollout uses again: a system gives out fresh memory page
by page, which takes a good part of the time of the product that fills it. This is for float32 on a CPU; elsewhere, and
in small vocabularies, ``core.behaviour`` does the same with whole tensors. The two differ by rounding.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from dlmrl_kit.core.behaviour import MOST, TINY, Behaviour, Certainty, by_rows, log_mass, search
from dlmrl_kit.core.phases import phase

if TYPE_CHECKING:
    from dlmrl_kit.core.policy import Policy

BLOCK = 256
"""Tokens of which sums are kept."""

_TILE = 2**18
"""Logits of a tile: with two more tensors of its size it stays in the second-level cache of one core."""
_WIDEST = 16 * BLOCK

Scratch: TypeAlias = dict[str, Tensor]
"""Memory that is used again; whoever calls several times holds it, empty at first."""


def head_weight(policy: Policy, features: Tensor) -> Tensor | None:
    """Returns the weight [V, D] of a head that can run in tiles; None where it cannot, or where that does not pay."""
    if features.device.type != "cpu" or features.dtype != torch.float32 or torch.is_grad_enabled():
        return None
    weight = policy.head_weight
    if weight is None or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return None
    return weight


class Scan(NamedTuple):
    """What one pass left of the logits of N positions, over K blocks of tokens.

    Attributes:
        logits: [N, V].
        blocks: [N, K, BLOCK], the same memory, with -inf behind the vocabulary.
        temperature: of the behaviour distribution, above 0; it has no filters.
        highest: [N, K], the largest logit of each block.
        mass: [N, K], the sum of exp((logit - top) / temperature) over each block.
        certain: for confidences.
    """

    logits: Tensor
    blocks: Tensor
    temperature: float
    highest: Tensor
    mass: Tensor
    certain: Certainty

    def is_of(self, logits: Tensor, behaviour: Behaviour) -> bool:
        """Tells whether it was made of these very logits and describes this behaviour."""
        same = self.logits is logits and self.temperature == behaviour.temperature
        return same and not behaviour.filters(logits.shape[-1])

    def best(self) -> Tensor:
        """Returns the most probable token of each position, int64 [N]."""
        block = self.highest.argmax(-1)
        return block * BLOCK + self.block(None, block).argmax(-1)

    def draw(self, noise: Tensor, at: Tensor | None = None) -> Tensor:
        """Draws tokens as ``core.behaviour.draw``: int64 [n] of noise float64 [n].

        Args:
            noise: uniform in [0, 1).
            at: int64 [n], the positions; None: all.
        """
        block, rest = search(self.mass if at is None else self.mass[at], noise.clamp(max=MOST))
        scaled = self._scaled(self.block(at, block), at)
        return block * BLOCK + search(scaled.exp_(), rest)[0]

    def log_probs(self, tokens: Tensor, at: Tensor) -> Tensor:
        """Returns the behaviour log-probability of one token at each of some positions, [n]; both int64 [n]."""
        return self._scaled(self.logits[at, tokens], at) - self.mass[at].sum(-1).log()

    def model_log_probs(self, tokens: Tensor, at: Tensor) -> Tensor:
        """Returns log softmax(logits) of one token at each of some positions, [n]; both int64 [n]."""
        return self.logits[at, tokens] - self.certain.top[at] - self.certain.log_total[at]

    def entropy(self, at: Tensor) -> Tensor:
        """Returns the entropies of the behaviour distribution at some positions (int64 [n]), in nats: [n]."""

        def weighted(logits: Tensor, top: Tensor) -> Tensor:
            scaled = logits.sub_(top[:, None]).mul_(1 / self.temperature)  # a copy, as some positions are asked for
            probs = scaled.exp()
            return scaled.clamp_min_(torch.finfo(scaled.dtype).min).mul_(probs).sum(-1)

        total = self.mass[at].sum(-1)
        sums: Tensor = by_rows(weighted, self.logits, self.certain.top[at], at=at)
        return total.log() - sums / total

    def log_mass(self, at: Tensor, threshold: Tensor) -> Tensor:
        """Computes ``core.behaviour.log_mass`` at some positions (int64 [n]) and their thresholds [n]: [n].

        A block whose largest logit is below the threshold counts whole. Only those with tokens on both sides are looked
        at again: no more tokens are above a probability than it goes into 1.
        """
        certain = self.certain.at(at)
        # Rounding is monotonic: where the largest logit of a block is below, so are all of its logits.
        highest = self.highest[at]
        below = highest.sub(certain.top[:, None]).sub_(certain.log_total[:, None]) < threshold[:, None]
        mass = self.mass[at]
        inside = mass.masked_fill(~below, 0.0)
        for row, block in _pairs(~below & (mass > 0)):
            distance = self.block(at[row], block).sub_(certain.top[row, None])
            under = distance.sub(certain.log_total[row, None]).lt_(threshold[row, None])
            inside[row, block] = distance.mul_(1 / self.temperature).exp_().mul_(under).sum(-1)
        total = inside.sum(-1)
        out = total.log() - mass.sum(-1).log()
        tiny = (total < TINY).nonzero().squeeze(-1)
        if len(tiny):  # it may have underflowed
            given = (Behaviour(self.temperature), certain.at(tiny), threshold[tiny])
            out[tiny] = log_mass(self.logits, at[tiny], *given)
        return out

    def block(self, at: Tensor | None, block: Tensor) -> Tensor:
        """Returns a copy of one block of logits at each of some positions, [n, BLOCK]; int64 [n] both, None: all."""
        row = torch.arange(len(block)) if at is None else at
        return self.blocks.flatten(0, 1).index_select(0, row * self.blocks.shape[1] + block)

    def _scaled(self, logits: Tensor, at: Tensor | None) -> Tensor:
        """Returns (logits - top) / temperature, [n] or [n, m], in place."""
        top = self.certain.top if at is None else self.certain.top[at]
        return logits.sub_(top if logits.dim() == 1 else top[:, None]).mul_(1 / self.temperature)


def _pairs(chosen: Tensor, most: int = 1024) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields rows and columns of what is chosen (bool [n, K]), some at a time."""
    for part in chosen.nonzero().split(most):
        yield part[:, 0], part[:, 1]


def scanned(policy: Policy, features: Tensor, behaviour: Behaviour, scratch: Scratch) -> Scan | None:
    """Runs a policy's head on features [N, D], as ``scan``; None where it cannot, or the behaviour has filters."""
    weight = head_weight(policy, features)
    if weight is None or not len(features) or behaviour.temperature == 0 or behaviour.filters(len(weight)):
        return None
    return scan(weight, features, policy.forbidden_ids, behaviour, scratch)


def scan(
    weight: Tensor, features: Tensor, forbidden_ids: Sequence[int], behaviour: Behaviour, scratch: Scratch
) -> Scan:
    """Runs a head, without gradient.

    Args:
        weight: float32 [V, D], of the head (``head_weight``).
        features: float32 [N, D].
        forbidden_ids: tokens that are never committed.
        behaviour: at a temperature above 0, without filters.
        scratch: memory, in which the result lies until the next call.
    """
    count, vocab = len(features), len(weight)
    blocks = -(-vocab // BLOCK)
    held = _memory(scratch, "logits", (count, blocks, BLOCK))
    flat = held.flatten(1)
    flat[:, vocab:] = -torch.inf
    highest, at_one, mass = (features.new_empty(count, blocks) for _ in range(3))
    width = _width(count)
    for first, columns, forbidden in _tiles(weight, forbidden_ids, width):
        with phase("head"):
            torch.mm(features, columns.T, out=flat[:, first : first + len(columns)])
        here = slice(first // BLOCK, min(first + width, blocks * BLOCK) // BLOCK)
        tile = held[:, here]
        if forbidden is not None:
            tile.flatten(1).index_fill_(1, forbidden, -torch.inf)
        probs = _memory(scratch, "probs", tile.shape)
        torch.amax(tile, -1, out=highest[:, here])
        _sums(tile, probs, at_one[:, here])
        if behaviour.temperature != 1:
            inverse = 1 / behaviour.temperature
            scaled = _memory(scratch, "scaled", tile.shape)
            torch.add(highest[:, here, None].mul(-inverse), tile, alpha=inverse, out=scaled)
            _sums(scaled, probs, mass[:, here])
    top = highest.amax(-1)
    shift = highest - top[:, None]
    empty = highest == -torch.inf  # blocks of forbidden tokens only, whose sums are NaN
    at_one.masked_fill_(empty, 0.0).mul_(shift.exp())
    if behaviour.temperature == 1:
        mass = at_one
    else:
        mass.masked_fill_(empty, 0.0).mul_(shift.mul_(1 / behaviour.temperature).exp_())
    found = Scan(flat[:, :vocab], held, behaviour.temperature, highest, mass, Certainty(top, top, top, top))
    return found._replace(certain=_certainty(found, at_one))


def _sums(logits: Tensor, probs: Tensor, out: Tensor) -> None:
    """Computes the sums of exp(logit - largest logit) of each block, [N, K], of logits [N, K, BLOCK].

    The largest probability of a block is 1 over this sum, and a softmax goes once over what exponential and sum would
    go over twice.
    """
    torch.softmax(logits, -1, out=probs)
    torch.amax(probs, -1, out=out)
    out.reciprocal_()


def _certainty(found: Scan, at_one: Tensor) -> Certainty:
    """Computes the certainty from the sums of exp(logit - top), [N, K]."""
    total = at_one.sum(-1)
    log_total, dominant, top = total.log(), total < 2, found.certain.top
    best = -log_total
    rows = dominant.nonzero().squeeze(-1)
    if len(rows):  # total - 1 would lose the others' mass to rounding
        block = found.highest[rows].argmax(-1)
        inside = found.block(rows, block)
        inside.scatter_(1, inside.argmax(-1, keepdim=True), -torch.inf)
        elsewhere = at_one[rows].scatter_(1, block[:, None], 0.0).sum(-1)
        others = elsewhere + inside.sub_(top[rows, None]).exp_().sum(-1)
        best[rows] = -(others / total[rows]).log() - 2 * math.log(2)
    return Certainty(top, log_total, dominant, best)


def best_in_tiles(weight: Tensor, features: Tensor, forbidden_ids: Sequence[int]) -> Tensor:
    """Returns the most probable tokens, int64 [N]; arguments as ``scan``. No more than a tile of logits is kept."""
    best = features.new_full((len(features),), -torch.inf)
    tokens = torch.zeros(len(features), dtype=torch.int64)
    scratch: Scratch = {}
    for part, highest, found in zip(*(values.split(BLOCK) for values in (features, best, tokens)), strict=True):
        for first, columns, forbidden in _tiles(weight, forbidden_ids, _width(len(part))):
            tile = _memory(scratch, "tile", (len(part), len(columns)))
            with phase("head"):
                torch.mm(part, columns.T, out=tile)
            if forbidden is not None:
                tile.index_fill_(1, forbidden, -torch.inf)
            most = tile.amax(-1)
            better = (most > highest).nonzero().squeeze(-1)  # few, after the first tiles: to find the index is slow
            if len(better):
                highest[better] = most[better]
                found[better] = first + tile[better].argmax(-1)
    return tokens


def _width(count: int) -> int:
    """Returns the columns of a tile for so many positions, a multiple of ``BLOCK``."""
    return min(max(_TILE // max(count, 1) // BLOCK, 1) * BLOCK, _WIDEST)


def _tiles(weight: Tensor, forbidden_ids: Sequence[int], width: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Cuts a head into tiles: first token, weights [at most width, D], and forbidden columns, int64; None: none."""
    forbidden = sorted(forbidden_ids)
    for first in range(0, len(weight), width):
        here = forbidden[bisect_left(forbidden, first) : bisect_left(forbidden, first + width)]
        yield first, weight[first : first + width], torch.tensor(here) - first if here else None


def _memory(scratch: Scratch, name: str, shape: Sequence[int]) -> Tensor:
    """Returns a tensor of this shape in the memory of this name, which grows if it is too small."""
    size = math.prod(shape)
    if name not in scratch or scratch[name].numel() < size:
        scratch.pop(name, None)  # before more is taken
        scratch[name] = torch.empty(size)
    return scratch[name][:size].view(*shape)
