"""Whether two final answers of mathematics are the same.

Numbers are compared exactly, as fractions, and equal texts are equal. Everything else goes to ``math-verify``, which
reads LaTeX with sympy: it may take long or all the memory, so ``verified`` runs in a worker process with limits.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from fractions import Fraction

MAX_LENGTH = 1000
"""Longest answer that is read; a longer one is only equal to the same text."""

_NUMBER = re.compile(r"([-+]?)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?")
_MOST_DIGITS = 100


def plainly_equal(answer: str, truth: str) -> bool | None:
    """Tells whether two answers are the same, where that is plain: equal texts, or two numbers; None elsewhere."""
    left, right = _trimmed(answer), _trimmed(truth)
    if left == right:
        return bool(left)
    numbers = number_in(left), number_in(right)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return False if not left or max(len(left), len(right)) > MAX_LENGTH else None


def number_in(text: str) -> Fraction | None:
    """Returns the number that a text is: ``-3``, ``1,234.50``, ``.5``, ``3/4``; None for anything else."""
    parts = [_decimal(part) for part in text.split("/")] if len(text) <= _MOST_DIGITS else []
    if len(parts) not in (1, 2) or any(part is None for part in parts):
        return None
    above, below = parts[0], parts[1] if len(parts) == 2 else Fraction(1)
    return above / below if above is not None and below else None


def _decimal(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text.strip()) if text.isascii() else None
    if match is None or not (match[2] or match[3]):
        return None
    return Fraction(match[1] + (match[2] or "0").replace(",", "") + (match[3] or ""))


def _trimmed(text: str) -> str:
    """Returns an answer without what surrounds it: dollar signs of LaTeX, white space, a full stop."""
    text = text.strip().removesuffix(".").strip()
    if len(text) > 1 and text.startswith("$") and text.endswith("$"):
        text = text.strip("$")
    return " ".join(text.replace(r"\ ", " ").replace(r"\!", "").split())


def load_verifier() -> Callable[[tuple[str, str]], bool]:
    """Imports ``math-verify`` and returns ``verified``; for a worker process."""
    import math_verify

    logging.getLogger("math_verify").disabled = True
    assert math_verify.verify
    return verified


def verified(pair: tuple[str, str]) -> bool:
    """Tells whether ``math-verify`` takes an answer and the truth for the same.

    It sets no signals here, which only a main thread may do: whoever calls it limits its time.

    Args:
        pair: the answer, then the truth.
    """
    from math_verify import parse, verify

    answer, truth = (parse(f"${_trimmed(text)}$", parsing_timeout=None) for text in pair)
    return bool(verify(truth, answer, timeout_seconds=None))
