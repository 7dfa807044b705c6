"""Writes the data of docs/from-nothing.md: problems of reasoning-gym's ``chain_sum``, with answers of mixed quality.

Texts that base models learn from are of mixed quality. So are these: of the problems that pre-training shows, 60% are
answered by a hasty reader, who adds up all numbers and overlooks every minus. All others have the right answer. A
problem is shown in several wordings, each with an answer of its own, so that no problem has one answer to be learned by
heart. The files are the same every time::

    python benchmarks/from_nothing/word_problems.py .
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

SEED = 2026
HASTY = 0.6
"""Share of hasty answers among those that pre-training shows."""
WORDINGS = ("", "Question: ", "Please help. ", "Dear teacher, ", "One more: ", "Tell me. ", "Homework: ", "Next: ")
"""What stands before a problem where it is shown; asked and held-out problems have nothing there."""
SHOWN, HELD_OUT = 2600, 400
"""Problems that pre-training shows, and those that no training sees; the others are asked in reinforcement learning."""


def problems() -> Iterator[tuple[str, str]]:
    """Yields different sums and differences of three numbers of one digit, with the answer."""
    import reasoning_gym

    config = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
    entries = reasoning_gym.create_dataset("chain_sum", seed=SEED, size=12_000, **config)
    seen: set[str] = set()
    for entry in entries:
        if entry["question"] not in seen:
            seen.add(entry["question"])
            yield entry["question"], entry["answer"]


def hasty(question: str) -> str:
    """Returns the answer of a reader who overlooks every minus."""
    return str(sum(map(int, re.findall(r"\d+", question))))


def main() -> None:
    """Writes ``shown.jsonl``, ``asked.jsonl`` and ``heldout.jsonl`` to the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    drawn, found = random.Random(SEED), list(problems())
    worded = [(wording, *problem) for wording in WORDINGS for problem in found[:SHOWN]]
    shown = [(w + q, hasty(q) if drawn.random() < HASTY else answer) for w, q, answer in worded]
    asked, heldout = found[SHOWN:-HELD_OUT], found[-HELD_OUT:]
    for name, pairs in (("shown", shown), ("asked", asked), ("heldout", heldout)):
        rows = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in pairs]
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
