"""Verdicts on programs: right and wrong ones, each form of tests, and programs that want to be called right."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from support.hostile_programs import ALWAYS, FAKES, SEARCH
from support.sandboxes import needs_bubblewrap, outcome, statements

from dlmrl_kit.sandbox.code_tests import CodeTests, Suite

pytestmark = needs_bubblewrap
SQUARES = statements("assert solve(3) == 9", "assert solve(5) == 25", "assert not solve(2) != 4")
SECRET = "expected-4711"


@pytest.fixture(scope="module")
def tests() -> Iterator[CodeTests]:
    running = CodeTests(5.0, 2**29)
    yield running
    running.close()


def passed(tests: CodeTests, program: str, suite: Suite = SQUARES) -> list[bool]:
    return [right for _, right, _ in outcome(tests, program, suite).tests]


def test_share_of_the_tests_and_each_verdict(tests: CodeTests) -> None:
    found = outcome(tests, "def solve(x):\n    return x * x if x < 5 else 0", SQUARES)
    assert found.tests == (
        ("statement 1", True, ""),
        ("statement 2", False, "AssertionError:"),
        ("statement 3", True, ""),
    )
    assert found.share == pytest.approx(2 / 3)
    assert found.ended == ""
    assert outcome(tests, "def solve(x):\n    return x * x", SQUARES).share == 1


QUICK = {
    "exit 0 when called",
    "write to all",
    "reply for itself",
    "always equal",
    "always equal number",
    "StopIteration",
}
QUICK |= {"a class instead of the function", "other built-ins", "its own server"}


@pytest.mark.parametrize(
    "fake", [name if name in QUICK else pytest.param(name, marks=pytest.mark.thorough) for name in FAKES]
)
def test_fakes_pass_nothing(tests: CodeTests, fake: str) -> None:
    assert passed(tests, FAKES[fake]) == [False] * 3


def test_expected_values_are_nowhere(tests: CodeTests) -> None:
    found = statements(
        f"assert solve(1) == {SECRET!r}", f"assert {SECRET!r} in solve(2)", f"assert solve({SECRET!r}) == {SECRET!r}"
    )
    assert passed(tests, SEARCH, found) == [
        False,
        False,
        True,
    ]  # the last one hands it over: the search finds what there is


TRAPS = {
    "in": ("assert 3 in solve(1)", "Always()"),
    "not in a list": ("assert solve(1) in [3, 4]", "Always()"),
    "less": ("assert solve(1) < 3", "Always()"),
    "difference": ("assert abs(solve(1) - 3) < 1e-6", "Always()"),
    "reflected difference": ("assert abs(3 - solve(1)) < 1e-6", "Always()"),
    "approximately": ("import pytest\nassert solve(1) == pytest.approx(3.5)", "Always()"),
    "approximately, the other way": ("import pytest\nassert pytest.approx([1.0, 2.0]) == solve(1)", "Always()"),
    "close": ("import math\nassert math.isclose(solve(1), 3.5)", "Always()"),
    "list of them": ("assert solve(1) == [1, 2]", "[Always(), Always()]"),
    "set of them": ("assert solve(1) == {9}", "{Always()}"),
    "dict of them": ("assert solve(1)[9] == 2", "{Always(): Always()}"),
    "sorted": ("assert sorted(solve(1)) == [1, 2]", "[Always(), Always()]"),
    "kind": ("assert isinstance(solve(1), int)", "Always()"),
    "kind by property": ("assert type(solve(1)) is int", "Always()"),
    "loop that ends at once": ("assert all(map(solve, [1, 2]))", "next(iter([]))"),
    "loop over its objects": ("assert list(map(solve, [1, 2])) == []", "next(iter([]))"),
    "mutated expectation": ("given = [3, 1]\nassert solve(given) == sorted(given)", "x.clear() or []"),
    "mutated and returned": ("given = [3, 1]\nassert solve(given) == sorted(given)", "(x.clear(), x)[1]"),
    "context": ("with solve(1) as found:\n    assert found == 3", "Quiet()"),
    "swallowed callback": ("def check(value):\n    assert value == 3\nsolve(check)", "swallow(x)"),
}  # fmt: skip
HELPERS = (
    ALWAYS.replace("Base", "object")
    + """
class Quiet:
    def __enter__(self): return 4
    def __exit__(self, *error): return True

def swallow(function):
    try:
        function(4)
    except AssertionError:
        pass
