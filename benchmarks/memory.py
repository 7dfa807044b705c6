"""Peak memory over the model's own, each measurement in a fresh process.

    python benchmarks/memory.py --vocab 32000 --vocab 126464 --out results

Resident memory at its highest during the work, over what the process held before it (the model, its adapter and a
finished small run); blocks above 64 KiB go back to the system when they are freed, so that it counts live tensors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import rollout
import torch
import update
from common import Size, growth, in_fresh_process, make_policy, make_prompts, peak_megabytes, report
from tensordict import TensorDict

from dlmrl_kit.core.trajectory import cut, length_order
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

PHASES = ("rollout", "update")


def kit_rollout(policy: TransformersPolicy, prompts: TensorDict, size: Size) -> Callable[[], object]:
    """Prepares a rollout of the kit, with all records, ``micro_rows`` at a time, by the length of prompts."""
    rows = size.micro_rows or size.batch
    pieces = cut(prompts, rows, length_order(prompts, rows))
    works = [rollout.kit(policy, piece, size, rollout.RECORDS) for _, piece in pieces]
    return lambda: [work() for work in works]


def worker(given: dict[str, Any]) -> float:
    """Measures a phase of an implementation at a size, in this process."""
    torch.set_num_threads(1)
    size, phase, name = Size(**given["size"]), given["phase"], given["implementation"]

    def work_of(size: Size) -> Callable[[], object]:
        if phase == "update":
            return update.works(size)[name]
        policy, prompts = make_policy(size), make_prompts(size)
        if name == "plain":
            return rollout.plainly(policy, prompts, size)
        return kit_rollout(policy, prompts, size)

    work_of(replace(size, vocab=64, batch=2))()  # imports and thread-local buffers are not the work's memory
    return peak_megabytes(work_of(size))


def measure(size: Size, phase: str, implementation: str) -> float:
    """Measures a phase of an implementation in a process of its own; returns megabytes."""
    arguments = {"size": asdict(size), "phase": phase, "implementation": implementation}
    return float(in_fresh_process(__file__, arguments))


def grown(phase: str, sizes: dict[int, Size]) -> dict[str, Any]:
    """Measures the kit's megabytes at some sizes, by what grows, and fits the log-log slope."""
    found = [measure(size, phase, "kit") for size in sizes.values()]
    return {"at": list(sizes), "megabytes": found, "slope": growth(list(sizes), found)}


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, action="append")
    parser.add_argument("--per-step", type=int, default=2)
    parser.add_argument("--phase", choices=PHASES, action="append")
    parser.add_argument("--steps-growth", action="store_true", help="also the kit's rollout over the number of steps")
    parser.add_argument("--micro-growth", action="store_true", help="also the kit's update over the micro-batch")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(worker(json.loads(given.worker))))
        return
    rows: list[dict[str, Any]] = []
    for vocab in given.vocab or (32_000, 126_464):
        size = Size(vocab=vocab, per_step=given.per_step)
        for phase in given.phase or PHASES:
            found = {name: measure(size, phase, name) for name in ("kit", "plain")}
            rows.append({"vocab": vocab, "phase": phase, **found, "plain/kit": found["plain"] / found["kit"]})
    more = {}
    if given.steps_growth:
        steps = {size.steps: size for size in (Size(vocab=32_000, per_step=number) for number in (8, 4, 2, 1))}
        more["rollout over steps"] = grown("rollout", steps)
    if given.micro_growth:
        tokens = {number: Size(vocab=32_000, micro_tokens=number) for number in (768, 1536, 3072, 6144)}
        more["update over tokens of a micro-batch"] = grown("update", tokens)
    for name, values in more.items():
        print(f"kit's {name}:", values)
    report("memory", given.out, rows, growth=more)


if __name__ == "__main__":
    main()
