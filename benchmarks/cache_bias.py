"""How far cached rollouts pull the policy gradient away, exactly, and what the corrections leave of it.

    OMP_NUM_THREADS=1 python benchmarks/cache_bias.py --problems 40 --out results

On random small problems (two blocks of two tokens, a network of two attention layers, random rewards) every trajectory
is listed, sampled by low-confidence remasking at temperature 0.9; all other components are exact. Refreshes within a
block are measured on problems of one block of three tokens, where the two caches are the same (``--intervals``).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from common import report

from dlmrl_kit.audit import Problem, audit_algorithm, exact_estimator
from dlmrl_kit.caches.base import Cache
from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.caches.prefix_cache import PrefixCache
from dlmrl_kit.corrections.base import Correction
from dlmrl_kit.corrections.trajectory_importance import TrajectoryImportance
from dlmrl_kit.corrections.truncated_importance import TruncatedImportance
from dlmrl_kit.corrections.uncorrected import Uncorrected
from dlmrl_kit.samplers.low_confidence import LowConfidence

CORRECTIONS = (Uncorrected, TruncatedImportance, TrajectoryImportance)


def measured(cache: Cache, correction: Correction, seed: int, length: int, block: int) -> tuple[float, float]:
    """Audits one problem; returns the relative bias and the relative variance of the gradient."""
    problem = Problem(vocab=2, length=length, block_length=block, policy="deep network", seed=seed)
    estimator = exact_estimator(LowConfidence(length, temperature=0.9), {"cache": cache, "correction": correction})
    found = audit_algorithm(estimator, problems=[problem], attribution=False).measured[0]
    assert found.relative_bias is not None
    assert found.relative_variance is not None
    return found.relative_bias, found.relative_variance


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--intervals", action="store_true", help="refreshes within a block of three, by interval")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    given = parser.parse_args()
    rows = []
    caches: tuple[Cache, ...] = (PrefixCache(), DualCache())
    length, block = 4, 2
    if given.intervals:
        caches, length, block = tuple(DualCache(interval) for interval in (1, 2, 3)), 3, 3
    for cache in caches:
        seeds = range(given.problems)
        found = {cls: [measured(cache, cls(), seed, length, block) for seed in seeds] for cls in CORRECTIONS}
        without = [bias for bias, _ in found[Uncorrected]]
        for cls, audits in found.items():
            biases = [bias for bias, _ in audits]
            row: dict[str, object] = {"cache": type(cache).__name__, "correction": cls.__name__}
            row |= {"interval": cache.refresh} if given.intervals else {}
            row |= {"median_bias": statistics.median(biases), "largest_bias": max(biases)}
            row["smaller_than_uncorrected"] = sum(a < b for a, b in zip(biases, without, strict=True))
            row["median_relative_variance"] = statistics.median(variance for _, variance in audits)
            rows.append(row)
    report("cache_bias", given.out, rows, problems=given.problems)


if __name__ == "__main__":
    main()
