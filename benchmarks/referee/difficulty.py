"""Measures how hard the tasks of docs/referee.md are before training, in easier and harder forms.

A task tells algorithms apart only where a model solves some of it, not all, and where the samples of a group differ::

    python benchmarks/referee/difficulty.py benchmarks/referee/difficulty.csv
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import tomllib
import torch

from dlmrl_kit.core.results import wilson_interval
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training.evaluation import Answered, EvalSettings, answer

HERE = Path(__file__).parent
PROMPTS, GROUP = 100, 8
QUIET, NOISY = "forks_quiet", "forks_noisy"
FORMS = {
    "sudoku": {
        f"{low} to {high} empty cells": f"Sudoku4x4.min_empty = {low}; Sudoku4x4.max_empty = {high}"
        for low, high in ((4, 8), (6, 9), (8, 10))
    },
    "forks": {
        name: f"JsonLines.path = 'benchmarks/referee/data/{file}.jsonl.gz'"
        for name, file in (("quiet", QUIET), ("noisy", NOISY))
    },
    "walks": {"ten of twelve fields": "Sampler.temperature = 0.9", "temperature 1": "Sampler.temperature = 1.0"},
}
TITLES = ("task", "form", "tokens per step", "greedy", "low", "high", "sampled", "reward", "mixed groups")


def measured(task: dict[str, list[str]], form: str, tokens_per_step: int) -> list[float]:
    """Returns accuracy when decoded greedily with its 95% interval, accuracy, reward and mixed groups when sampled."""
    sets = (*task.get("set", ()), *form.split("; "), f"Sampler.tokens_per_step = {tokens_per_step}")
    algorithm = load_recipe("egspo", uses=task.get("use", ()), sets=_last(sets)).build_algorithm()
    policy, sampler = algorithm.policy.load(), algorithm.sampler

    def answers(split: str, size: int, temperature: float, samples: int) -> list[Answered]:
        return answer(policy, sampler, algorithm.task, EvalSettings(split, size, temperature, samples))

    greedy = [one.solved for one in answers("heldout", 200, 0.0, 1)]
    sampled = answers("train", PROMPTS, sampler.temperature, GROUP)
    rewards = [[score["reward"] for score in one.scores] for one in sampled]
    accuracy = sum(greedy) / len(greedy)
    return [
        accuracy,
        *wilson_interval(accuracy, len(greedy)),
        sum(one.solved for one in sampled) / (GROUP * len(sampled)),
        sum(map(sum, rewards)) / (GROUP * len(sampled)),
        sum(max(group) > min(group) for group in rewards) / len(sampled),
    ]


def _last(sets: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the last setting of each parameter."""
    return tuple({text.partition("=")[0].strip(): text for text in sets}.values())


def main() -> None:
    """Writes the table that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    torch.set_num_threads(1)
    tasks = tomllib.loads((HERE / "referee.toml").read_text())["tasks"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(TITLES)
        for task, forms in FORMS.items():
            for name, form in forms.items():
                for tokens in (1, 2, 4):
                    found = measured(tasks[task], form, tokens)
                    writer.writerow([task, name, tokens, *(f"{value:.4f}" for value in found)])
                    file.flush()


if __name__ == "__main__":
    main()
