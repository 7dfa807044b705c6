"""Slow, independent versions of what the kit computes: plain Python in double precision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def loop_probs(
    logits: Sequence[float],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    forbidden: Iterable[int] = (),
) -> list[float]:
    """The behaviour distribution of one position; tokens as probable as the k-th are kept with it."""
    forbidden = set(forbidden)
    possible = [v for v in range(len(logits)) if v not in forbidden]
    best = max(logits[v] for v in possible)
    if temperature == 0:
        first = min(v for v in possible if logits[v] == best)
        return [float(v == first) for v in range(len(logits))]
    mass = {v: math.exp((logits[v] - best) / temperature) for v in possible}
    if top_k:
        least = sorted(mass.values(), reverse=True)[:top_k][-1]
        mass = {v: m for v, m in mass.items() if m >= least}
    if top_p < 1:
        total, before = math.fsum(mass.values()), 0.0
        kept = {}
        for v in sorted(mass, key=lambda v: (-mass[v], v)):
            if before / total >= top_p:
                break
            kept[v] = mass[v]
            before += mass[v]
        mass = kept
    total = math.fsum(mass.values())
    return [mass.get(v, 0.0) / total for v in range(len(logits))]


def loop_entropy(probs: Iterable[float]) -> float:
    """Entropy in nats."""
    return -math.fsum(p * math.log(p) for p in probs if p > 0)


def log_odds(logits: Sequence[float], forbidden: Iterable[int] = ()) -> list[float]:
    """log c - log(1 - c) with c = softmax(logits), without cancellation; -inf at forbidden tokens."""
    forbidden = set(forbidden)
    out = []
    for v, own in enumerate(logits):
        others = [value for u, value in enumerate(logits) if u != v and u not in forbidden]
        if v in forbidden:
            out.append(-math.inf)
        elif not others:
            out.append(math.inf)
        else:
            best = max(others)
            out.append(own - best - math.log(math.fsum(math.exp(value - best) for value in others)))
    return out
