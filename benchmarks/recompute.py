"""Time and peak memory of an update over the number of blocks that recompute their activations.

    OMP_NUM_THREADS=1 python benchmarks/recompute.py --layers 8 --micro-tokens 6144 --out results

The update is that of ``update.py``: reference and current log-probability of the tokens that K steps of each sample
committed, with the gradient of an adapter. Seconds are of one process, in which the numbers of blocks take turns; peak
memory is measured as in ``memory.py``, each in a fresh process. Beside it stands the estimate by which
``Pretrained.gradient_checkpointing = 'auto'`` chooses.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import torch
import update
from common import Size, in_fresh_process, interleaved, make_policy, parser_of, peak_megabytes, report

from dlmrl_kit.policies.recompute import recompute_blocks
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.training.estimate import activations


def policy_of(size: Size, recomputed: int) -> TransformersPolicy:
    """Makes a policy of which so many blocks recompute their activations."""
    policy = make_policy(size)
    recompute_blocks(policy.model, recomputed)
    return policy


def worker(given: dict[str, Any]) -> float:
    """Measures the peak megabytes of an update over the model's own, in this process."""
    torch.set_num_threads(1)
    size, recomputed = Size(**given["size"]), given["recomputed"]
    small = replace(size, vocab=64, batch=2, micro_tokens=768)
    update.kit_of(policy_of(small, recomputed), small)()  # imports and thread-local buffers are not the work's memory
    return peak_megabytes(update.kit_of(policy_of(size, recomputed), size))


def estimated(size: Size, recomputed: int) -> float:
    """Returns the megabytes of activations by the kit's estimate."""
    policy = make_policy(size)
    made = update.make_update(policy, size)
    return activations(made.algorithm, made.plan, policy, size.prompt, recomputed) / 2**20


def main() -> None:
    """See the module docstring."""
    parser = parser_of(__doc__, "hidden", "layers", "batch", "selected", "micro_tokens", repeats=5)
    parser.add_argument("--worker")
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(worker(json.loads(given.worker))))
        return
    rows: list[dict[str, Any]] = []
    for vocab in given.vocab or (512,):
        names = ("hidden", "layers", "batch", "selected", "micro_tokens")
        size = Size(vocab=vocab, **{name: getattr(given, name) for name in names})
        numbers = sorted({0, size.layers // 2, size.layers - 1, size.layers})
        works = {str(number): update.kit_of(policy_of(size, number), size) for number in numbers}
        seconds = interleaved(works, given.repeats)
        for number in numbers:
            peak = in_fresh_process(__file__, {"size": asdict(size), "recomputed": number})
            row = {"vocab": vocab, "recomputed": number, "of": size.layers, "peak MB": peak}
            time = {"seconds": seconds[str(number)], "relative": seconds[str(number)] / seconds["0"]}
            rows.append({**row, "estimate MB": estimated(size, number), **time})
    report("recompute", given.out, rows)


if __name__ == "__main__":
    main()
