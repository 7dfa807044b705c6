"""A whole cycle of EGSPO-SA by phase: the kit, the plain implementation and two floors, in one process.

    OMP_NUM_THREADS=1 python benchmarks/cycle.py --vocab 512 --vocab 32000 --vocab 126464 --out results

A cycle is a rollout with all of EGSPO-SA's records, the reference's log-probabilities of K steps of each sample, and
the policy's with gradients and the optimiser's step. *Floor* is that of ``rollout.py`` and ``update.py``: transformers'
own layers, nothing sampled and nothing recorded. *Tight* is the rollout's floor of ``tight.py``, a hand-written
transformer; with greedy completions it also runs its head where these need it. *Bare* is a rollout that records no
greedy completions. First come seconds, then ratios. ``released/kit`` is a quotient: how much slower plain is than the
kit, over how much slower plain is than released code (``PLAIN_TO_RELEASED``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from common import Size, interleaved, make_policy, make_prompts, parser_of, report
from rollout import RECORDS, floor, kit, plainly
from tight import behind_counts, tight
from update import parts

PLAIN_TO_RELEASED: Mapping[int, float] = {512: 0.88, 32_000: 0.92, 126_464: 1.03}
"""Seconds of plain's rollout over those of EGSPO's released code, by vocabulary.

Measured side by side (0.99, 1.30, 1.33) before plain was made 1.13, 1.41 and 1.29 times faster, also side by side. The
released code is not part of this repository, so that no script here measures it again.
"""


def measure(size: Size, repeats: int, with_plain: bool) -> dict[str, float]:
    """Measures one size; returns the seconds of each phase and the ratios."""
    policy, prompts = make_policy(size), make_prompts(size)
    updates = parts(size, with_plain, policy)
    works: dict[str, Callable[[], object]] = {
        "kit_rollout": kit(policy, prompts, size, RECORDS),
        "kit_bare": kit(policy, prompts, size),
        "floor_rollout": floor(policy, prompts, size),
        "tight_bare": tight(policy, prompts, size),
        "tight_rollout": tight(policy, prompts, size, behind_counts(policy, prompts, size)),
    }
    if with_plain:
        works["plain_rollout"] = plainly(policy, prompts, size)
    for name, update in updates.items():  # the reference first: the policy's part reads what it has computed
        works |= {f"{name}_reference": update.reference, f"{name}_policy": update.policy}
    seconds = interleaved(works, repeats)
    return {**seconds, **ratios(seconds, size)}


def ratios(seconds: dict[str, float], size: Size) -> dict[str, float]:
    """Computes the ratios of the table from the medians of the phases."""

    def update(name: str) -> float:
        return seconds[f"{name}_reference"] + seconds[f"{name}_policy"]

    found = {
        "kit_cycle": seconds["kit_rollout"] + update("kit"),
        "rollout/floor": seconds["kit_rollout"] / seconds["floor_rollout"],
        "bare/floor": seconds["kit_bare"] / seconds["floor_rollout"],
        "rollout/tight": seconds["kit_rollout"] / seconds["tight_rollout"],
        "bare/tight": seconds["kit_bare"] / seconds["tight_bare"],
        "update/floor": update("kit") / update("floor"),
    }
    if "plain_rollout" in seconds:
        found["plain_cycle"] = seconds["plain_rollout"] + update("plain")
        found["plain/kit"] = found["plain_cycle"] / found["kit_cycle"]
        for phase in ("rollout", "reference", "policy"):
            found[f"plain/kit {phase}"] = seconds[f"plain_{phase}"] / seconds[f"kit_{phase}"]
        if size.vocab in PLAIN_TO_RELEASED:
            found["released/kit rollout"] = found["plain/kit rollout"] / PLAIN_TO_RELEASED[size.vocab]
    return found


def main() -> None:
    """See the module docstring."""
    fields = ("hidden", "layers", "batch", "prompt", "length", "per_step", "selected")
    parser = parser_of(__doc__, *fields, repeats=5)
    parser.add_argument("--no-plain", action="store_true")
    given = parser.parse_args()
    sizes = {name: getattr(given, name) for name in fields}
    vocabs = given.vocab or (512, 32_000, 126_464)
    columns = {f"vocabulary {v:,}": measure(Size(vocab=v, **sizes), given.repeats, not given.no_plain) for v in vocabs}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [{"": name, **{head: column.get(name, "") for head, column in columns.items()}} for name in names]
    report("cycle", given.out, rows, sizes=sizes)


if __name__ == "__main__":
    main()
