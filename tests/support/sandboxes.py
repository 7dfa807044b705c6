"""Sandboxes in tests: skipped without bubblewrap, unless the environment says that this is continuous integration."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dlmrl_kit.sandbox.code_tests import CodeTests, Outcome, ProgramSandbox, Suite
from dlmrl_kit.sandbox.inside.objects import Objects

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None and not os.environ.get("CI"),
    reason="bubblewrap is not installed (apt-get install bubblewrap); with CI set in the environment this test fails",
)
MEMORY = 2**29


@contextmanager
def running(program: str, seconds: int = 20) -> Iterator[Objects]:
    """A program in a sandbox, and its objects as the tests of a task get them."""
    sandbox = ProgramSandbox(MEMORY, seconds)
    sandbox.wait()
    objects = Objects(os.dup(sandbox.channel.fileno()), ())
    try:
        objects.load(program)
        yield objects
    finally:
        sandbox.kill()


def outcome(tests: CodeTests, program: str, suite: Suite) -> Outcome:
    verdicts, ended = tests((program, suite.data()))
    return Outcome(tuple((name, passed, why) for name, passed, why in verdicts), ended)


def statements(*tests: str, names: tuple[str, ...] = ("solve",), **more: Any) -> Suite:
    return Suite("statements", tests, names, **more)
