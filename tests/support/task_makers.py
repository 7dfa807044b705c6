"""Small datasets of reasoning-gym and mixtures."""

from __future__ import annotations

import functools
from typing import Any

from dlmrl_kit.tasks.base import BaseTask
from dlmrl_kit.tasks.countdown import Countdown
from dlmrl_kit.tasks.mixture import Mixture
from dlmrl_kit.tasks.reasoning_gym import ReasoningGym
from dlmrl_kit.tasks.sudoku import Sudoku4x4

SIZES = {"num_pretrain": 30, "num_train": 30, "num_heldout": 30}
DATASETS = {
    "chain_sum": {"min_terms": 2, "max_terms": 3},
    "isomorphic_strings": {},  # depends on the order of sets
    "list_functions": {},  # draws from Python's global generator, and ends after `size` entries
}


@functools.cache
def gym(name: str) -> ReasoningGym:
    return ReasoningGym(name, DATASETS.get(name), **SIZES)


def dump(task: BaseTask, number: int = 20) -> list[Any]:
    examples = [task.example(split, index) for split in task.SPLITS for index in range(min(number, task.size(split)))]
    return [[example.prompt, example.answer] for example in examples]


def mixture(**arguments: Any) -> Mixture:
    return Mixture([Sudoku4x4(**SIZES), Countdown(**SIZES)], **arguments)
