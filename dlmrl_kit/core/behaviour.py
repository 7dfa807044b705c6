"""Logits -> behaviour distribution: the one function that samplers and exact likelihoods share.

Order of operations: forbidden tokens, temperature, top-k, top-p. The distribution a sampler draws from and the one an
exact estimator scores with are the same tensor by construction, so the old/new ratio is 1 before the first update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

LOG_ZERO = -100.0
"""Floor for the log-probability of an action that the current policy cannot take (exp(-100) is 0 for every ratio)."""

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 (ratios to 2e-9 .. 5e8) so that none overflows; beyond it the gradient is 0."""


@dataclass(frozen=True)
class Behaviour:
    """How logits become a sampling distribution.

    Args:
        temperature: divides the logits; 0 means greedy (all mass on the argmax).
        top_k: keep the k most probable tokens, and those as probable as the last of them; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches top_p; 1 keeps all.

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
        """Whether top-k or top-p leaves tokens out of a vocabulary of this size."""
        return 0 < self.top_k < vocab or self.top_p < 1


Process: TypeAlias = Callable[[Tensor, slice], Tensor]
"""What a sampler does to logits before its behaviour distribution; see ``samplers.base.Sampler.processing``."""


def forbid(logits: Tensor, forbidden_ids: Sequence[int]) -> Tensor:
    """Logits in float32 or better with the forbidden tokens at -inf: [..., V] -> [..., V].

    In inference mode float logits are changed in place.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if not forbidden_ids:
        return logits
    index = torch.as_tensor(list(forbidden_ids), device=logits.device)
    fill = logits.index_fill_ if torch.is_inference_mode_enabled() else logits.index_fill
    return fill(-1, index, -torch.inf)


def behaviour_log_probs(logits: Tensor, behaviour: Behaviour) -> Tensor:
    """Log-probabilities of the behaviour distribution.

    Args:
        logits: float32 or float64 [..., V], forbidden tokens at -inf (see ``forbid``).
        behaviour: temperature and filters.

    Returns:
        [..., V] of the same dtype, normalised; -inf at filtered tokens. Differentiable: the kept set is held fixed,
        which is exact almost everywhere.
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
    """Probabilities of the behaviour distribution, [..., V] from [..., V], where no gradient is needed."""
    if behaviour.temperature > 0 and not behaviour.filters(logits.shape[-1]):
        return (logits / behaviour.temperature if behaviour.temperature != 1 else logits).softmax(-1)
    return behaviour_log_probs(logits, behaviour).exp_()


def sample(log_probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One token per distribution by inverting the cumulative distribution: int64 [N] from [N, V].

    The uniform noise and the cumulative sums are float64, so the tail keeps its mass (a Gumbel draw in bfloat16 loses
    it), and a token of probability 0 is never drawn.
    """
    return invert(log_probs.exp(), _noise(log_probs, generator))


def draw(logits: Tensor, behaviour: Behaviour, generator: torch.Generator | None = None) -> Tensor:
    """As ``sample``, from logits [N, V], in pieces (see ``by_rows``): no second tensor of their size."""

    def tokens(piece: Tensor, noise: Tensor) -> Tensor:
        return invert(behaviour_probs(piece, behaviour), noise)

    return by_rows(tokens, logits, _noise(logits, generator))


def _noise(values: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.rand(values.shape[:-1], generator=generator, device=values.device, dtype=torch.float64)
    return noise.clamp_(max=1 - 2**-32)


def invert(weights: Tensor, noise: Tensor) -> Tensor:
    """The token at which the cumulative sum of ``weights`` passes ``noise`` times their total.

    A large vocabulary is searched twice: for a block of tokens by the blocks' sums, then within it. Cumulative sums are
    float64; that of a whole large vocabulary would cost more than everything else in a draw.

    Args:
        weights: [N, V], at least 0, not all 0.
        noise: float64 [N], at least 0 and below 1.

    Returns:
        int64 [N]; never a token of weight 0.
    """
    vocab = weights.shape[-1]
    if vocab <= 4 * _BLOCK:
        return _search(weights, noise)[0]
    whole = vocab // _BLOCK * _BLOCK
    sums = weights[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1)
    if whole < vocab:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=-1)
    block, rest = _search(sums, noise)
    index = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(-1, index.clamp(max=vocab - 1)).masked_fill_(index >= vocab, 0.0)
    return block * _BLOCK + _search(inside, rest)[0]


