"""Rollout and update of an 8B-shaped random LLaDA on a GPU: the kit, its floor and the plain implementation.

    python benchmarks/gpu.py --out results
    python benchmarks/gpu.py --layers 8 --batch 2 --no-plain     # a smaller card

Seconds, tokens per second of a rollout, the share of the card's matrix-product rate and the peak memory over the
weights. The rate is measured first, on a large product in the same precision; the operations are torch's count of
matrix products and attention in one run of each work, which is not timed. On a CPU, which needs a small size, torch
does not count attention, and there is no peak memory (``memory.py`` has it).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import rollout
import torch
import update
from common import Size, interleaved, make_policy, make_prompts, report, synchronise
from torch.utils.flop_counter import FlopCounterMode

from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.caches.prefix_cache import PrefixCache

LLADA = Size(
    vocab=126_464,
    hidden=4096,
    layers=32,
    mlp=12_288,
    head=128,
    prompt=200,
    length=256,
    lora=128,
    micro_tokens=2048,
    device="cuda",
    dtype="bfloat16",
)
"""LLaDA-8B with a group of six and EGSPO's K = 8; micro-batches of four sequences."""


def matrix_rate(size: Size, side: int) -> float:
    """Measures the operations per second of a square matrix product."""
    options: Any = {"device": size.device, "dtype": getattr(torch, size.dtype)}
    left, right = (torch.ones(side, side, **options) for _ in range(2))
    return 2.0 * side**3 / interleaved({"product": lambda: left @ right}, 5)["product"]


def operations(work: Callable[[], object]) -> float:
    """Counts the operations of the matrix products and attention of a work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def peak_gigabytes(work: Callable[[], object], device: str) -> float | None:
    """Measures the peak memory of a GPU over what it held before; None on a CPU."""
    if torch.device(device).type != "cuda":
        return None
    synchronise()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    synchronise()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def works(size: Size, with_plain: bool) -> dict[str, Callable[[], object]]:
    """Prepares everything that is measured, on one policy."""
    policy, prompts = make_policy(size), make_prompts(size)
    found: dict[str, Callable[[], object]] = {
        "rollout, kit": rollout.kit(policy, prompts, size),
        "rollout, kit, greedy": rollout.kit(policy, prompts, size, rollout.RECORDS),
        "rollout, PrefixCache": rollout.kit(policy, prompts, size, cache=PrefixCache()),
        "rollout, DualCache": rollout.kit(policy, prompts, size, cache=DualCache()),
    }
    if with_plain:
        found["rollout, plain"] = rollout.plainly(policy, prompts, size)
    updates = update.works(size, with_plain, policy)
    return found | {f"update, {name}": work for name, work in updates.items()}


def measure(size: Size, repeats: int, with_plain: bool, side: int) -> list[dict[str, Any]]:
    """Measures each work; returns a row of the table for each."""
    rate, timed = matrix_rate(size, side), works(size, with_plain)
    seconds = interleaved(timed, repeats)
    rows = []
    for name, work in timed.items():
        count, phase = operations(work), name.partition(",")[0]
        rows.append(
            {
                "work": name,
                "seconds": seconds[name],
                "tokens_per_second": size.batch * size.length / seconds[name] if phase == "rollout" else "",
                "tera_operations": count / 1e12,
                "share_of_peak": count / seconds[name] / rate,
                "peak_gigabytes": peak_gigabytes(work, size.device),
                "times_kit": seconds[name] / seconds[f"{phase}, kit"],
            }
        )
    return rows


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Size):
        default = getattr(LLADA, field.name)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, default=8192, help="of the matrices whose product gives the card's rate")
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    given = parser.parse_args()
    size = Size(**{field.name: getattr(given, field.name) for field in fields(Size)})
    rows = measure(size, given.repeats, not given.no_plain, given.side)
    card = torch.cuda.get_device_name() if torch.device(size.device).type == "cuda" else size.device
    report("gpu", given.out, rows, card=card, size=asdict(size))


if __name__ == "__main__":
    main()
