"""From logits to the behaviour distribution: the one function that samplers and exact likelihoods share.

Forbidden tokens are excluded first; temperature, top-k and top-p follow in this order. Samplers draw from the same
tensor that exact likelihoods score with, so that the ratio of new to old probabilities is 1 before the first update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from dlmrl_kit.core.errors import NotFiniteError

LOG_ZERO = -100.0
"""Log-probability of an action that the current policy cannot take: finite, and small enough to make every ratio 0."""

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 (ratios from 2e-9 to 5e8) so that none overflows; outside, their gradient is 0."""


@dataclass(frozen=True)
class Behaviour:
    """Says how logits become the distribution that is sampled from.

    Args:
        temperature: divides the logits; 0 puts all mass on the argmax.
        top_k: only the k most probable tokens, and any that tie with the last of them, can be drawn; 0 excludes none.
        top_p: only the smallest set of most probable tokens whose mass reaches top_p can be drawn; 1 excludes none.

    Raises:
        ValueError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {self.temperature!r}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 keeps every token), got {self.top_k!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p!r}")

    def filters(self, vocab: int) -> bool:
        """Returns whether top-k or top-p may exclude tokens of a vocabulary of this size."""
        return 0 < self.top_k < vocab or self.top_p < 1


Process: TypeAlias = Callable[[Tensor, slice], Tensor]
"""Changes logits [n, V] before they become a behaviour distribution; see ``samplers.base.Sampler.processing``."""


def forbid(logits: Tensor, forbidden_ids: Sequence[int]) -> Tensor:
    """Sets the logits of forbidden tokens to -inf: [..., V] from [..., V], in float32, or float64 if they were.

    In inference mode, float logits are changed in place to save memory.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if not forbidden_ids:
        return logits
    index = torch.as_tensor(list(forbidden_ids)).to(logits.device, non_blocking=True)
    fill = logits.index_fill_ if torch.is_inference_mode_enabled() else logits.index_fill
    return fill(-1, index, -torch.inf)


def behaviour_log_probs(logits: Tensor, behaviour: Behaviour) -> Tensor:
    """Computes the log-probabilities of the behaviour distribution.

    Args:
        logits: float32 or float64 [..., V], forbidden tokens at -inf (see ``forbid``).
        behaviour: temperature and filters.

    Returns:
        [..., V] of the same dtype, normalised; -inf at tokens that cannot be drawn. Differentiable: the set of tokens
        that can be drawn is treated as constant, which it is almost everywhere.
    """
    if behaviour.temperature == 0:
        greedy = torch.full_like(logits, -torch.inf)
        return greedy.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    scaled = logits / behaviour.temperature if behaviour.temperature != 1 else logits
    if 0 < behaviour.top_k < logits.shape[-1]:
        smallest = scaled.detach().topk(behaviour.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < smallest, -torch.inf)
    if behaviour.top_p < 1:
        ordered, order = scaled.detach().softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= behaviour.top_p)
        scaled = scaled.masked_fill(drop, -torch.inf)
    return scaled.log_softmax(-1)


def behaviour_probs(logits: Tensor, behaviour: Behaviour) -> Tensor:
    """Computes the probabilities of the behaviour distribution, [..., V] from [..., V], for use without gradients."""
    if behaviour.temperature > 0 and not behaviour.filters(logits.shape[-1]):
        return (logits / behaviour.temperature if behaviour.temperature != 1 else logits).softmax(-1)
    return behaviour_log_probs(logits, behaviour).exp_()


def sample(log_probs: Tensor, noise: Tensor) -> Tensor:
    """Draws one token from each distribution by inverse transform sampling.

    Noise and cumulative sums are float64, so that improbable tokens come up as often as they should (a Gumbel draw in
    bfloat16 misses them), and a token of probability 0 never does.

    Args:
        log_probs: [N, V].
        noise: float64 [N], uniform in [0, 1).

    Returns:
        int64 [N].
    """
    return invert(log_probs.exp(), noise.clamp(max=MOST))


