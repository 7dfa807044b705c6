"""The work of each phase of an update, in CPU instructions, compared with what ``instructions.json`` has recorded.

    python benchmarks/instructions.py             # fails where a phase needs over 10% more than is recorded
    python benchmarks/instructions.py --record    # renews the record, after a change that was meant

Two updates of EGSPO-SA: of the recipe that is shipped, made small, where most is Python's work; and of a random model
with a vocabulary of 8,192, where most is work on logits. Counted are the bytecode instructions of Python, the
operations of torch, the bytes that these read and write, and their multiplications. From them instructions of the CPU
are estimated (``COSTS``). The counts are the same on every machine, whatever else runs there; with other versions of
Python or torch they are others.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from cluster import table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path(__file__).with_suffix(".json")
MORE = 1.1
"""A phase may need as many times the instructions that are recorded."""

COSTS = {"bytecode": 150.0, "operations": 10_500.0, "bytes": 0.44, "flops": 0.097}
"""Instructions of the CPU for each thing that is counted; measured with callgrind (docs/performance.md)."""

PHASES = {"sampling": "rollout", "old and reference": "reference", "update": "policy"}
"""What the kit calls the phases; all else is ``between``: prompts, selection, rewards, advantages, metrics."""

SMALL = (
    *("Trainer.prompts_per_update=2", "Trainer.group_size=3", "Trainer.updates=9", "Sampler.tokens_per_step=4"),
    *("Sudoku4x4.num_train=8", "Sudoku4x4.num_heldout=4", "Selector.k=2"),
)
Counts = dict[str, float]
Part = Callable[[str], AbstractContextManager[object]]
Work = Callable[[Part], None]


class Parts:
    """Shares out what is counted among the parts of a work, each to the innermost.

    Args:
        counts: what is counted so far, by name; grows while the work goes on.

    Attributes:
        found: the counts of each part.
    """

    def __init__(self, counts: Counts) -> None:
        self.found: dict[str, Counter[str]] = {}
        self._counts, self._last, self._open = counts, dict(counts), list[str]()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within the context, what is counted belongs to ``name``, except in parts of it."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        now = dict(self._counts)
        if self._open:
            own = self.found.setdefault(self._open[-1], Counter())
            own.update({name: value - self._last[name] for name, value in now.items()})
        self._last = now


@contextlib.contextmanager
def bytecode(counts: Counts) -> Iterator[None]:
    """Within the context, counts the bytecode instructions of functions that this thread calls."""

    def within(frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            counts["bytecode"] += 1
        return within

    def called(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename == __file__:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return within

    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(before)


class Operations(TorchDispatchMode):
    """Counts the operations that run within it, the bytes of their arguments and results, and their multiplications."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts it, or what it is made of."""
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry and func is not torch.ops.prim.device.default:
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        result = func(*args, **kwargs)
        self.counts["operations"] += 1
        if not func.is_view:
            tensors = {id(t): t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)}
            self.counts["bytes"] += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if func._overloadpacket in flop_registry:
            self.counts["flops"] += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        return result


def shipped() -> Work:
    """Prepares updates of the recipe that is shipped, made small; rewards are computed in the main thread."""
    from dlmrl_kit.algorithm.algorithm import Algorithm
    from dlmrl_kit.core.phases import listening
    from dlmrl_kit.recipe.load import load_recipe
    from dlmrl_kit.training.start import start_training
    from dlmrl_kit.training.update import Update

    algorithm = load_recipe("egspo_sa", uses=["logger=none"], sets=SMALL).build()
    assert isinstance(algorithm, Algorithm)
    algorithm.task.main_thread = True  # what a thread does would count for any phase, or for none
    update, numbers = Update(algorithm, *start_training(algorithm)), iter(range(9))

    def work(part: Part) -> None:
        with listening(lambda name: part(PHASES[name]) if name in PHASES else nullcontext()):
            update(next(numbers))

    return work


def vocabulary() -> Work:
    """Prepares updates of a random model with an adapter and a vocabulary of 8,192."""
    import rollout
    import update
    from common import Size, make_policy, make_prompts

    size = Size(8192, 32, 1, prompt=16, length=16, block=16, per_step=4, batch=4, selected=2, lora=4, head=16)
    policy, prompts = make_policy(size), make_prompts(size)
    sampling = rollout.kit(policy, prompts, size, rollout.RECORDS)
    kit = update.make_update(policy, size)
    run = update.trajectory(policy, prompts, size, kit)

    def work(part: Part) -> None:
        with part("rollout"):
            sampling()
        ready = update.Rollout(run, run.clone())
        with part("reference"):
            kit.prepare(ready)
        with part("policy"):
            kit.learn(ready.kept, 0)

    return work


