"""Whether two final answers of mathematics are the same.

Numbers are compared exactly, as fractions, and equal texts are equal. Everything else goes to ``math-verify``, which
reads LaTeX with sympy: it may take long or all the memory, so ``verified`` runs in a worker process with limits.

Units do not count, nor does a base that only one of the two states: the question says in which it asks. A percentage
equals its number and its fraction, 50% both 50 and 1/2. A rounded number is not the exact one, and a set is no pair.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from fractions import Fraction

MAX_LENGTH = 1000
"""Longest answer that is read; a longer one is only equal to the same text."""
MAX_NUMBER = 100
"""Longest number that is read as one, in characters."""

_DECIMAL = re.compile(r"([-+]?)\s*(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?([eE][-+]?\d{1,2})?")
_NOTHING = re.compile(r"\\?\$|(?<!\\)\\!|(?<=\d)(?:\\,|\{,\}(?:\\!)?)(?=\d{3})")
_SPACE = re.compile(r"(?<!\\)\\[ ,;:]|(?<!\\)\\q?quad(?![A-Za-z])")
_MIXED = re.compile(r"(?<![\d.,/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_BASE = re.compile(r"(.*[0-9A-Za-z])_\{?(\d+)\}?")
_VALUE = re.compile(r"([-+]?[\d.,/]*\d(?:\s+\d+/\d+)?)(\s|~)+")
_UNIT = re.compile(r"([A-Za-z]{2,})\.?(?:\^\{?[23]\}?)?")
_NO_UNITS = frozenset(
    {"and", "or", "to", "pi", "sqrt", "log", "ln", "exp", "sin", "cos", "tan", "mod", "times", "over", "infinity"}
    | {"hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "quarter", "infty"}
)
"""Words behind a number that are part of its value."""


def plainly_equal(answer: str, truth: str) -> bool | None:
    """Tells whether two answers are the same, where that is plain: equal texts, or two numbers; None elsewhere."""
    if max(len(answer), len(truth)) > MAX_LENGTH:
        return answer.strip() == truth.strip()
    left, right = _trimmed(answer), _trimmed(truth)
    if left == right or not left:
        return bool(left)
    bases = [_BASE.fullmatch(text) for text in (left, right)]
    if bases[0] and bases[1]:
        return bases[0].groups() == bases[1].groups()
    if {_outer(left), _outer(right)} == {"{", "("}:
        return False
    (first, share), (second, other_share) = _number(left), _number(right)
    if first is None or second is None:
        return None
    scaled = first / (100 if share else 1), second / (100 if other_share else 1)
    return first == second or scaled[0] == scaled[1]


def _number(text: str) -> tuple[Fraction | None, bool]:
    """Returns the number that an answer is, if it is one, without unit, and whether it is a percentage."""
    value = text.removesuffix("%").removesuffix("\\").rstrip()
    return number_in(_without_unit(value)), value != text


def number_in(text: str) -> Fraction | None:
    """Returns the number that a text is: ``-3``, ``1,234.50``, ``.5``, ``3e4``, ``3/4``, ``1 1/2``; None for others."""
    if len(text) > MAX_NUMBER or not text.isascii():
        return None
    mixed = _MIXED.fullmatch(text)
    if mixed is not None:
        whole, above, below = (int(part) for part in mixed.groups())
        return whole + Fraction(above, below) if below else None
    parts = [_decimal(part) for part in text.split("/")]
    if len(parts) == 2 and parts[0] is not None and parts[1]:
        return parts[0] / parts[1]
    return parts[0] if len(parts) == 1 else None


def _decimal(text: str) -> Fraction | None:
    match = _DECIMAL.fullmatch(text.strip())
    if match is None or not (match[2] or match[3]):
        return None
    return Fraction(match[1] + (match[2] or "0").replace(",", "") + (match[3] or "") + (match[4] or ""))


def _trimmed(text: str) -> str:
    """Returns an answer without what does not count: dollar signs, spaces of LaTeX, a full stop."""
    return " ".join(_SPACE.sub(" ", _NOTHING.sub("", text)).strip().removesuffix(".").split())


def _outer(text: str) -> str:
    """Returns the brackets around an answer: ``{`` of a set, ``(`` of a tuple or an open interval; "" for others."""
    text = text.replace(r"\left", "").replace(r"\right", "")
    opening, closing = text.removeprefix("\\")[:1], text[-1:]
    return opening if (opening, closing) in (("{", "}"), ("(", ")")) else ""


def _without_unit(text: str) -> str:
    """Returns a number without the words of its unit, one or several."""
    value = _VALUE.match(text)
    if value is None:
        return text
    words = [_UNIT.fullmatch(word) for word in text[value.end() :].replace("~", " ").split()]
    units = [word is not None and word[1].lower() not in _NO_UNITS for word in words]
    return value[1] if units and all(units) else text


def load_verifier() -> Callable[[tuple[str, str]], bool]:
    """Imports ``math-verify``, tries it once, and returns ``verified``; for a worker process."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    verified((r"\frac{1}{2}", "0.5"))  # the first parse takes a second, which is no completion's
    return verified


def verified(pair: tuple[str, str]) -> bool:
    """Tells whether ``math-verify`` takes an answer and the truth for the same.

    It sets no signals here, which only a main thread may do: whoever calls it limits its time.

    Args:
        pair: the answer, then the truth.
    """
    from math_verify import parse, verify

    answer, truth = (parse(f"${_readable(text)}$", parsing_timeout=None) for text in pair)
    return bool(verify(truth, answer, float_rounding=12, allow_set_relation_comp=True, timeout_seconds=None))


def _readable(text: str) -> str:
    """Returns an answer as math-verify reads it: mixed numbers in LaTeX, matrices of one kind, no unit in words."""
    text = _without_unit(_trimmed(text)).replace(r"\%", "%").replace("%", r"\%")
    for kind in ("bmatrix", "Bmatrix", "smallmatrix"):
        text = text.replace(f"{{{kind}}}", "{pmatrix}")
    text = _PI.sub(r"\\pi", text.replace(r"\varnothing", r"\emptyset"))
    return _MIXED.sub(r"\1\\frac{\2}{\3}", text)