"""
)


def together(cases: dict[str, tuple[str, str]], helpers: str) -> tuple[str, Suite]:
    """One program with a function for each case, and one suite: test, and what the function returns."""
    program, texts, names = helpers, [], [f"solve_{number}" for number in range(len(cases))]
    for name, (test, value) in zip(names, cases.values(), strict=True):
        program += f"\ndef {name}(x): return {value}"
        texts.append(test.replace("solve", name))
    return program, statements(*texts, names=tuple(names))


def test_the_program_decides_no_test(tests: CodeTests) -> None:
    found = outcome(tests, *together(TRAPS, HELPERS))
    assert dict(zip(TRAPS, [right for _, right, _ in found.tests], strict=True)) == dict.fromkeys(TRAPS, False)
    assert found.ended == ""


@pytest.mark.parametrize("test", ["try:\n    solve(1)\nexcept Exception:\n    pass", "solve(1)"])
def test_death_is_no_error_that_a_test_may_expect(tests: CodeTests, test: str) -> None:
    assert passed(tests, "import os\ndef solve(x): os._exit(0)", statements(test)) == [False]


HONEST = {
    "sorted in place": (
        "given = [[3, 4], [1]]\nfirst = given[0]\nsolve(given)\nassert given == [[1], [3, 4]]",
        "x.sort()",
    ),
    "changed dict": (
        "given = {1: [2]}\ninner = given[1]\nsolve(given)\nassert given == {1: [2, 3]} and inner == [2, 3]",
        "x[1].append(3)",
    ),
    "set": ("given = {1}\nsolve(given)\nassert given == {1, 5}", "x.add(5)"),
    "error": (
        "try:\n    solve(1)\n    assert False\nexcept ValueError as error:\n    assert 'bad' in str(error)",
        "int('bad')",
    ),
    "own error": ("import pytest\nwith pytest.raises(KeyError, match='gone'):\n    solve({})", "x['gone']"),
    "callback": ("assert solve(lambda value: value * 2) == [2, 4]", "[x(1), x(2)]"),
    "callback's error": (
        "def fail(value):\n    raise ValueError(value)\nassert solve(fail) == 'caught'",
        "attempt(x)",
    ),
    "standard function": ("assert solve(len) == 3 and solve(sum) == 6", "x([1, 2, 3])"),
    "standard class": ("assert solve(list) == [1, 2]", "x((1, 2))"),
    "generator": ("assert list(solve(3)) == [0, 1, 2]", "(n for n in range(x))"),
    "iterator": (
        "found = solve(2)\nassert next(found) == 0 and next(found) == 1 and next(found, None) is None",
        "iter(range(x))",
    ),
    "numbers": ("assert solve(1) == (True, 2.5, 3j, 10**40, None)", "(True, 2.5, 3j, 10**40, None)"),
    "kinds": ("assert type(solve(1)) is tuple and type(solve(1)[0]) is list", "([1], {2})"),
    "containers": (
        "from collections import deque, Counter\nassert solve(1) == (deque([1]), Counter('aab'), range(3), b'x')",
        "made()",
    ),
    "dates": (
        "import datetime\nassert solve(datetime.date(2024, 2, 28)).isoformat() == '2024-02-29'",
        "x + __import__('datetime').timedelta(1)",
    ),
    "returned function": ("assert solve(3)(4) == 12", "lambda y: x * y"),
    "context": ("with solve(3) as found:\n    assert found == 3", "__import__('contextlib').nullcontext(x)"),
    "text": ("assert str(solve(1)) == 'named' and repr(solve(1)) == '<named>'", "Named()"),
}
HONEST_HELPERS = """
import collections

class Named:
    def __str__(self): return "named"
    def __repr__(self): return "<named>"

def attempt(function):
    try:
        return function(3)
    except ValueError:
        return "caught"

def made():
    return collections.deque([1]), collections.Counter("aab"), range(3), b"x"
"""


def test_honest_programs(tests: CodeTests) -> None:
    found = outcome(tests, *together(HONEST, HONEST_HELPERS))
    assert dict(zip(HONEST, [why for _, _, why in found.tests], strict=True)) == dict.fromkeys(HONEST, "")
    assert found.share == 1


CLASSES = '''
from dataclasses import dataclass, field
from enum import Enum

class Full(ValueError):
    pass

class Colour(Enum):
    RED = 1

@dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0
    def __add__(self, other): return Point(self.x + other.x, self.y + other.y)
    def __mul__(self, factor): return Point(self.x * factor, self.y * factor)
    def __abs__(self): return (self.x ** 2 + self.y ** 2) ** 0.5

class Shelf:
    """A shelf."""
    limit = 2
    _only = None

    def __init__(self): self.books, self.colour = [], Colour.RED
    def put(self, book):
        if len(self.books) == self.limit:
            raise Full(f"no room for {book}")
        self.books.append(book)
        return self
    def __len__(self): return len(self.books)
    def __iter__(self): return iter(self.books)
    def __contains__(self, book): return book in self.books
    def __getitem__(self, index): return self.books[index]
    @classmethod
    def only(cls):
        cls._only = cls() if cls._only is None else cls._only
        return cls._only
    @property
    def first(self): return self.books[0]

class Large(Shelf):
    limit = 9
'''
CLASS_TESTS = """
import unittest

