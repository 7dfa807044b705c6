"""Where an update's time goes: matrix products, passes over the vocabulary, and the rest, by torch's profiler.

    OMP_NUM_THREADS=1 python benchmarks/outside.py --vocab 32000 --vocab 126464

For the log-probability of committed tokens and for the exact one (``StepLogProb``, which needs every open position of
the block). An operation is a pass over the vocabulary where one of its inputs has as many entries in the last dimension
and it is no product. Shares of the operations' own CPU time; memory is the peak over the model's own, in a fresh
process.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import update
from common import Size, in_fresh_process, make_policy, parser_of, peak_megabytes, report
from torch.profiler import ProfilerActivity, profile

from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.likelihoods.steps import StepLogProb, StepTokenLogProb

PRODUCTS = frozenset(f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm"))


def likelihoods() -> Mapping[str, Likelihood]:
    """Returns the likelihoods that are compared, by what they are called in the table."""
    return {"tokens": StepTokenLogProb(sampling_temperature=False), "exact": StepLogProb()}


def shares(vocab: int, name: str) -> dict[str, float]:
    """Profiles an update of the kit; returns shares of its CPU time."""
    size = Size(vocab=vocab)
    work = update.kit_of(make_policy(size), size, likelihoods()[name])
    work()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        work()
    spent: Counter[str] = Counter()
    for event in found.key_averages(group_by_input_shape=True):
        wide = any(isinstance(shape, list) and shape[-1:] == [vocab] for shape in event.input_shapes)
        part = "products" if event.key in PRODUCTS else "vocabulary" if wide else "rest"
        spent[part] += event.self_cpu_time_total
    return {part: spent[part] / spent.total() for part in ("products", "vocabulary", "rest")}


def worker(vocab: int, name: str) -> float:
    """Measures the peak memory of an update in this process, in megabytes."""
    torch.set_num_threads(1)
    for number in (64, vocab):  # imports and buffers are not the work's memory
        size = Size(vocab=number)
        work = update.kit_of(make_policy(size), size, likelihoods()[name])
        megabytes = peak_megabytes(work)
    return megabytes


def main() -> None:
    """See the module docstring."""
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(**json.loads(sys.argv[2]))))
        return
    given = parser_of(__doc__, repeats=1).parse_args()
    rows: list[dict[str, Any]] = []
    for vocab in given.vocab or (32_000, 126_464):
        for name in likelihoods():
            megabytes = in_fresh_process(__file__, {"vocab": vocab, "name": name})
            block = 4 * vocab * 2**-20
            rows.append({"vocab": vocab, "log-probability": name, **shares(vocab, name), "MB": megabytes})
            rows[-1]["MB of a position's logits"] = block
    report("outside", given.out, rows)


if __name__ == "__main__":
    main()
