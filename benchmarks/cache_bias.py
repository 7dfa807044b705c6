"""How far cached rollouts pull the policy gradient away, exactly, and what the corrections leave of it.

    OMP_NUM_THREADS=1 python benchmarks/cache_bias.py --problems 40 --out results

On random small problems (two blocks of two tokens, a network of two attention layers, random rewards) every trajectory
is listed, sampled by low-confidence remasking at temperature 0.9; all other components are exact.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from common import report

from dlmrl_kit.audit import Problem, audit_algorithm, exact_algorithm
from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.caches.prefix_cache import PrefixCache
from dlmrl_kit.corrections.trajectory_importance import TrajectoryImportance
from dlmrl_kit.corrections.truncated_importance import TruncatedImportance
from dlmrl_kit.corrections.uncorrected import Uncorrected
from dlmrl_kit.samplers.low_confidence import LowConfidence

CORRECTIONS = (Uncorrected, TruncatedImportance, TrajectoryImportance)


def measured(cache: Any, correction: Any, seed: int) -> Any:
    """The audit of one problem."""
    problem = Problem(vocab=2, length=4, block_length=2, policy="deep network", seed=seed)
    algorithm = exact_algorithm(LowConfidence(4, temperature=0.9), cache=cache, correction=correction)
    return audit_algorithm(algorithm, problems=[problem], attribution=False).measured[0]


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    given = parser.parse_args()
    rows = []
    for cache in (PrefixCache(), DualCache()):
        found = {cls: [measured(cache, cls(), seed) for seed in range(given.problems)] for cls in CORRECTIONS}
        without = [m.relative_bias for m in found[Uncorrected]]
        for cls, audits in found.items():
            biases = [m.relative_bias for m in audits]
            row: dict[str, Any] = {"cache": type(cache).__name__, "correction": cls.__name__}
            row |= {"median_bias": statistics.median(biases), "largest_bias": max(biases)}
            row["smaller_than_uncorrected"] = sum(a < b for a, b in zip(biases, without, strict=True))
            row["median_relative_variance"] = statistics.median(m.relative_variance for m in audits)
            rows.append(row)
    report("cache_bias", given.out, rows, problems=given.problems)


if __name__ == "__main__":
    main()