def draw(logits: Tensor, behaviour: Behaviour, noise: Tensor) -> Tensor:
    """Draws as ``sample``, but from logits [N, V], and in pieces, so that no second tensor of their size is made."""

    def tokens(piece: Tensor, noise: Tensor) -> Tensor:
        return invert(behaviour_probs(piece, behaviour), noise)

    return by_rows(tokens, logits, noise.clamp(max=MOST))


MOST = 1 - 2**-32  # times a total it stays below the total


def invert(weights: Tensor, noise: Tensor) -> Tensor:
    """Finds the token at which the cumulative sum of ``weights`` passes ``noise`` times their total.

    In a large vocabulary, first the block of tokens is found by the sums of all blocks, then the token in it: float64
    cumulative sums over the whole vocabulary would take more time than the rest of a draw.

    Args:
        weights: [N, V], at least 0, not all 0.
        noise: float64 [N], at least 0 and below 1.

    Returns:
        int64 [N]; never a token of weight 0.
    """
    vocab = weights.shape[-1]
    if vocab <= 4 * _BLOCK:
        return search(weights, noise)[0]
    whole = vocab // _BLOCK * _BLOCK
    sums = weights[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1)
    if whole < vocab:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=-1)
    block, rest = search(sums, noise)
    index = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(-1, index.clamp(max=vocab - 1)).masked_fill_(index >= vocab, 0.0)
    return block * _BLOCK + search(inside, rest)[0]


_BLOCK = 256


