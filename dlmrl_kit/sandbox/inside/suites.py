"""Unit tests in three published forms, run against a program in another process, each with a verdict of its own.

* ``statements``: assertions, each a text of its own, as MBPP has them;
* ``check``: a function ``check(candidate)`` whose assertions are the tests, as HumanEval has it;
* ``module``: a module with functions and methods named ``test...``, as pytest runs them, and as KodCode has it.
"""

from __future__ import annotations

import ast
import functools
import itertools
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from dlmrl_kit.sandbox.inside.objects import Objects
from dlmrl_kit.sandbox.inside.peer import Gone
from dlmrl_kit.sandbox.inside.program import MODULE

Verdict: TypeAlias = list[Any]
"""Name of a test, whether it passed, and why it did not."""
RECORD = "_the_assertion_"
"""What the tests call with the number of an assertion and its value."""


def names_of(suite: Mapping[str, Any]) -> list[str]:
    """Returns the names of a suite's tests, from their text alone.

    Raises:
        ValueError: there are none, or the text is no Python that can be run here.
    """
    if suite["form"] == "statements":
        names = [f"statement {number}" for number, _ in enumerate(suite["tests"], start=1)]
        for text in (suite["setup"], *suite["tests"]):
            _parsed(text)
    elif suite["form"] == "check":
        _parsed(suite["setup"])
        names = [f"assert {number}" for number in range(1, _Recording.of(suite["tests"]).count + 1)]
    else:
        names = list(_functions(_parsed(suite["tests"])))
    if not names:
        raise ValueError("there is no test in it")
    return names


def run_suite(objects: Objects, program: str, suite: Mapping[str, Any]) -> list[Verdict]:
    """Runs a program, then its tests; returns a verdict on each test.

    Args:
        objects: the channel to the process of the program.
        program: its text.
        suite: form, setup, tests, names and classes, as ``CodeTests`` sends them.
    """
    names = names_of(suite)
    random.seed(0)
    try:
        objects.load(program)
        tests = {"statements": _statements, "check": _check, "module": _module}[suite["form"]](objects, suite)
        found = dict(tests)
    except BaseException as error:  # the program's own, too, and SystemExit
        return [[name, False, reason(error)] for name in names]
    return [[name, name in found and found[name] is None, found.get(name, "not reached") or ""] for name in names]


def reason(error: BaseException) -> str:
    """Returns an exception as one short line. Its text may be the program's, and asking for it may fail."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    return " ".join(f"{type(error).__name__}: {text}".split())[:200]


def _attempt(objects: Objects, test: Callable[[], object]) -> str | None:
    """Runs a test; returns why it failed, or None."""
    objects.disagreed = False
    try:
        test()
    except BaseException as error:
        return reason(error)
    if objects.gone:
        return reason(Gone("the program has ended"))
    return "an assertion failed in a function that the program called" if objects.disagreed else None


def _namespace(objects: Objects, suite: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the names of the setup, and those of the reference solution as the program defines them."""
    namespace: dict[str, Any] = {"__name__": "tests"}
    exec(compile(suite["setup"], "<setup>", "exec"), namespace)
    for name in suite["names"]:
        try:
            namespace[name] = objects.named(name)
        except AttributeError:
            namespace.pop(name, None)  # the setup's own must not stand in for it
    return namespace


