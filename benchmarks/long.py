"""Long completions: what a denoising step and an update cost at 512, 2,048 and 8,192 tokens.

    OMP_NUM_THREADS=1 python benchmarks/long.py

Of every length there are 16 denoising steps, each of which commits a whole block, so that a step's cost is compared and
not how many there are. Attention grows with the square of the length; a slope above 1 anywhere else would be a fault.
The processor time of everything but the body is that of drawing, confidences, bookkeeping and one-step completions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import rollout
import update
from common import Size, growth, in_fresh_process, make_policy, make_prompts, peak_megabytes, report

from dlmrl_kit.core.phases import listening

BASE = Size(vocab=512, hidden=64, layers=2, prompt=32, batch=2, selected=2, lora=4, micro_tokens=1)
LENGTHS = (512, 2048, 8192)
STEPS = 16


def sized(length: int) -> Size:
    """Returns the problem of this length: blocks of a sixteenth, each committed in one step."""
    return replace(BASE, length=length, block=length // STEPS, per_step=length // STEPS)


class Body:
    """Adds up the processor seconds of the phase ``body``."""

    seconds = 0.0

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times one phase."""
        started = time.process_time()
        try:
            yield
        finally:
            self.seconds += (time.process_time() - started) * (name == "body")


def measured(length: int) -> dict[str, Any]:
    """Measures a rollout and an update of this length, after those of 64 tokens, which warm up."""
    found: dict[str, Any] = {"length": length}
    for size in (sized(64), sized(length)):
        policy, prompts = make_policy(size), make_prompts(size)
        work, body = rollout.kit(policy, prompts, size, rollout.RECORDS), Body()
        with listening(body):
            started = time.process_time()
            found["rollout, MB"] = peak_megabytes(work)
            whole = time.process_time() - started
        found["body, s/step"], found["rest, s/step"] = body.seconds / STEPS, (whole - body.seconds) / STEPS
        learn = update.works(size)["kit"]
        started = time.process_time()
        found["update, MB"] = peak_megabytes(learn)
        found["update, s"] = time.process_time() - started
    return found


def main() -> None:
    """See the module docstring."""
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(measured(**json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, action="append")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    given = parser.parse_args()
    lengths = given.length or LENGTHS
    rows = [in_fresh_process(__file__, {"length": length}) for length in lengths]
    columns = [name for name in rows[0] if name != "length"]
    slopes = {name: growth([float(n) for n in lengths], [row[name] for row in rows]) for name in columns}
    report("long", given.out, [*rows, {"length": "slope", **slopes}])


if __name__ == "__main__":
    main()
