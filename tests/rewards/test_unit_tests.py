"""Unit tests as a reward: where the program is, failures, what is required, and running without a sandbox."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.sandboxes import needs_bubblewrap, statements

from dlmrl_kit.core.errors import ParameterError, UserError
from dlmrl_kit.rewards.code_text import code_in, defined, program_in
from dlmrl_kit.rewards.unit_tests import UnitTests
from dlmrl_kit.sandbox.bubblewrap import require_bubblewrap
from dlmrl_kit.tasks.code_task import code_meta
from dlmrl_kit.testing.tasks import JUNK

META = code_meta(statements("assert solve(3) == 9", "assert solve(5) == 25"))
SQUARE = "def solve(x): return x * x"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (SQUARE, SQUARE),
        (f"<answer>{SQUARE}</answer> done", SQUARE),
        (f"```\nx\n```<answer>\n```py\n{SQUARE}\n```\n</answer>", f"{SQUARE}\n"),
        (f"```\n{SQUARE}\n```\n```\nsolve(2)\n```", f"{SQUARE}\n"),
        ("```\na = 1\n```\n```\nb = 1\n```", "b = 1\n"),
        (f"```python\n{SQUARE}", f"{SQUARE}\n"),
        ("", ""),
        ("<answer>1</answer><answer>2", "2"),
    ],
)
def test_where_the_program_is(text: str, code: str) -> None:
    assert code_in(text, ["solve"]) == code


def test_names_and_heads() -> None:
    assert defined("def a(): pass\n  def b(): pass\nclass C: pass\nd = 1\ne == 1\nasync def f(): pass") == set("aCdf")
    meta = {"names": ["f"], "head": "import math\ndef f(x):\n"}
    assert program_in("    return x\n", meta) == "import math\ndef f(x):\n    return x\n"
    assert program_in("y = x\nreturn y\n", meta) == "import math\ndef f(x):\n    y = x\n    return y\n"
    assert program_in("def f(x): return 1", meta) == "import math\ndef f(x):\n\ndef f(x): return 1"


def test_finding_a_program_takes_little_time() -> None:
    for text in [*JUNK, "```\n" * 10**4, "<answer>" * 10**4, "def " * 10**4, "x =" * 10**4, "\n" * 10**5]:
        program_in(text, META)


@needs_bubblewrap
def test_shares_and_packages() -> None:
    tests = UnitTests()
    hidden = "from functools import *\nglobals()['sol' + 've'] = lambda x: x * x"
    texts = [SQUARE, "def solve(x): return 9", "", hidden, hidden.replace("from functools import *", "")]
    assert tests.values(texts, [META] * len(texts)) == [1, 0.5, 0, 1, 0]
    assert not tests.failures
    numpy = "import numpy\ndef solve(x): return int(numpy.square(x))"
    assert tests.value(numpy, META) == 0
    assert UnitTests(packages=["numpy"]).value(numpy, META) == 1


@pytest.mark.thorough
@needs_bubblewrap
def test_failures_and_whatever_a_model_writes() -> None:
    tests = UnitTests(timeout=2)
    with pytest.warns(RuntimeWarning, match=r"(took more than 2 s|the program ended, or was ended)"):
        values = tests.values(
            [SQUARE, "def solve(x): return 9", "def solve(x):\n    while x: pass", "import os\nos._exit(0)", *JUNK],
            [META] * (4 + len(JUNK)),
        )
    assert values == [1, 0.5, 0, 0, *[0] * len(JUNK)]
    assert tests.failures == {"timeout": 1, "crash": 1}


def test_without_bubblewrap_it_refuses_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    require_bubblewrap.cache_clear()
    try:
        with pytest.raises(UserError, match=r"needs bubblewrap .* not installed; install it: apt-get"):
            UnitTests().require()
        unsafe = UnitTests(unsafe_without_sandbox=True)
        unsafe.require()
        (tmp_path / "here").write_text("9")
        program = f"def solve(x): return int(open({str(tmp_path / 'here')!r}).read())"
        assert unsafe.value(program, META) == 0.5  # it has the user's rights
    finally:
        require_bubblewrap.cache_clear()


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="to see 'no_such_package', which is not installed: pip install"):
        UnitTests(packages=["no_such_package"], unsafe_without_sandbox=True).require()
    for wrong in ({"timeout": 0}, {"memory": 0.1}, {"workers": 0}, {"packages": "numpy"}):
        with pytest.raises(ParameterError, match=next(iter(wrong))):
            UnitTests(**wrong)  # type: ignore[arg-type]
