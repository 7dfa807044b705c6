"""How the kit's cost grows in time and memory: a rollout in steps, length, batch and vocabulary; an update in K.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --out results

A slope of 1 is linear. The number of steps stays where the length grows. The plain implementation is measured at the
smaller sizes only (``PLAIN``); memory is the kit's peak over the model's own, each in a fresh process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import memory
import rollout
import update
from common import Size, growth, interleaved, make_policy, make_prompts, plot, report

BASE = Size(vocab=4096, hidden=128, layers=4, prompt=32, length=32, block=16, per_step=2, batch=4, selected=4)
AXES: dict[str, tuple[int, ...]] = {
    "per_step": (8, 4, 2, 1),
    "length": (32, 64, 128, 256, 512),
    "batch": (1, 2, 4, 8, 16, 32, 64),
    "vocab": (1024, 4096, 16_384),
    "selected": (2, 4, 8),
}
PLAIN: dict[str, int] = {"length": 64, "batch": 8}
"""The largest size that the plain implementation is measured at, where that is not the largest of all."""


def sized(axis: str, value: int) -> Size:
    """Returns the size with another value on an axis; as many steps where the length is another."""
    changes: dict[str, Any] = {axis: value}
    if axis == "length":
        changes |= {"per_step": max(1, value // BASE.steps), "block": value // 2}
    return replace(BASE, **changes)


def works(axis: str, value: int) -> dict[str, Callable[[], object]]:
    """Prepares the kit's and the plain implementation's work at a size: updates for ``selected``, else rollouts."""
    size = sized(axis, value)
    if axis == "selected":
        timed: dict[str, Callable[[], object]] = {**update.works(size)}
    else:
        policy, prompts = make_policy(size), make_prompts(size)
        timed = {"kit": rollout.kit(policy, prompts, size, rollout.RECORDS)}
        timed["plain"] = rollout.plainly(policy, prompts, size)
    names = ("kit", "plain") if value <= PLAIN.get(axis, value) else ("kit",)
    return {name: timed[name] for name in names}


def measured(axis: str, repeats: int, with_memory: bool) -> tuple[list[float], dict[str, list[float]]]:
    """Returns the sizes of an axis, and at each of them seconds of kit and plain and the kit's megabytes."""
    found: dict[str, list[float]] = {}
    for value in AXES[axis]:
        numbers = interleaved(works(axis, value), repeats)
        if with_memory:
            phase = "update" if axis == "selected" else "rollout"
            numbers["memory"] = memory.measure(sized(axis, value), phase, "kit")
        for name, number in numbers.items():
            found.setdefault(name, []).append(number)
    x = [float(sized(axis, value).steps if axis == "per_step" else value) for value in AXES[axis]]
    return x, found


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=list(AXES), action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true", help="time alone: memory takes a process for each size")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows, numbers = [], {}
    for axis in given.axis or AXES:
        x, found = measured(axis, given.repeats, not given.no_memory)
        name = "steps" if axis == "per_step" else axis
        lines = {who: (x[: len(values)], values) for who, values in found.items()}
        slopes = {who: growth(*line) for who, line in lines.items()}
        rows.append({"axis": name, "from": int(min(x)), "to": int(max(x)), **slopes})
        numbers[name] = lines
        seconds = {who: line for who, line in lines.items() if who != "memory"}
        plot(given.out / f"growth-{name}.png", f"Growth in {name}", name, "seconds", seconds)
        for who, (sizes, values) in lines.items():
            print(
                f"{name}, {who}:",
                ", ".join(f"{size:.0f}: {value:.3g}" for size, value in zip(sizes, values, strict=True)),
            )
    print("log-log slopes of time, and of the kit's memory:")
    report("growth", given.out, rows, measured=numbers)


if __name__ == "__main__":
    main()
