"""How the kit's cost grows in time and memory: rollouts and updates in steps, batch, length, vocabulary, prompts and K.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --out results

A slope of 1 is linear. The number of steps stays where the length grows, and the mean prompt where prompts are mixed,
which the kit runs by like length, four at a time. The plain implementation is measured at the smaller sizes only;
memory is the kit's peak over the model's own, each in a fresh process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import memory
import rollout
import update
from common import Size, growth, interleaved, make_policy, make_prompts, plot, report

BASE = Size(vocab=4096, hidden=128, layers=4, prompt=32, length=32, block=16, per_step=2, batch=4, selected=4)
MIXED = replace(BASE, prompt=128, batch=16, micro_rows=4)


@dataclass(frozen=True)
class Axis:
    """One size that grows.

    Attributes:
        field: of ``Size``.
        values: of the field, in the order in which the cost grows.
        phase: what is measured, ``rollout`` or ``update``.
        plain: the last value at which the plain implementation is measured; None: at none.
        base: the other sizes.
    """

    field: str
    values: tuple[int, ...]
    phase: str = "rollout"
    plain: int | None = None
    base: Size = BASE

    def sized(self, value: int) -> Size:
        """Returns the size with this value; as many steps where the length is another."""
        changes: dict[str, Any] = {self.field: value}
        if self.field == "length":
            changes |= {"per_step": max(1, value // self.base.steps), "block": value // 2}
        return replace(self.base, **changes)

    def works(self, value: int) -> dict[str, Callable[[], object]]:
        """Prepares the kit's work with this value, and the plain implementation's."""
        size = self.sized(value)
        with_plain = self.plain is not None and self.values.index(value) <= self.values.index(self.plain)
        if self.phase == "update":
            timed = update.works(size, with_plain)
            timed.pop("floor")
            return timed
        policy, prompts = make_policy(size), make_prompts(size)
        timed = {"kit": memory.kit_rollout(policy, prompts, size)}
        return {**timed, "plain": rollout.plainly(policy, prompts, size)} if with_plain else timed


AXES: Mapping[str, Axis] = {
    "steps": Axis("per_step", (8, 4, 2, 1), plain=1),
    "length": Axis("length", (32, 64, 128, 256, 512), plain=64),
    "batch": Axis("batch", (1, 2, 4, 8, 16, 32, 64), plain=8),
    "vocab": Axis("vocab", (1024, 4096, 16_384), plain=16_384),
    "prompts": Axis("spread", (1, 3, 7), base=MIXED),
    "selected": Axis("selected", (2, 4, 8), "update", plain=8),
    "update-length": Axis("length", (32, 64, 128, 256, 512), "update"),
    "update-batch": Axis("batch", (1, 2, 4, 8, 16, 32, 64), "update"),
    "update-prompts": Axis("spread", (1, 3, 7), "update", base=MIXED),
}


def measured(axis: Axis, repeats: int, with_memory: bool) -> tuple[list[float], dict[str, list[float]]]:
    """Returns the sizes of an axis, and at each of them seconds of kit and plain and the kit's megabytes."""
    found: dict[str, list[float]] = {}
    for value in axis.values:
        numbers = interleaved(axis.works(value), repeats)
        if with_memory:
            numbers["memory"] = memory.measure(axis.sized(value), axis.phase, "kit")
        for name, number in numbers.items():
            found.setdefault(name, []).append(number)
    sizes = [axis.sized(value).steps if axis.field == "per_step" else value for value in axis.values]
    return [float(size) for size in sizes], found


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
    for name in given.axis or AXES:
        x, found = measured(AXES[name], given.repeats, not given.no_memory)
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