def _statements(objects: Objects, suite: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    namespace = _namespace(objects, suite)
    for name, text in zip(names_of(suite), suite["tests"], strict=True):
        code = compile(text, f"<{name}>", "exec")
        yield name, _attempt(objects, functools.partial(exec, code, namespace))


def _check(objects: Objects, suite: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    namespace = _namespace(objects, suite)
    (entry,) = suite["names"]
    recording = _Recording.of(suite["tests"])
    found: dict[str, str | None] = {}

    def record(number: int, test: Callable[[], object]) -> None:
        failed = _attempt(objects, lambda: _assert(test()))
        name = f"assert {number}"
        found[name] = found.get(name) or failed  # one in a loop has to hold each time

    namespace[RECORD] = record
    exec(compile(recording.tree, "<check>", "exec"), namespace)
    ended = _attempt(objects, lambda: namespace["check"](namespace[entry]))
    if ended is not None and len(found) == recording.count and not any(found.values()):
        found[f"assert {recording.count}"] = ended  # something behind the last assertion failed
    yield from found.items()


def _assert(value: object) -> None:
    if not value:
        raise AssertionError("not so")


class _Recording(ast.NodeTransformer):
    """Makes of each assertion in a function ``check`` a call that records it, so that those behind it are tried, too.

    An assertion of a constant, ``assert True``, tests nothing and is left out.
    """

    def __init__(self) -> None:
        self.count = 0
        self.tree = ast.Module([], [])

    @classmethod
    def of(cls, text: str) -> _Recording:
        """Returns the tests with recorded assertions.

        Raises:
            ValueError: there is no function ``check``.
        """
        recording, tree = cls(), _parsed(text)
        if not any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
            raise ValueError("there is no function 'check' in it")
        recording.tree = ast.fix_missing_locations(recording.visit(tree))
        return recording

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        """Returns the recorded assertion."""
        if isinstance(node.test, ast.Constant):
            return ast.copy_location(ast.Pass(), node)
        self.count += 1
        call = ast.parse(f"{RECORD}({self.count}, lambda: 0)", mode="eval").body
        assert isinstance(call, ast.Call)
        test = call.args[1]
        assert isinstance(test, ast.Lambda)
        test.body = node.test
        return ast.copy_location(ast.Expr(call), node)


def _module(objects: Objects, suite: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    sys.modules[MODULE] = objects.module(suite["names"])
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    exec(compile(suite["tests"], "<tests>", "exec"), module.__dict__)
    for name in names_of(suite):
        yield name, next((failed for test in _cases(module, name) if (failed := _attempt(objects, test))), None)


def _cases(module: types.ModuleType, name: str) -> Iterable[Callable[[], object]]:
    """Returns what a test does, once for each set of its parameters."""
    owner, _, method = name.rpartition(".")

    def function() -> Any:
        if not owner:
            return getattr(module, name)
        made = getattr(module, owner)()
        for prepare in ("setup_method", "setUp"):
            if prepare in dir(made):
                getattr(made, prepare)()
        return getattr(made, method)

    marked = getattr(getattr(module, owner), method) if owner else getattr(module, name)
    marks = [mark for mark in vars(marked).get("pytestmark", []) if mark.name == "parametrize"]
    for values in itertools.product(*(_parameters(*mark.args) for mark in marks)):
        named = {key: value for part in values for key, value in part.items()}
        yield functools.partial(_call, function, named)


def _call(function: Callable[[], Callable[..., object]], named: Mapping[str, Any]) -> None:
    function()(**named)


def _parameters(names: str | Iterable[str], values: Iterable[Any], *_: object) -> list[dict[str, Any]]:
    """Returns the arguments of each case of pytest's ``parametrize``."""
    wanted = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    rows = [value.values if type(value).__name__ == "ParameterSet" else value for value in values]
    unpacked = [
        row if len(wanted) > 1 or type(value).__name__ == "ParameterSet" else (row,)
        for row, value in zip(rows, values, strict=True)
    ]
    return [dict(zip(wanted, row, strict=True)) for row in unpacked]


def _functions(tree: ast.Module) -> Iterator[str]:
    """Yields the names of test functions, and of test methods behind that of their class.

    Raises:
        ValueError: one needs a fixture, or waits for something.
    """
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and (node.name.startswith("Test") or _is_test_case(node)):
            inner = [part for part in node.body if _is_test(part)]
            yield from (f"{node.name}.{_checked(part, 1)}" for part in inner)
        elif _is_test(node):
            yield _checked(node, 0)


def _is_test(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")


def _is_test_case(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Attribute | ast.Name) and "TestCase" in ast.unparse(base) for base in node.bases)


def _checked(node: ast.stmt, first: int) -> str:
    if not isinstance(node, ast.FunctionDef):
        raise ValueError("a test waits for something (async), which is not supported")
    marked = {
        argument.strip()
        for call in node.decorator_list
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("parametrize") and call.args
        for argument in _literal_names(call.args[0])
    }
    needs = {argument.arg for argument in node.args.args[first:]} - marked
    if len(node.args.defaults) < len(needs):
        raise ValueError(f"the test {node.name} needs {', '.join(sorted(needs))}; fixtures are not supported")
    return node.name


def _literal_names(node: ast.expr) -> list[str]:
    try:
        names = ast.literal_eval(node)
    except ValueError:
        return []
    return names.split(",") if isinstance(names, str) else list(map(str, names))


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"the tests are no Python: {error}") from None
