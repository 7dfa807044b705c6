"""Arithmetic in text: values of trees, and what is rejected."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tasks import HOSTILE, SENTINEL

from dlmrl_kit.scoring import arithmetic
from dlmrl_kit.scoring.arithmetic import MAX_DEPTH, MAX_LENGTH, MAX_MAGNITUDE, numbers_in, value_of

Tree = Any  # an int, ("-", tree), or (operator, tree, tree)
trees = st.recursive(
    st.integers(0, 10**4),
    lambda inner: st.one_of(st.tuples(st.just("-"), inner), st.tuples(st.sampled_from("+-*/"), inner, inner)),
    max_leaves=12,
)


def tree_value(tree: Tree) -> Fraction | None:
    """Value of the tree by Fraction operators; None where a part divides by zero or exceeds the bound."""
    if isinstance(tree, int):
        return Fraction(tree)
    parts = [tree_value(part) for part in tree[1:]]
    if any(part is None for part in parts):
        return None
    if len(parts) == 1:
        return -parts[0]  # type: ignore[operator]
    left, right = parts
    if tree[0] == "/" and right == 0:
        return None
    result = {"+": "__add__", "-": "__sub__", "*": "__mul__", "/": "__truediv__"}[tree[0]]
    value = getattr(left, result)(right)
    return value if max(abs(value.numerator), value.denominator) <= MAX_MAGNITUDE else None


def tree_leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else [leaf for part in tree[1:] for leaf in tree_leaves(part)]


def full_text(tree: Tree) -> str:
    """Parentheses around every operation."""
    if isinstance(tree, int):
        return str(tree)
    if len(tree) == 2:
        return f"(-{full_text(tree[1])})"
    return f"({full_text(tree[1])}{tree[0]}{full_text(tree[2])})"


LEVEL = {"+": 1, "-": 1, "*": 2, "/": 2}


def short_text(tree: Tree, level: int = 0) -> str:
    """Parentheses only where precedence and left associativity demand them, with spaces."""
    if isinstance(tree, int):
        return str(tree)
    if len(tree) == 2:
        own, text = 3, f"-{short_text(tree[1], 3)}"
    else:
        own = LEVEL[tree[0]]
        text = f"{short_text(tree[1], own)} {tree[0]} {short_text(tree[2], own + 1)}"
    return f"({text})" if own < level else text


@settings(max_examples=600, deadline=None)
@given(trees)
def test_evaluate_agrees_with_the_tree(tree: Tree) -> None:
    for text in (full_text(tree), short_text(tree), f" {short_text(tree)}\n"):
        if len(text.strip()) <= MAX_LENGTH:
            assert value_of(text) == tree_value(tree)
            assert numbers_in(text) == sorted(tree_leaves(tree))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/3+1/3+1/3", Fraction(1)),
        ("7-2-3", Fraction(2)),
        ("8/4/2", Fraction(1)),
        ("2+3*4", Fraction(14)),
        ("-2*3", Fraction(-6)),
        ("2--3", Fraction(5)),
        ("2*-3", Fraction(-6)),
        ("(((7)))", Fraction(7)),
        ("0", Fraction(0)),
        ("0*5", Fraction(0)),
        ("\t 1 + 2\r\n", Fraction(3)),
        ("100000000000000000000*10000000000", Fraction(10**30)),
        ("+".join(["1"] * 128), Fraction(128)),
        ("-" * MAX_DEPTH + "1", Fraction(1)),
    ],
)
def test_evaluate_known_values(text: str, value: Fraction) -> None:
    assert value_of(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "1/0",
        "1/(2-2)",
        "0/0",
        "1/(1/(3-3))",
        "100000000000000000000*10000000001",
        "1/100000000000000000000/10000000001",
        f"{10**30 + 1}",
        f"{10**30 + 1}-{10**30 + 1}",
        "-" * (MAX_DEPTH + 1) + "1",
        "1" + "+1" * 128,
        "00",
        "01+2",
        "2(3)",
        "(2)(3)",
        "2 (3)",
        "1 2",
        "1+",
        "*1",
        "()",
        "(1",
        "1)",
        "(1,)",
        "-",
        "/",
        "~1",
        "1%2",
        "1<2",
        "1if 1else 1",
    ],
)
def test_evaluate_rejects(text: str) -> None:
    assert value_of(text) is None


@pytest.mark.parametrize("name", HOSTILE)
def test_evaluate_rejects_hostile_text(name: str) -> None:
    value = value_of(HOSTILE[name])
    if name == "nested to the limit":  # valid where Python's parser goes that deep
        assert value in (None, 1)
    elif name == "one more":  # no Sudoku grid, but a number
        assert value == int(HOSTILE[name])
    else:
        assert value is None
    assert not Path(SENTINEL).exists()


def test_numbers() -> None:
    assert numbers_in("3*(1+3)-0/12") == [0, 1, 3, 3, 12]
    assert numbers_in("1/0") == [0, 1]
    for text in ("", "1**2", "1,2", "x", "１", "1.0", "[1]"):
        assert numbers_in(text) is None


def test_python_parser_failures_are_invalid_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (MemoryError, RecursionError, SyntaxError, ValueError):

        def fail(*_: Any, error: type[Exception] = error, **__: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(arithmetic.ast, "parse", fail)
            assert value_of("1+1") is None
            assert numbers_in("1+1") is None


def test_no_syntax_warnings() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in [*HOSTILE.values(), "1(2)", "(1)(2)", "1 (2)", "1-(2)"]:
            value_of(text)
