"""What the exact log-probability costs: an update with ``StepLogProb`` beside one with ``StepTokenLogProb``.

    OMP_NUM_THREADS=1 python benchmarks/exact.py --vocab 32000 --out results

The order term needs the logits of every position that the step could have committed, the token part those of the
positions committed. Times are interleaved in one process; peak memory, over the model's own, is that of fresh
processes, as in ``memory.py``. ``--train all``: without an adapter, so that the head is trained too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
import update
from common import Size, in_fresh_process, interleaved, make_policy, parser_of, peak_megabytes, report

from dlmrl_kit.likelihoods.steps import StepLikelihood, StepLogProb, StepTokenLogProb
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

LIKELIHOODS: dict[str, Callable[[], StepLikelihood]] = {"tokens": StepTokenLogProb, "exact": StepLogProb}


def work(size: Size, name: str, policy: TransformersPolicy | None = None) -> Callable[[], None]:
    """Prepares an update with one of ``LIKELIHOODS``; ``policy``: None for one of its own."""
    policy = policy or make_policy(size)
    if not size.lora:
        policy.freeze_reference()
    return update.kit_of(policy, size, LIKELIHOODS[name]())


def worker(given: dict[str, Any]) -> float:
    """Measures the peak memory of an update in this process, in megabytes."""
    torch.set_num_threads(1)
    size = Size(**given["size"])
    work(replace(size, vocab=64, batch=2), given["likelihood"])()  # imports and buffers are not the work's memory
    return peak_megabytes(work(size, given["likelihood"]))


def measure(size: Size, repeats: int) -> dict[str, Any]:
    """Measures time and memory of both likelihoods at a size, and their ratios."""
    policy = make_policy(size)
    seconds = interleaved({name: work(size, name, policy) for name in LIKELIHOODS}, repeats)
    peak = {name: float(in_fresh_process(__file__, {"size": asdict(size), "likelihood": name})) for name in LIKELIHOODS}
    return {
        "vocab": size.vocab,
        "trained": "adapter" if size.lora else "all",
        **{f"{name}, s": value for name, value in seconds.items()},
        "time ratio": seconds["exact"] / seconds["tokens"],
        **{f"{name}, MB": value for name, value in peak.items()},
        "memory ratio": peak["exact"] / peak["tokens"],
    }


def main() -> None:
    """See the module docstring."""
    parser = parser_of(__doc__, repeats=5)
    parser.add_argument("--train", choices=("adapter", "all"), action="append")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(worker(json.loads(given.worker))))
        return
    rows = []
    for vocab in given.vocab or (32_000,):
        for trained in given.train or ("adapter",):
            rows.append(measure(Size(vocab=vocab, lora=16 if trained == "adapter" else 0), given.repeats))
    report("exact", given.out, rows)


if __name__ == "__main__":
    main()
