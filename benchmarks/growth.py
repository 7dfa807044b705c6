"""How the kit's cost grows: rollout time in steps, length, batch and vocabulary; update time in K.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --out results

A slope of 1 is linear. The body of a step sees prompt and completion: in the length, time grows as length times steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import rollout
import update
from common import Size, growth, interleaved, make_policy, make_prompts, plot, report

BASE = Size(vocab=4096, hidden=128, layers=4, prompt=32, length=32, block=16, per_step=2, batch=4, selected=4)
AXES: dict[str, tuple[int, ...]] = {
    "per_step": (8, 4, 2, 1),
    "length": (16, 32, 64),
    "batch": (2, 4, 8),
    "vocab": (1024, 4096, 16_384),
    "selected": (2, 4, 8),
}


def works(axis: str, size: Size) -> dict[str, Callable[[], object]]:
    """Prepares the kit's and the plain implementation's work at a size: updates for ``selected``, else rollouts."""
    if axis == "selected":
        found = update.works(size)
        return {name: found[name] for name in ("kit", "plain")}
    policy, prompts = make_policy(size), make_prompts(size)
    plainly = rollout.plainly(policy, prompts, size)
    return {"kit": rollout.kit(policy, prompts, size, rollout.RECORDS), "plain": plainly}


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=list(AXES), action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows, measured = [], {}
    for axis in given.axis or AXES:
        changes: list[dict[str, Any]] = [{axis: value} for value in AXES[axis]]
        sizes = [replace(BASE, **change) for change in changes]
        seconds = [interleaved(works(axis, size), given.repeats) for size in sizes]
        name = "steps" if axis == "per_step" else axis
        x = [float(size.steps if axis == "per_step" else getattr(size, axis)) for size in sizes]
        lines = {who: (x, [s[who] for s in seconds]) for who in ("kit", "plain")}
        rows.append({"axis": name, **{who: growth(*lines[who]) for who in lines}})
        measured[name] = lines
        plot(given.out / f"growth-{name}.png", f"Growth in {name}", name, "seconds", lines)
    print("log-log slopes of time:")
    report("growth", given.out, rows, measured=measured)


if __name__ == "__main__":
    main()
