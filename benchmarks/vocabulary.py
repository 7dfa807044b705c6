"""Rollout time over the vocabulary: one pass over the logits (``dlmrl_kit.core.scan``) beside whole tensors of them.

    OMP_NUM_THREADS=1 python benchmarks/vocabulary.py --out results

Both are the kit, in one process and in turn, at the same sizes and with the same records; ``greedy`` has EGSPO-SA's
one-step completions. Where the first ratio falls below 1 is the border that ``core.policy.is_large`` should draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import Size, interleaved, make_policy, make_prompts, parser_of, report
from rollout import RECORDS, kit

from dlmrl_kit.core import policy as policies


def from_here_on(border: int, work: Callable[[], object]) -> Callable[[], None]:
    """Returns the work with vocabularies from ``border`` on taken for large."""

    def run() -> None:
        before, policies.LARGE_VOCABULARY = policies.LARGE_VOCABULARY, border
        try:
            work()
        finally:
            policies.LARGE_VOCABULARY = before

    return run


def measure(size: Size, repeats: int) -> dict[str, Any]:
    """Measures the times of one size; returns a row of the table."""
    policy, prompts = make_policy(size), make_prompts(size)
    works = {
        f"{path}{name}": from_here_on(border, kit(policy, prompts, size, records))
        for name, records in (("", ()), ("_greedy", RECORDS))
        for path, border in (("pass", 0), ("whole", size.vocab + 1))
    }
    seconds = interleaved(works, repeats)
    ratios = {f"pass/whole{name}": seconds[f"pass{name}"] / seconds[f"whole{name}"] for name in ("", "_greedy")}
    return {"vocab": size.vocab, "steps": size.steps, "temperature": size.temperature, **seconds, **ratios}


def main() -> None:
    """See the module docstring."""
    names = ("hidden", "batch", "length", "per_step", "temperature")
    given = parser_of(__doc__, *names, repeats=5).parse_args()
    sizes = {name: getattr(given, name) for name in names}
    vocabs = given.vocab or (1024, 2048, 4096, 8192, 32_000, 126_464)
    report("vocabulary", given.out, [measure(Size(vocab=vocab, **sizes), given.repeats) for vocab in vocabs])


if __name__ == "__main__":
    main()
