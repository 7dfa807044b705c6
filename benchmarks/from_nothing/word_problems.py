"""Writes the data of docs/from-nothing.md, word problems of reasoning-gym's ``leg_counting``, and scores their answers.

Texts that base models learn from are of mixed quality. So are these: of the problems that pre-training shows, half are
answered by a hasty reader, who overlooks how many there are of each animal. All others have the right answer, with the
legs of each kind before the sum. The file is the same every time::

    python benchmarks/from_nothing/word_problems.py problems.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SEED = 2026
HASTY = 0.5
"""Share of hasty answers among those that pre-training shows."""
SIZES = {"pretrain": 15_000, "train": 4_000, "heldout": 400}
"""How many problems each split has: those shown in pre-training, those asked in reinforcement learning, the others."""


def problems() -> Iterator[tuple[str, dict[str, int]]]:
    """Yields different questions about two kinds of animals, one to four of each, and how many there are."""
    import reasoning_gym

    config = {"min_animals": 2, "max_animals": 2, "min_instances": 1, "max_instances": 4}
    seen: set[str] = set()
    for entry in reasoning_gym.create_dataset("leg_counting", seed=SEED, size=100_000, **config):
        question = entry["question"].strip().splitlines()[-1]  # the line before it is the same everywhere
        if question not in seen:
            seen.add(question)
            yield question, entry["metadata"]["animals"]


def solution(animals: dict[str, int], hasty: bool) -> str:
    """Returns an answer in words: of a careful reader, or of one who counts each kind once."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    legs = [ANIMALS[animal] * (1 if hasty else count) for animal, count in animals.items()]
    return f"{' legs and '.join(map(str, legs))} legs, so {sum(legs)}."


def score(completion: str, example: Any) -> dict[str, float]:
    """The reward: the share of the three numbers that are right; solved is a completion whose last number is."""
    stated, right = (re.findall(r"\d+", text) for text in (completion, example.answer))
    shared = sum(one == other for one, other in zip(stated, right, strict=False))
    share = shared / max(len(stated), len(right))
    return {"reward": share, "solved": float(stated[-1:] == right[-1:])}


def main() -> None:
    """Writes the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    drawn, found, rows = random.Random(SEED), problems(), []
    for split, size in SIZES.items():
        for _ in range(size):
            question, animals = next(found)
            hasty = split == "pretrain" and drawn.random() < HASTY
            rows.append({"prompt": question, "answer": solution(animals, hasty), "split": split})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
