"""What a run keeps of each rollout: means by denoising step (``steps.jsonl``), some samples (``completions.jsonl``).

A line of ``steps.jsonl`` holds lists by step, null where there is nothing: ``entropy`` of the behaviour policy in nats,
over all samples; ``selected``, the share of the trained samples in which the step was chosen, or lies in a segment that
was; ``reward`` of the steps and ``advantage``, its size without the sign, where a component has given them some; and
what loss and regularisers know of single segments, each at the step at which it starts, over all optimiser steps of the
update: ``ratio``, ``clip_fraction``, ``approx_kl``, ``kl``, and what else regularisers add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    COMPLETION_IDS,
    EXAMPLE,
    SELECTED_ADVANTAGE,
    SELECTED_END,
    SELECTED_REWARD,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_ADVANTAGE,
    STEP_ENTROPY,
    STEP_REWARD,
    STEP_VALID,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.rollout.rewards import Scorer
from dlmrl_kit.tasks.base import BaseTask
from dlmrl_kit.training.gradient import of_all
from dlmrl_kit.training.update import Rollout
from dlmrl_kit.training.update_lines import COMPLETIONS, STEPS, add_lines, cut_lines

KEPT = 4
"""Samples of each rollout that are kept, at least."""

_DIGITS = 4
"""Significant digits of the means by step."""

Sums = dict[str, tuple[list[float], list[float]]]
"""By name, for each step, the sum of values and their number."""


class RolloutRecord:
    """Keeps the records of a run's rollouts.

    Args:
        folder: of the run.
        task, policy: of the run.
        samples: of each rollout that are kept, spread over its prompts; those of the first process.
        processes: that sample together; the first of them writes.
    """

    def __init__(
        self, folder: Path, task: BaseTask, policy: Policy, samples: int = KEPT, processes: Processes = ALONE
    ) -> None:
        self.folder, self.task, self.policy = folder, task, policy
        self.kept, self.processes = samples, processes
        self.samples: list[dict[str, Any]] = []
        """Of the latest rollout: ``update``, ``prompt``, ``completion``, ``answer``, ``reward`` and its parts."""
        self._steps: list[dict[str, Any]] = []

    def open(self, first_update: int) -> None:
        """Drops what a killed run has written of updates that will be taken again."""
        for name in (STEPS, COMPLETIONS):
            cut_lines(self.folder / name, first_update)

    def take(self, update: int, rollout: Rollout, scorer: Scorer, by_step: Mapping[str, Tensor]) -> None:
        """Takes what is kept of a rollout that has been scored, and trained on; every process must call it.

        ``by_step`` is what ``Update.by_step`` holds of the update.
        """
        learnt = {name: (sums.tolist(), numbers.tolist()) for name, (sums, numbers) in by_step.items()}
        found = of_all(sums_by_step(rollout) | learnt, self.processes)
        self._steps = []
        if self.processes.is_first:
            means = means_by_step(found)
            self._steps = [{"update": update, **means}] if means else []
            self.samples = self._some(update, rollout.everything, scorer) if len(rollout.everything) else []

    def write(self) -> None:
        """Writes what was taken last; does nothing in the other processes.

        Raises:
            FileError: it cannot be written.
        """
        if self.processes.is_first:
            add_lines(self.folder / STEPS, self._steps)
            add_lines(self.folder / COMPLETIONS, self.samples)

    def _some(self, update: int, trajectory: TensorDictBase, scorer: Scorer) -> list[dict[str, Any]]:
        wanted = min(self.kept, len(trajectory))
        rows = [number * len(trajectory) // wanted for number in range(wanted)]
        ids, examples = trajectory[COMPLETION_IDS][rows], trajectory[EXAMPLE][rows]
        scores, texts = scorer.components(ids, examples), self.policy.completion_texts(ids)
        asked = [self.task.example("train", int(index)) for index in examples]
        return [
            {
                "update": update,
                "prompt": example.prompt,
                "completion": text,
                "answer": example.answer,
                **{name: value if math.isfinite(value) else None for name, value in score.items()},
            }
            for example, text, score in zip(asked, texts, scores, strict=True)
        ]


def sums_by_step(rollout: Rollout) -> Sums:
    """Sums up over the samples of a rollout what there is of each denoising step; nothing of an empty one."""
    return dict(_sums(rollout.everything, rollout.kept))


def _sums(everything: TensorDictBase, kept: TensorDictBase) -> Iterator[tuple[str, tuple[list[float], list[float]]]]:
    if not len(everything):
        return
    if STEP_ENTROPY in everything.keys(True):
        yield "entropy", _pair(everything[STEP_ENTROPY], everything[STEP_VALID])
    if not len(kept) or SELECTED_STEP not in kept.keys(True):
        return
    valid, used = kept[STEP_VALID], kept[SELECTED_WEIGHT] > 0
    step = kept[SELECTED_STEP]
    end = kept[SELECTED_END] if SELECTED_END in kept.keys(True) else step + 1
    starts = valid.new_zeros(len(kept), valid.shape[1] + 1, dtype=torch.int64)
    starts.scatter_add_(1, step, used.long()).scatter_add_(1, end.clamp(max=valid.shape[1]), -used.long())
    yield "selected", _pair((starts.cumsum(1)[:, :-1] > 0).float(), valid)
    for name, of_all_steps, of_selected in (
        ("reward", STEP_REWARD, SELECTED_REWARD),
        ("advantage", STEP_ADVANTAGE, SELECTED_ADVANTAGE),
    ):
        if of_all_steps in kept.keys(True):
            yield name, _pair(kept[of_all_steps] if name == "reward" else kept[of_all_steps].abs(), valid)
        elif of_selected in kept.keys(True):
            values, counts = torch.zeros_like(valid, dtype=torch.float32), torch.zeros_like(valid, dtype=torch.float32)
            found = kept[of_selected].float().masked_fill(~used, 0.0)
            values.scatter_add_(1, step, found if name == "reward" else found.abs())
            yield name, _pair(values, counts.scatter_add_(1, step, used.float()))


def _pair(values: Tensor, counts: Tensor) -> tuple[list[float], list[float]]:
    """Returns sums over samples of values [B, T], and of how often each counts [B, T]; values that do not count are 0.

    Values that are summed up already are taken as they are where the count is not 0.
    """
    return values.float().masked_fill(counts == 0, 0.0).sum(0).tolist(), counts.float().sum(0).tolist()


def means_by_step(parts: list[Sums]) -> dict[str, list[float | None]]:
    """Returns for each name the mean at each step over the samples of all processes; None where there is none."""
    means = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        own = [part[name] for part in parts if name in part]
        sums = [math.fsum(column) for column in zip_longest(*(values for values, _ in own), fillvalue=0.0)]
        counts = [math.fsum(column) for column in zip_longest(*(numbers for _, numbers in own), fillvalue=0.0)]
        means[name] = [_short(value / count) if count else None for value, count in zip(sums, counts, strict=True)]
    return means


def _short(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