_BLOCK = 256


def _search(weights: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cumulative sum passes noise * total, and how far into that entry, as noise for a search within it."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    target = (noise * cumulative[..., -1]).unsqueeze(-1)
    found = torch.searchsorted(cumulative, target, right=True)
    end = cumulative.gather(-1, found)
    width = weights.gather(-1, found).double()
    return found.squeeze(-1), ((target - (end - width)) / width).clamp_(0, 1 - 2**-32).squeeze(-1)


def by_rows(function: Callable[..., Any], values: Tensor, *others: Tensor, at: Tensor | None = None) -> Any:
    """``function(values, *others)`` in pieces of rows that stay in a processor's cache, concatenated.

    For functions of single rows. Where gradients are recorded the function is called once, with everything: pieces
    would save nothing.

    Args:
        function: of [n, V] and the matching rows of ``others``; returns a tensor [n, ...] or a tuple of them.
        values: [N, V].
        others: [N, ...] each; [n, ...] with ``at``.
        at: int64 [n], the rows of ``values`` to use; None: all.
    """
    size = max(1, _PIECE_BYTES[values.device.type == "cpu"] // (values.shape[-1] * values.element_size()))
    rows = len(values) if at is None else len(at)
    if rows <= size or (torch.is_grad_enabled() and values.requires_grad):
        return function(values if at is None else values[at], *others)
    parts = values.split(size) if at is None else (values.index_select(0, part) for part in at.split(size))
    pieces = [function(*piece) for piece in zip(parts, *(t.split(size) for t in others), strict=True)]
    if isinstance(pieces[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))
    return torch.cat(pieces)


_PIECE_BYTES = {True: 2**20, False: 128 * 2**20}  # on a CPU, elsewhere


def entropy(log_probs: Tensor) -> Tensor:
    """Shannon entropy in nats, [...] from [..., V]; filtered tokens (-inf) count 0, in value and gradient."""
    finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
    return -(log_probs.exp() * finite).sum(-1)


def entropy_(log_probs: Tensor) -> Tensor:
    """As ``entropy``, where no gradient is needed; overwrites ``log_probs``, in half the time for it."""
    probs = log_probs.exp()
    return log_probs.clamp_min_(torch.finfo(log_probs.dtype).min).mul_(probs).sum(-1).neg_()


class Certainty(NamedTuple):
    """What turns a position's logits into confidences; [N] each, without gradient.

    ``top``: the largest logit; ``log_total``: log sum exp(logits - top); ``dominant``: whether the best token has
    probability above 1/2; ``best``: confidence of the best token.
    """

    top: Tensor
    log_total: Tensor
    dominant: Tensor
    best: Tensor

    def confidence(self, logits: Tensor) -> Tensor:
        """Confidence of tokens with the given logits, [N] or [N, n]: see ``confidence``."""
        top, log_total, dominant, best = (t if logits.dim() == 1 else t[:, None] for t in self)
        return torch.where(dominant & (logits == top), best, logits - top - log_total)

    def at(self, index: Tensor) -> Certainty:
        """That of some of the positions, by index or mask."""
        return Certainty(*(values[index] for values in self))

    def threshold(self, bar: Tensor, ties: Tensor) -> Tensor:
        """The number t [N] such that exactly the tokens with logit - top - log_total < t are less confident than bar.

        Args:
            bar: [N], a confidence.
            ties: bool [N], whether tokens as confident as ``bar`` count as less confident.
        """
        above = torch.where(ties, bar.nextafter(torch.full_like(bar, torch.inf)), bar)
        best_too = (self.best < bar) | ((self.best == bar) & ties)
        without_best = torch.minimum(above, -self.log_total)
        return torch.where(self.dominant, without_best.masked_fill(best_too, torch.inf), above)


def certainty(logits: Tensor) -> Certainty:
    """See ``Certainty``: from [N, V], forbidden tokens at -inf."""
    return Certainty(*by_rows(_certainty, logits.detach()))


def _certainty(logits: Tensor) -> tuple[Tensor, ...]:
    probs = logits.softmax(-1)
    highest = probs.amax(-1)
    dominant = highest > 0.5
    best = highest.log()
    rows = dominant.nonzero().squeeze(-1)
    if len(rows):  # 1 - highest would lose the others' mass to rounding
        others = probs[rows]
        others = others.masked_fill_(others > 0.5, 0.0).sum(-1)
        best = best.index_copy(0, rows, -others.log() - 2 * math.log(2))
    return logits.amax(-1), -highest.log(), dominant, best


def confidence(logits: Tensor) -> Tensor:
    """Confidence of every token, with c = softmax(logits): log c up to c = 1/2, -log(1 - c) - 2 log 2 above.

    Orders tokens and positions exactly as c does. In float32 c itself rounds to 1 for confident tokens, which would
    make the order among confident positions arbitrary; this keeps it. Below 1/2 it needs no logarithm of its own.

    Args:
        logits: [N, V], forbidden tokens at -inf.

    Returns:
        [N, V], without gradient.
    """
    return certainty(logits).confidence(logits.detach())


def confidence_of(probability: float) -> float:
    """The confidence of a token of this probability c, 0 < c <= 1: see ``confidence``."""
    if probability <= 0.5:
        return math.log(probability)
    return -math.log1p(-probability) - 2 * math.log(2) if probability < 1 else math.inf


def log_mass(logits: Tensor, at: Tensor, behaviour: Behaviour, certain: Certainty, threshold: Tensor) -> Tensor:
    """log of the behaviour probability of the tokens below a threshold, [n] from logits [N, V]; differentiable.

    Args:
        logits: [N, V].
        at: int64 [n], the positions to use.
        certain: of these n positions.
        threshold: [n], from ``Certainty.threshold``; the set of tokens is held fixed.

    Returns:
        [n]; ``LOG_ZERO`` without gradient where no token is left.
    """
    given = (certain.top, certain.log_total, threshold)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _log_mass(logits[at], behaviour, *given)

    def mass(piece: Tensor, top: Tensor, log_total: Tensor, threshold: Tensor) -> Tensor:
        below = piece.sub(top[:, None]).sub_(log_total[:, None]).lt_(threshold[:, None])  # 1 or 0: faster than bool
        return below.mul_(behaviour_probs(piece, behaviour)).sum(-1)

    total = by_rows(mass, logits, *given, at=at)
    out = total.log()
    tiny = (total < 1e-30).nonzero().squeeze(-1)  # what underflow may have reached
    if len(tiny):
        out[tiny] = _log_mass(logits[at[tiny]], behaviour, *(t[tiny] for t in given))
    return out


def _log_mass(logits: Tensor, behaviour: Behaviour, top: Tensor, log_total: Tensor, threshold: Tensor) -> Tensor:
    below = logits.detach() - top[:, None] - log_total[:, None] < threshold[:, None]
    log_probs = behaviour_log_probs(logits, behaviour)
    possible = (below & (log_probs > -torch.inf)).any(-1)
    masked = log_probs.masked_fill(~below, -torch.inf)
    safe = torch.where(possible[:, None], masked, torch.zeros_like(masked))
    return torch.where(possible, safe.logsumexp(-1), LOG_ZERO)