WORKS: Mapping[str, Callable[[], Work]] = {"shipped": shipped, "vocabulary": vocabulary}


def counted(work: Work) -> dict[str, Counter[str]]:
    """Counts a work by its parts: bytecode the first time, operations the second time, as counting is work, too."""
    found: dict[str, Counter[str]] = {}
    for counting, names in ((bytecode, ("bytecode",)), (Operations, ("operations", "bytes", "flops"))):
        counts = dict.fromkeys(names, 0.0)
        parts = Parts(counts)
        gc.collect()
        gc.disable()  # what it ends, and when, depends on what was there before
        with counting(counts), parts.part("between"):
            work(parts.part)
        gc.enable()
        for name, values in parts.found.items():
            found.setdefault(name, Counter()).update(values)
    return found


def worker() -> None:
    """Counts all works, each after two that are not counted, and prints the counts as JSON."""
    torch.set_num_threads(1)
    found = {}
    for name, prepared in WORKS.items():
        work = prepared()
        for _ in range(2):
            work(lambda part: nullcontext())
        found |= {f"{name}, {part}": counts for part, counts in counted(work).items()}
    print(json.dumps(found))


def measure() -> dict[str, Counts]:
    """Returns the counts of each phase of both updates, from a process of its own, in which sets have one order."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(Path(__file__)), "--worker"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
    found: dict[str, Counts] = json.loads(done.stdout.splitlines()[-1])
    return found


def instructions(counts: Mapping[str, float]) -> float:
    """Estimates the CPU's instructions from what was counted."""
    return sum(COSTS[name] * value for name, value in counts.items())


def versions() -> dict[str, str]:
    """Returns the versions that the counts depend on."""
    packages = {name: version(name) for name in ("torch", "transformers", "peft", "tensordict")}
    return {"python": platform.python_version(), **packages}


def recorded() -> tuple[dict[str, str], dict[str, Counts]]:
    """Reads the record: versions and counts."""
    stored = json.loads(RECORD.read_text())
    return stored["versions"], stored["counts"]


def other_versions() -> str:
    """Says which versions are others than those of the record; empty where counts can be compared."""
    known, here = recorded()[0], versions()
    others = [name for name in known if _minor(here[name]) != _minor(known[name])]
    return ", ".join(f"{name} {here[name]} instead of {known[name]}" for name in others)


def _minor(text: str) -> list[str]:
    return re.findall(r"\d+", text)[:2]


def slower(found: Mapping[str, Counts], known: Mapping[str, Counts]) -> list[str]:
    """Says which phases need more than is allowed, with what was counted, or are in one of both only."""
    lines = [f"{name}: not {'measured' if name in known else 'recorded'}" for name in sorted({*found} ^ {*known})]
    for name in sorted({*found} & {*known}):
        more = instructions(found[name]) / instructions(known[name])
        if more > MORE:
            counts = ", ".join(f"{what} {known[name][what]:,.0f} -> {found[name][what]:,.0f}" for what in known[name])
            lines.append(f"{name}: {more - 1:.1%} more instructions than recorded ({counts})")
    return lines


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the counts of this checkout to instructions.json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker()
        return
    found = measure()
    if given.record:
        write_atomic(RECORD, json.dumps({"versions": versions(), "counts": found}, indent=1, sort_keys=True) + "\n")
    known = recorded()[1]
    rows = []
    for name, counts in sorted(found.items()):
        estimate = instructions(counts)
        against = f"{estimate / instructions(known[name]) - 1:+.1%}" if name in known else "new"
        shares = [f"{COSTS[what] * value / estimate:.0%}" for what, value in counts.items()]
        rows.append([name, f"{estimate / 1e6:.1f}", *shares, against])
    print(table(["phase", "million instructions", *COSTS, "against the record"], rows))
    if others := other_versions():
        sys.exit(f"the record was made with other versions ({others}): make one of an earlier commit first (--record)")
    if lines := slower(found, known):
        sys.exit("slower than recorded (--record renews the record):\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
