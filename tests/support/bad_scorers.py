"""A module of scorers that misbehave, which tests import where they need it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

FUNCTIONS = '''
import os, subprocess, sys, time

class Harmful:
    def __reduce__(self):
        return os.abort, ()


def load():
    return work

def load_not():
    raise ValueError("cannot be loaded")

def load_dead():
    os._exit(7)

def work(item):
    if item == "hang":
        time.sleep(1000)
    if item == "loop":
        while True:
            pass
    if item == "exit":
        os._exit(3)
    if item == "abort":
        os.abort()
    if item == "raise":
        raise KeyError("gone")
    if item == "quit":
        raise SystemExit(0)
    if item == "print":
        print("x" * 10**6)
        os.write(1, b"y" * 10**6)
        print("z" * 10**6, file=sys.stderr)
    if item == "read":
        return input()
    if item == "huge":
        return "x" * (80 * 2**20)
    if item == "closure":
        return lambda: 1
    if item == "memory":
        return len(bytearray(4 * 2**30))
    if item == "modules":
        return sorted({"torch", "tensordict", "reasoning_gym"} & set(sys.modules))
    if item == "pid":
        return os.getpid()
    if item == "set":
        return list({"a", "b", "c", "d", "e", "f"})
    if isinstance(item, str) and item.startswith("write"):
        import pickle, struct
        message = {"pickle": pickle.dumps(Harmful()), "text": b"1", "long": b""}.get(item[6:], b"123")
        length = 2**60 if item == "write long" else 8 if item == "write half" else len(message)
        for descriptor in range(3, 20):
            try:
                os.write(descriptor, struct.pack(">Q", length) + message)
            except OSError:
                pass
        time.sleep(1000)
    if item == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        open(os.environ["DLMRL_TEST_CHILD"], "w").write(str(child.pid))
        time.sleep(1000)
    return item


def length(completion, example):
    """Digits of the answer that are right, and whether it is short."""
    if completion == "hang":
        time.sleep(1000)
    if completion == "exit":
        os._exit(5)
    if completion == "raise":
        raise RuntimeError("not scored")
    if completion == "other":
        return {"right": 1.0}
    if completion == "not a number":
        return {"right": float("nan"), "short": 1.0}
    if completion == "text":
        return {"right": "1", "short": 1.0}
    if completion == "large":
        return {"right": 3.0, "short": -1.0}
    return {"right": float(completion == example.answer), "short": float(len(completion) < example.meta["limit"])}


def exact(completion, example):
    return completion == example.answer


def first_word(completion, example):
    return float(completion.split()[0] == example.answer)


def large(completion, example):
    return len(bytearray(int(completion or 0) * 2**30)) / 2**40


def valued_number(completion, example):
    return float(completion or 0)


def valued_own(completion, example):
    return {"reward": float(completion or 0), "solved": 1}


class Scores:
    @staticmethod
    def half(completion, example):
        return {"reward": 0.5, "solved": 1}


NUMBER = 3
'''


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A module of scorers that misbehave."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "kit_test_scorers.py").write_text(FUNCTIONS)
    (folder / "kit_test_broken.py").write_text("import kit_test_no_such_module\n")
    sys.path.insert(0, str(folder))
    import kit_test_scorers

    yield kit_test_scorers
    sys.path.remove(str(folder))
