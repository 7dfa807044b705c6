"""Writes the data of two tasks of docs/referee.md, and scores their answers: decisions among noise, and long walks.

The files are the same every time::

    python benchmarks/referee/made_tasks.py FOLDER

**forks**: sixteen characters. Four places hold the same digit of 1 to 4, four others the same digit of 5 to 8, and the
eight places between them noise. Which two digits are right follows from the first two letters of the question. What is
shown in pre-training has the right digit less often than a certain wrong one. So a completion has two decisions, each
made in the denoising step that first commits one of four places; places committed in the same step are drawn apart and
may disagree, so that the order matters. The noise has two letters in quiet questions ("-abcdef:") and eight in noisy
ones ("+abcdef:"): there the steps of the highest entropy are those that decide nothing.

**walks**: 32 places on a map of 4 by 3 fields, named a to l, each a neighbour of the one before it. What is shown are
random walks from the first letter of the question ("adkc:"). Right is one that comes to at least ten of the twelve
fields: the reward is 1 for such a walk, and 0 for all others.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SEED = 2026
SIZES = {"pretrain": 6_000, "train": 2_000, "heldout": 400}
LETTERS = "abcdefgh"
PLACES = {"first": (0, 4, 8, 12), "second": (2, 6, 10, 14)}
DIGITS = {"first": "1234", "second": "5678"}
NOISE = {"-": "xy", "+": "stuvwxyz"}
FIELDS, WIDTH = "abcdefghijkl", 4
MOVES, VISITED = 32, 10
SHOWN = (0.3, 0.4, 0.15, 0.15)
"""How often pre-training shows the right digit, and the three others, of a group."""

Row = tuple[str, Callable[[random.Random], str]]


def neighbours(field: str) -> str:
    """Returns the fields above, below, left and right of one."""
    row, column = divmod(FIELDS.index(field), WIDTH)
    near = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
    return "".join(FIELDS[WIDTH * r + c] for r, c in near if 0 <= r < len(FIELDS) // WIDTH and 0 <= c < WIDTH)


def right_digits(prompt: str) -> dict[str, str]:
    """Returns the digit that is right in each group of places: letters 1 and 2 of the question decide."""
    return {group: DIGITS[group][LETTERS.index(prompt[i]) // 2] for i, group in enumerate(PLACES, start=1)}


def _forks(marker: str) -> Iterator[Row]:
    def shown(prompt: str, draw: random.Random) -> str:
        cells = [draw.choice(NOISE[marker]) for _ in range(16)]
        for group, right in right_digits(prompt).items():
            first = DIGITS[group].index(right)
            (chosen,) = draw.choices(range(4), SHOWN)
            for place in PLACES[group]:
                cells[place] = DIGITS[group][(first + chosen) % 4]
        return "".join(cells)

    draw = random.Random(f"{SEED}{marker}")
    seen: set[str] = set()
    while True:
        prompt = f"{marker}{''.join(draw.choices(LETTERS, k=6))}:"
        if prompt not in seen:
            seen.add(prompt)
            yield prompt, functools.partial(shown, prompt)


def _walks() -> Iterator[Row]:
    def colour(field: str) -> int:
        return sum(divmod(FIELDS.index(field), WIDTH)) % 2  # an even number of moves leads to the same colour

    def shown(prompt: str, draw: random.Random) -> str:
        path = prompt[0]
        for _ in range(MOVES):
            path += draw.choice(neighbours(path[-1]))
        return path[1:]

    prompts = [f"{''.join(letters)}:" for letters in itertools.product(FIELDS, repeat=4)]
    random.Random(SEED).shuffle(prompts)
    for prompt in prompts:
        yield prompt, functools.partial(shown, prompt)


def score_forks(completion: str, example: Any) -> dict[str, float]:
    """The reward: the share of the two groups whose places all hold the right digit; solved: both do."""
    digits = right_digits(str(example.prompt))
    right = [
        all(completion[place : place + 1] == digits[group] for place in places) for group, places in PLACES.items()
    ]
    return {"reward": sum(right) / 2, "solved": float(all(right))}


def score_walks(completion: str, example: Any) -> dict[str, float]:
    """The reward: 1 for a walk of neighbours that comes to at least ten fields, else 0."""
    path = str(example.prompt)[0] + completion
    valid = len(completion) == MOVES and all(
        one in FIELDS and other in neighbours(one) for one, other in itertools.pairwise(path)
    )
    solved = float(valid and len(set(completion)) >= VISITED)
    return {"reward": solved, "solved": solved}


def _lines(rows: Iterator[Row], draw: random.Random) -> list[str]:
    return [
        json.dumps({"prompt": prompt, "answer": answer(draw), "split": split}) + "\n"
        for split, size in SIZES.items()
        for prompt, answer in itertools.islice(rows, size)
    ]


def files() -> dict[str, list[str]]:
    """Returns the lines of each file; ``forks`` is both others of that name, for pre-training."""
    quiet, noisy, walks = (_lines(rows, random.Random(SEED)) for rows in (_forks("-"), _forks("+"), _walks()))
    return {"forks": [*quiet, *noisy], "forks_quiet": quiet, "forks_noisy": noisy, "walks": walks}


def main() -> None:
    """Writes the files into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files().items():
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


if __name__ == "__main__":
    main()
