"""A chi-square check of counts against probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence


def chi_square_limit(degrees: int, z: float = 4.5) -> float:
    """What chi-square with so many degrees of freedom exceeds with probability about 3e-6 (Wilson and Hilferty)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + z * math.sqrt(spread)) ** 3


def chi_square(counts: Sequence[float], probs: Sequence[float]) -> tuple[float, int]:
    """Chi-square of counts against probabilities, and its degrees of freedom; cells expected below 5 are merged.

    A count where the probability is 0 gives infinity.
    """
    total = sum(counts)
    if any(c > 0 and p == 0 for c, p in zip(counts, probs, strict=True)):
        return math.inf, 1
    cells = [(c, p * total) for c, p in zip(counts, probs, strict=True) if p > 0]
    rare = [cell for cell in cells if cell[1] < 5]
    cells = [cell for cell in cells if cell[1] >= 5]
    if rare:
        cells.append((sum(c for c, _ in rare), sum(e for _, e in rare)))
    return sum((c - e) ** 2 / e for c, e in cells), len(cells) - 1
