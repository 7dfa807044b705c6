"""Compares a measured scale with the factors that components claim.

Claims are arithmetic expressions in G, the group size; B, the samples of a batch; and ``number of tokens``, the
committed tokens of a batch.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

from dlmrl_kit.algorithm.algorithm import GradientEstimator
from dlmrl_kit.audit.exact import biasing, claims_of

TOLERANCE = 1e-8
_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def known_scales(estimator: GradientEstimator, group_size: int, tokens: float) -> dict[str, float]:
    """Computes the factors by which the estimator's components are known to scale the gradient, and their products.

    Args:
        estimator: its components' claims are read.
        group_size: G.
        tokens: committed tokens of a batch.

    Returns:
        The factors by their text, ``"1"`` first.
    """
    symbols = {"G": float(group_size), "B": float(group_size), "tokens": tokens}
    claimed = [claims.scale for part in biasing(estimator).values() if (claims := claims_of(part)) is not None]
    values = {text: evaluated(text, symbols) for text in claimed} | estimator.advantage.factors
    found = {"1": 1.0}
    for text, value in values.items():
        if text != "1" and value is not None:
            found |= {text if known == "1" else f"({known}) ({text})": x * value for known, x in found.items()}
    return found


def matching(scale: float, known: dict[str, float]) -> str | None:
    """Returns the text of the known factor that ``scale`` equals; None if it equals none."""
    return next((text for text, value in known.items() if abs(scale - value) < TOLERANCE * max(1.0, abs(value))), None)


def evaluated(text: str, symbols: dict[str, float]) -> float | None:
    """Evaluates an arithmetic expression over symbols; None if the text is anything else."""
    source = text.replace("number of tokens", "tokens")
    try:
        return _value(ast.parse(source, mode="eval").body, symbols)
    except (SyntaxError, KeyError, ZeroDivisionError, TypeError):
        return None


def _value(node: ast.expr, symbols: dict[str, float]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    if isinstance(node, ast.Name):
        return symbols[node.id]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, symbols), _value(node.right, symbols))
    raise TypeError(f"no arithmetic: {ast.dump(node)}")