def search(weights: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Finds where the cumulative sum passes noise * total, and how far it is into that weight, as a share in [0, 1).

    Given where the noise falls, the share is uniform again: it serves as noise for a search within a block.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    target = (noise * cumulative[..., -1]).unsqueeze(-1)
    found = torch.searchsorted(cumulative, target, right=True)
    beyond = weights.shape[-1] - 1  # NaN is beyond every weight; elsewhere than on a CPU, to ask would be to wait
    if found.device.type == "cpu" and bool((found > beyond).any()):
        raise NotFiniteError("the policy's probabilities are not finite: its weights are too large, or not finite")
    found = found.clamp_(max=beyond)
    end = cumulative.gather(-1, found)
    width = weights.gather(-1, found).double()
    return found.squeeze(-1), ((target - (end - width)) / width).clamp_(0, MOST).squeeze(-1)


def by_rows(function: Callable[..., Any], values: Tensor, *others: Tensor, at: Tensor | None = None) -> Any:
    """Calls ``function(values, *others)`` on pieces that fit in a processor's cache, and concatenates the results.

    For functions that treat each row by itself. Where gradients are recorded, the function is called once with
    everything, as the graph would hold all pieces anyway.

    Args:
        function: takes [n, V] and the matching rows of ``others``; returns a tensor [n, ...] or a tuple of them.
        values: [N, V].
        others: [N, ...] each; [n, ...] with ``at``.
        at: int64 [n], the rows of ``values`` to use; None: all.
    """
    size = _piece_rows(values)
    rows = len(values) if at is None else len(at)
    if rows <= size or (torch.is_grad_enabled() and values.requires_grad):
        return function(values if at is None else values[at], *others)
    parts = values.split(size) if at is None else (values.index_select(0, part) for part in at.split(size))
    pieces = [function(*piece) for piece in zip(parts, *(t.split(size) for t in others), strict=True)]
    if isinstance(pieces[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))
    return torch.cat(pieces)


_PIECE_BYTES = {True: 2**20, False: 128 * 2**20}  # on a CPU, elsewhere


def _piece_rows(values: Tensor) -> int:
    """Returns how many rows of ``values`` [N, V] fit in a processor's cache, at least 1."""
    return max(1, _PIECE_BYTES[values.device.type == "cpu"] // (values.shape[-1] * values.element_size()))


def entropy(log_probs: Tensor) -> Tensor:
    """Computes Shannon entropies in nats, [...] from log-probabilities [..., V]; tokens at -inf count as 0.

    The gradient is finite at tokens at -inf, too, where p log p would give NaN.
    """
    finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
    return -(log_probs.exp() * finite).sum(-1)


def entropy_(log_probs: Tensor) -> Tensor:
    """Computes ``entropy`` without a gradient in about half the time, and overwrites ``log_probs``."""
    probs = log_probs.exp()
    return log_probs.clamp_min_(torch.finfo(log_probs.dtype).min).mul_(probs).sum(-1).neg_()


class Certainty(NamedTuple):
    """Holds what turns the logits of N positions into confidences; [N] each, without gradient.

    Attributes:
        top: the largest logit.
        log_total: log sum exp(logits - top).
        dominant: whether the best token has a probability above 1/2.
        best: confidence of the best token.
    """

    top: Tensor
    log_total: Tensor
    dominant: Tensor
    best: Tensor

    def confidence(self, logits: Tensor) -> Tensor:
        """Computes ``confidence`` of tokens with these logits: one at each position, [N], or several, [N, n]."""
        top, log_total, dominant, best = (t if logits.dim() == 1 else t[:, None] for t in self)
        return torch.where(dominant & (logits == top), best, logits - top - log_total)

    def at(self, index: Tensor) -> Certainty:
        """Returns the values of some positions, given by index or mask."""
        return Certainty(*(values[index] for values in self))

    def threshold(self, bar: Tensor, ties: Tensor) -> Tensor:
        """Finds t [N] such that the tokens with logit - top - log_total < t are just those less confident than ``bar``.

        A comparison with t costs less than the confidence of every token of the vocabulary.

        Args:
            bar: [N], a confidence.
            ties: bool [N], whether tokens as confident as ``bar`` count as less confident.
        """
        # A dominant best token has a confidence of its own formula, so it is compared by that and not by its logit.
        above = torch.where(ties, bar.nextafter(torch.full_like(bar, torch.inf)), bar)
        best_too = (self.best < bar) | ((self.best == bar) & ties)
        without_best = torch.minimum(above, -self.log_total)
        return torch.where(self.dominant, without_best.masked_fill(best_too, torch.inf), above)


def certainty(logits: Tensor) -> Certainty:
    """Computes ``Certainty`` from logits [N, V], forbidden tokens at -inf."""
    return Certainty(*by_rows(_certainty, logits.detach()))


def _certainty(logits: Tensor) -> tuple[Tensor, ...]:
    probs = logits.softmax(-1)
    highest = probs.amax(-1)
    dominant = highest > 0.5
    best = highest.log()
    # 1 - highest would lose the others' mass to rounding. A GPU has time for all rows, but not to say which are meant.
    rows = dominant.nonzero().squeeze(-1) if logits.device.type == "cpu" else None
    if rows is None or len(rows):
        others = probs if rows is None else probs[rows]
        others = -others.masked_fill_(others > 0.5, 0.0).sum(-1).log() - 2 * math.log(2)
        best = torch.where(dominant, others, best) if rows is None else best.index_copy(0, rows, others)
    return logits.amax(-1), -highest.log(), dominant, best


def confidence(logits: Tensor) -> Tensor:
    """Computes the confidence of every token: with c = softmax(logits), log c up to 1/2, -log(1 - c) - 2 log 2 above.

    It orders tokens and positions exactly as c does. In float32, c itself rounds to 1 for confident tokens, which would
    make their order arbitrary.

    Args:
        logits: [N, V], forbidden tokens at -inf.

    Returns:
        [N, V], without gradient.
    """
    return certainty(logits).confidence(logits.detach())


def confidence_of(probability: float) -> float:
    """Computes ``confidence`` from a probability in (0, 1]."""
    if probability <= 0.5:
        return math.log(probability)
    return -math.log1p(-probability) - 2 * math.log(2) if probability < 1 else math.inf


def log_mass(logits: Tensor, at: Tensor, behaviour: Behaviour, certain: Certainty, threshold: Tensor) -> Tensor:
    """Computes the log of the behaviour probability that a draw is less confident than a threshold; differentiable.

    Args:
        logits: [N, V].
        at: int64 [n], the positions to use.
        behaviour: temperature and filters.
        certain: of these n positions.
        threshold: [n], from ``Certainty.threshold``; the set of tokens below it is treated as constant.

    Returns:
        [n]; ``LOG_ZERO`` without gradient where no token is below the threshold.
    """
    given = (certain.top, certain.log_total, threshold)
    if torch.is_grad_enabled() and logits.requires_grad:
        few = len(at) <= _piece_rows(logits)  # whose graph is small
        if few or behaviour.temperature == 0:
            return _log_mass(logits[at], behaviour, *given)
        found: Tensor = _LogMass.apply(logits, at, behaviour, *given)  # type: ignore[no-untyped-call]
        return found

    def mass(piece: Tensor, *given: Tensor) -> Tensor:
        return _below(piece, *given).mul_(behaviour_probs(piece, behaviour)).sum(-1)

    if logits.device.type != "cpu":  # which sums are tiny, a GPU would have to be waited for
        in_logs: Tensor = by_rows(lambda piece, *given: _log_mass(piece, behaviour, *given), logits, *given, at=at)
        return in_logs
    total = by_rows(mass, logits, *given, at=at)
    out = total.log()
    tiny = (total < TINY).nonzero().squeeze(-1)
    if len(tiny):
        out[tiny] = _log_mass(logits[at[tiny]], behaviour, *(t[tiny] for t in given))
    return out


TINY = 1e-30
"""Sums of probabilities below this may have underflowed, and are computed again in logs."""


def _below(logits: Tensor, top: Tensor, log_total: Tensor, threshold: Tensor) -> Tensor:
    """Returns 1 at the tokens below the threshold and 0 elsewhere, [n, V] of the dtype of logits: faster than bool."""
    return logits.sub(top[:, None]).sub_(log_total[:, None]).lt_(threshold[:, None])


def _log_mass(logits: Tensor, behaviour: Behaviour, top: Tensor, log_total: Tensor, threshold: Tensor) -> Tensor:
    below = logits.detach() - top[:, None] - log_total[:, None] < threshold[:, None]
    log_probs = behaviour_log_probs(logits, behaviour)
    possible = (below & (log_probs > -torch.inf)).any(-1)
    masked = log_probs.masked_fill(~below, -torch.inf)
    # The gradient of logsumexp over nothing but -inf is NaN, also where its value is not used.
    safe = torch.where(possible[:, None], masked, torch.zeros_like(masked))
    return torch.where(possible, safe.logsumexp(-1), LOG_ZERO)


class _LogMass(torch.autograd.Function):
    """``log_mass``, whose derivative is computed with the value, from one softmax and in pieces.

    For B, the tokens below the threshold, and temperature T:  d log_mass / d logit_v = (p_v [v in B] / p(B) - p_v) / T.
    A graph would hold about eight tensors of the size of the logits; this one holds the derivative.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, at: Tensor, behaviour: Behaviour, top: Tensor, log_total: Tensor, threshold: Tensor
    ) -> Tensor:
        size, given = _piece_rows(logits), (top, log_total, threshold)
        derivative, out = logits.new_empty(len(at), logits.shape[-1]), logits.new_empty(len(at))
        for first in range(0, len(at), size):
            rows = slice(first, first + size)
            piece, limits = logits.index_select(0, at[rows]), [t[rows] for t in given]
            probs = behaviour_probs(piece, behaviour)
            inside = _below(piece, *limits).mul_(probs)
            mass = inside.sum(-1)
            out[rows] = mass.log()
            torch.sub(inside.div_(mass[:, None]), probs, out=derivative[rows]).div_(behaviour.temperature)
            tiny = (mass < TINY).nonzero().squeeze(-1)
            if len(tiny):
                with torch.enable_grad():
                    again = piece[tiny].requires_grad_()
                    values = _log_mass(again, behaviour, *(t[tiny] for t in limits))
                    derivative[rows][tiny] = torch.autograd.grad(values.sum(), again)[0]
                out[rows][tiny] = values.detach()
        ctx.save_for_backward(derivative, at)
        ctx.positions = len(logits)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        derivative, at = ctx.saved_tensors
        rows = derivative * gradients[0][:, None]
        if len(at) == ctx.positions:
            return rows, None, None, None, None, None
        whole = rows.new_zeros(ctx.positions, rows.shape[-1])
        return whole.index_add_(0, at, rows), None, None, None, None, None  # in place: no second copy of this size
