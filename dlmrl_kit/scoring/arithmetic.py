"""Exact and safe arithmetic on text that a model wrote: nothing is executed, and time and memory are bounded.

The language has decimal integers without leading zeros, ``+ - * /``, unary minus, parentheses, spaces. Everything else
is invalid, also what Python would accept: ``**``, ``//``, unary plus, ``1_000``, ``0x10``, ``1e9``, ``1.5``, digits of
other scripts, line breaks inside the expression.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

MAX_LENGTH = 256
"""Longest expression, in characters, without the white space around it."""
MAX_DEPTH = 128
"""Deepest nesting of operations; ``1+1+1`` is nested 2 deep."""
MAX_MAGNITUDE = 10**30
"""Largest numerator and denominator, in lowest terms, of every intermediate result."""

_CHARACTERS = frozenset("0123456789+-*/() ")
# Leading zeros, the two-character operators, and calls such as 2(3), about which some Pythons warn.
_REJECTED = re.compile(r"(?<![0-9])0[0-9]|\*\*|//|[0-9)] *\(")
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_NODES = (ast.BinOp, ast.UnaryOp, ast.Constant, ast.USub, *_OPERATIONS)


def value_of(text: str) -> Fraction | None:
    """Returns an expression's value, or None where it is invalid, divides by zero or exceeds a limit of this module."""
    tree = _parse(text)
    if tree is None:
        return None
    try:
        return _value(tree, 0)
    except (ValueError, ZeroDivisionError, RecursionError):
        return None


def numbers_in(text: str) -> list[int] | None:
    """Returns the integers written in an expression, sorted, each as often as it occurs; None where it is invalid.

    An expression that divides by zero or grows too large still has its numbers.
    """
    tree = _parse(text)
    if tree is None:
        return None
    return sorted(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, int)
    )


def _parse(text: str) -> ast.expr | None:
    if not isinstance(text, str):
        return None
    text = text.strip(" \t\r\n")
    # Python's own parser sees nothing but short ASCII text of these few characters.
    if not 0 < len(text) <= MAX_LENGTH or not _CHARACTERS.issuperset(text) or _REJECTED.search(text):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    return tree if all(isinstance(node, _NODES) for node in ast.walk(tree)) else None


def _value(node: ast.AST, depth: int) -> Fraction:
    """Returns the value of a node at this depth.

    Raises:
        ValueError: beyond the limits of this module.
        ZeroDivisionError: as in Python.
    """
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    if isinstance(node, ast.BinOp):
        result = _OPERATIONS[type(node.op)](_value(node.left, depth + 1), _value(node.right, depth + 1))
    elif isinstance(node, ast.UnaryOp):
        result = -_value(node.operand, depth + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        result = Fraction(node.value)
    else:
        raise ValueError("not arithmetic")
    if max(abs(result.numerator), result.denominator) > MAX_MAGNITUDE:
        raise ValueError("too large")
    return result
