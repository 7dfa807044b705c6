"""Pays the unit tests that a program passes, in a sandbox."""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.code_text import program_in
from dlmrl_kit.sandbox.bubblewrap import require_bubblewrap
from dlmrl_kit.sandbox.code_tests import START_SECONDS, CodeTests, Item, Outcome
from dlmrl_kit.sandbox.inside.judge import GRACE_SECONDS
from dlmrl_kit.sandbox.inside.suites import names_of
from dlmrl_kit.sandbox.packages import packages_seen
from dlmrl_kit.scoring.pool import Failures, WorkerError, shared
from dlmrl_kit.scoring.process import Failed


@register("reward", paper="arXiv 2603.12554")
class UnitTests(RewardFunction):
    """The share of the example's unit tests that the program in the answer passes, 0 to 1.

    Each program runs in a sandbox of its own, its tests in another process (docs/sandbox.md). Programs that exceed a
    limit or end themselves fail the tests that were not passed before; ``failures`` counts these, and the first of each
    kind is a warning. A text that has none of the names that the tests use, and imports nothing, is not run.
    Arguments as ``RewardFunction``, and:

    Args:
        timeout: seconds for a program and all of its tests.
        memory: address space of a program in GiB.
        workers: programs that run at the same time.
        packages: installed packages that programs may import, with what these require; None: the standard library only.
        unsafe_without_sandbox: runs programs as ordinary processes, with all of your rights, where there is no sandbox
            to be had. Only for programs that you trust.

    Raises:
        ValueError: a parameter out of its range.
    """

    needs = ("suite", "names")
    decides = True
    reported = "unit tests passed"

    def __init__(
        self,
        weight: float = 1.0,
        name: str = "",
        timeout: float = 5.0,
        memory: float = 1.0,
        workers: int = 2,
        packages: list[str] | None = None,
        unsafe_without_sandbox: bool = False,
    ) -> None:
        super().__init__(weight, name)
        check(0 < timeout <= 3600, self, "timeout", timeout, "a number of seconds, above 0 and at most 3600")
        check(0.25 <= memory <= 1024, self, "memory", memory, "a number of GiB from 0.25 to 1024")
        check(1 <= workers <= 64, self, "workers", workers, "an integer from 1 to 64")
        named = packages is None or (isinstance(packages, list) and all(isinstance(name, str) for name in packages))
        check(named, self, "packages", packages, "a list of names, or None")
        unsafe = unsafe_without_sandbox
        check(isinstance(unsafe, bool), self, "unsafe_without_sandbox", unsafe, "True or False")
        self.timeout, self.memory, self.workers, self.packages = timeout, memory, workers, packages
        self.unsafe_without_sandbox = unsafe_without_sandbox
        self.failures = Failures()

    def require(self) -> None:
        """Checks that there is a sandbox to be had, and that the packages are installed.

        Raises:
            UserError: there is none, or one is not; says what to install.
        """
        if not self.unsafe_without_sandbox:
            require_bubblewrap()
        packages_seen(self.packages or ())

    def versions(self) -> dict[str, str]:
        """Returns the version of Python, which decides what programs do."""
        return {"Python of the programs": platform.python_version()}

    def value(self, text: str, meta: Mapping[str, Any]) -> float:
        """Returns the share of the tests passed."""
        return self.values([text], [meta])[0]

    def values(self, texts: Sequence[str], metas: Sequence[Mapping[str, Any]]) -> list[float]:
        """Returns the share of the tests passed for each completion."""
        return [outcome.share for outcome in self.outcomes(texts, metas)]

    def outcomes(self, texts: Sequence[str], metas: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """Returns the verdict on every test of each completion; a program that occurs twice runs once.

        Raises:
            WorkerError: the sandbox does not work.
        """
        items: list[Item] = [(program_in(text, meta), meta["suite"]) for text, meta in zip(texts, metas, strict=True)]
        keys = [json.dumps(item) for item in items]
        different = {key: item for key, item in zip(keys, items, strict=True) if _may_pass(item)}
        load = functools.partial(
            CodeTests, self.timeout, int(self.memory * 2**30), tuple(self.packages or ()), self.unsafe_without_sandbox
        )
        pool = shared(load, self.workers)
        results = pool.run(list(different.values()), self.timeout + GRACE_SECONDS + 2 * START_SECONDS)
        found = dict(zip(different, results, strict=True))
        return [
            self._outcome(found[key], item) if key in found else _undefined(item)
            for key, item in zip(keys, items, strict=True)
        ]

    def _outcome(self, result: list[Any] | Failed, item: Item) -> Outcome:
        if isinstance(result, Failed):
            raise WorkerError(f"UnitTests: {result.message}")
        verdicts, ended = result
        if ended:
            reason = (
                f"took more than {self.timeout:g} s"
                if ended == "timeout"
                else "the program ended, or was ended, before its tests"
            )
            self.failures.note("UnitTests", Failed(ended, reason), item[0])
        return Outcome(tuple((name, passed, why) for name, passed, why in verdicts), ended)


def _may_pass(item: Item) -> bool:
    program, suite = item
    return "import" in program or any(name in program for name in suite["names"])


def _undefined(item: Item) -> Outcome:
    return Outcome(tuple((name, False, "nothing that it tests is defined") for name in names_of(item[1])))