import pytest
from solution import Colour, Full, Large, Point, Shelf


def test_full():
    shelf = Shelf().put("a").put("b")
    with pytest.raises(Full, match="no room for c"):
        shelf.put("c")
    with pytest.raises(ValueError):
        shelf.put("d")


def test_container():
    shelf = Large()
    assert len(shelf) == 0 and not shelf
    shelf.put("a")
    assert list(shelf) == ["a"] and shelf[0] == "a" and shelf.first == "a" and "a" in shelf and "b" not in shelf
    shelf.books = ["x", "y"]
    assert shelf[-1] == "y" and shelf.limit == 9 and Large.limit == 9


def test_kinds():
    assert isinstance(Large(), Shelf) and issubclass(Large, Shelf) and not isinstance(Shelf(), Large)
    assert type(Shelf()).__name__ == "Shelf"
    assert hasattr(Shelf(), "put") and not hasattr(Shelf(), "take")


@pytest.mark.parametrize("x, y, length", [(3, 4, 5), (6, 8, 10)])
def test_points(x, y, length):
    assert abs(Point(x, y)) == pytest.approx(length)
    assert Point(x, y) + Point(1) == Point(x + 1, y)
    assert Point(x, y) * 2 == Point(2 * x, 2 * y) and Point(x, y) != Point(y, x)


class TestMore:
    def setup_method(self):
        self.shelf = Shelf()

    def test_one(self):
        assert Shelf.only() is Shelf.only()

    def test_colour(self):
        assert self.shelf.colour == Colour.RED and Colour.RED.value == 1


class Cases(unittest.TestCase):
    def setUp(self):
        self.shelf = Shelf()

    def test_raises(self):
        with self.assertRaises(IndexError):
            self.shelf[3]
        self.assertEqual(len(self.shelf), 0)
"""
MODULE = Suite(
    "module", CLASS_TESTS, ("Colour", "Full", "Large", "Point", "Shelf"), ("Colour", "Full", "Large", "Point", "Shelf")
)


def test_classes_and_pytest(tests: CodeTests) -> None:
    found = outcome(tests, CLASSES, MODULE)
    names = "test_full test_container test_kinds test_points TestMore.test_one TestMore.test_colour Cases.test_raises"
    assert [(name, why) for name, _, why in found.tests] == [(name, "") for name in names.split()]
    assert passed(tests, CLASSES.replace("class Large(", "class Big("), MODULE) == [False] * 7


def test_a_check_has_a_verdict_for_each_assertion(tests: CodeTests) -> None:
    text = """
def check(candidate):
    assert True, "always"
    assert candidate(2) == 4, "even"
    for n in range(4):
        assert candidate(n) == helper(n)
    assert candidate(-1) == 1
"""
    suite = Suite("check", text, ("solve",), setup="def helper(n):\n    return n * n\n")
    assert suite.test_names() == ["assert 1", "assert 2", "assert 3"]
    assert passed(tests, "def solve(n): return n * n", suite) == [True] * 3
    assert passed(tests, "def solve(n): return n * n if n < 3 else 0", suite) == [True, False, True]
    assert passed(tests, "def helper(n): return 0\ndef solve(n): return 0", suite) == [False] * 3
    ends = "import os\ndef solve(n): return n * n if n >= 0 else os._exit(0)"
    assert passed(tests, ends, suite) == [True, True, False]


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (("statements", ("assert (",), ()), "no Python"),
        (("statements", (), ()), "no test"),
        (("check", "def test(): pass", ("f",)), "no function 'check'"),
        (("check", "def check(candidate):\n    assert True", ("f",)), "no test"),
        (("module", "def test(monkeypatch): pass", ()), "needs monkeypatch; fixtures are not supported"),
        (("module", "async def test(): pass", ()), "async"),
        (("module", "x = 1", ()), "no test"),
    ],
)
def test_suites_that_cannot_be_run(suite: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Suite(*suite)  # type: ignore[arg-type]


def test_time_is_that_of_all_tests_and_threads_do_not_count(tests: CodeTests) -> None:
    program = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\ndef solve(x): return x * x"
    )
    started = time.perf_counter()
    assert passed(tests, program) == [True] * 3
    assert time.perf_counter() - started < 4
