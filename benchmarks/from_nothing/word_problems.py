"""Writes word problems with worked solutions, of reasoning-gym's ``leg_counting``: the data of docs/from-nothing.md.

Each line has a question in reasoning-gym's words, without its first sentence, which is the same in all; its answer; and
a solution worked in words. The file is the same every time::

    python benchmarks/from_nothing/word_problems.py word_problems.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

SEED = 2026
ANIMALS = 2
"""Kinds of animals in a problem."""
MOST = 6
"""Most animals of a kind."""


def problems(number: int) -> Iterator[dict[str, str]]:
    """Yields different problems."""
    import reasoning_gym
    from reasoning_gym.arithmetic.leg_counting import ANIMALS as LEGS

    entries = reasoning_gym.create_dataset(
        "leg_counting", seed=SEED, size=2 * number, min_animals=ANIMALS, max_animals=ANIMALS, max_instances=MOST
    )
    seen: set[str] = set()
    for entry in entries:
        if entry["question"] not in seen and len(seen) < number:
            seen.add(entry["question"])
            counts = entry["metadata"]["animals"]
            legs = {name: count * LEGS[name] for name, count in counts.items()}
            each = ", ".join(f"{count} {name}s have {legs[name]} legs" for name, count in counts.items())
            total = " + ".join(map(str, legs.values()))
            worked = f"{each}. {total} = {sum(legs.values())}"
            question = entry["question"].split("\n\n")[-1].strip()
            yield {"question": question, "answer": entry["answer"], "worked": worked}


def main() -> None:
    """Writes the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--number", type=int, default=20_000)
    given = parser.parse_args()
    with given.file.open("w", encoding="utf-8") as file:
        for problem in problems(given.number):
            file.write(json.dumps(problem) + "\n")


if __name__ == "__main__":
    main()
