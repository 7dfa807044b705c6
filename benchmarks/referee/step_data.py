"""Measures, at the first weights of the three tasks of docs/referee.md, what each denoising step contributes, and why.

From the root of the repository (about five minutes of CPU time), then ``write_page.py`` for figure and tables::

    python benchmarks/referee/step_data.py benchmarks/referee/results/steps

``steps.csv`` and ``kept.csv`` are what ``dlmrl steps`` measures: the gradient of ``reinforce_exact``, in which every
step counts and nothing biases, and which steps selectors keep of the samples of ``egspo``.

``within.csv``: within each completion, Spearman's correlation between the entropy of its steps, as ``EntropyTopK``
ranks them, and the norm of grad log pi of the step's action, mean over the completions of a prompt.

``bound.csv``: both sides of the bound of docs/mathematics.md, for ``EntropyOrder``, which chooses positions from the
state alone::

    || E A grad log pi_t ||  <=  E || A grad log pi_t ||  <=  B/2 E sum || e_v - p ||_1  <=  B E H_t,
    B = 2 max |A| * max || grad logit ||

The first is the error that dropping step t makes (the root of an unbiased estimate of its square; 0 where that is
negative). ``B`` is the largest that was found: of all advantages, and of the logits of all tokens at the committed
positions of some states of each step, so that a state that was not looked at may have a larger one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import spearmanr
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.keys import (
    ADVANTAGE,
    COMMIT_STEP,
    COMPLETION_IDS,
    GROUP,
    STEP_ENTROPY,
    STEP_NUM_COMMITTED,
    STEP_VALID,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.trajectory import committed_at, state_at
from dlmrl_kit.experiments.aggregate import csv_text
from dlmrl_kit.experiments.referee.spec import TaskSpec
from dlmrl_kit.experiments.referee.spec_file import read_spec
from dlmrl_kit.experiments.step_files import NUMBERS, step_name
from dlmrl_kit.experiments.step_gradients import GradientMoments
from dlmrl_kit.experiments.step_measures import measure_steps
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.samplers.base import Decision, View
from dlmrl_kit.training.start import start_training
from dlmrl_kit.training.update import Update

HERE = Path(__file__).parent
BATCHES, KEPT_BATCHES = 24, 2
PROMPTS, GROUP_SIZE = 24, 4
STATES = 6
"""Of each step, whose logits are differentiated."""
SELECTORS = (
    *("EntropyCoverage", "ConfusionSteps", "SurprisalSteps"),
    *("UniformSteps", "RandomSteps", "FirstK", "LastK"),
)
SAMPLERS = ("LowConfidence", "EntropyOrder")
SHIPPED = "shipped:sudoku4x4"


def model_of(task: TaskSpec) -> str:
    """Returns the model that runs on a task start from."""
    paths = [text.split("'")[1] for text in task.sets if text.startswith("Pretrained.path")]
    return paths[0] if paths else SHIPPED


def steps_and_kept(task: TaskSpec, sets: list[str]) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Returns the rows of a task in ``steps.csv`` and ``kept.csv``."""
    model = model_of(task)
    measured = measure_steps(model, recipe="reinforce_exact", batches=BATCHES, sets=sets, uses=task.uses)
    rows = [
        (task.name, BATCHES, step_name(found), *(getattr(found, name) for name in NUMBERS)) for found in measured.steps
    ]
    chosen = measure_steps(
        model, recipe="egspo", selectors=SELECTORS, batches=KEPT_BATCHES, sets=sets, uses=task.uses
    ).selectors
    kept = [(task.name, name, step, share) for name, of in chosen.items() for step, share in enumerate(of, start=1)]
    return rows, kept


@dataclass
class Sampled:
    """Completions of a task by a sampler, and the means to differentiate their steps one by one."""

    update: Update
    batch: TensorDictBase
    policy: Policy

    @classmethod
    def of(cls, task: TaskSpec, sets: list[str], sampler: str) -> Sampled:
        """Samples one batch of ``reinforce_exact``."""
        sizes = [f"Trainer.prompts_per_update = {PROMPTS}", f"Trainer.group_size = {GROUP_SIZE}"]
        uses = [*task.uses, f"sampler={sampler}"]
        algorithm = load_recipe("reinforce_exact", sets=[*sets, *sizes], uses=uses).build_algorithm()
        torch.manual_seed(0)
        update = Update(algorithm, *start_training(algorithm))
        with update.opened():
            return cls(update, update.roll_out(0).kept, update.policy)

    def view(self, row: int, step: int) -> tuple[View, Decision]:
        """Returns what the sampler saw in a state, with gradient, and what it did."""
        one, at = self.batch[row : row + 1], torch.tensor([[step]])
        committed = committed_at(one[COMMIT_STEP], at).squeeze(1)
        ids = state_at(one[COMPLETION_IDS], one[COMMIT_STEP], at, self.policy.mask_id).squeeze(1)
        view = self.update.algorithm.sampler.view(self.policy, one, ids)
        return view, Decision(committed, one[COMPLETION_IDS])

    def differentiate(self, value: Tensor) -> float:
        """Adds the gradient of a number to the parameters' (which must be empty); returns its norm."""
        value.backward()
        return norm(self.update.parameters)

    def steps(self) -> int:
        """Returns how many steps every completion has."""
        valid = self.batch[STEP_VALID]
        assert bool(valid.all()), "completions end at different steps"
        return valid.shape[1]


def norm(parameters: list[torch.nn.Parameter]) -> float:
    """Returns the norm of the parameters' gradients."""
    found = [p.grad for p in parameters if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in found])))


def clear(parameters: list[torch.nn.Parameter]) -> None:
    """Empties the parameters' gradients."""
    for parameter in parameters:
        parameter.grad = None


def norms(sampled: Sampled, step: int) -> tuple[list[float], float]:
    """Returns the norm of grad log pi of a step in each completion, and the norm of the expected A grad log pi."""
    parameters, found = sampled.update.parameters, []
    moments = GradientMoments(parameters)
    for first in range(0, len(sampled.batch), GROUP_SIZE):
        total = [torch.zeros_like(p) for p in parameters]
        for row in range(first, first + GROUP_SIZE):
            view, decision = sampled.view(row, step)
            found.append(sampled.differentiate(sampled.update.algorithm.sampler.action_log_prob(view, decision).sum()))
            share = float(sampled.batch[ADVANTAGE][row]) / GROUP_SIZE
            for p, added in zip(parameters, total, strict=True):
                if p.grad is not None:
                    added += share * p.grad
            clear(parameters)
        for p, mean in zip(parameters, total, strict=True):
            p.grad = mean
        moments.take()
    return found, moments.signal


def distance(sampled: Sampled, step: int) -> float:
    """Returns the mean of E || e_v - p ||_1 = 2 (1 - sum_v p_v^2), summed over the committed positions of a step."""
    found = []
    for row in range(len(sampled.batch)):
        with torch.no_grad():
            view, decision = sampled.view(row, step)
            at = view.where(decision.committed)
            found.append(float(2 * (1 - view.log_probs[at].exp().square().sum(-1)).sum()))
    return sum(found) / len(found)


def largest_logit_gradient(sampled: Sampled, step: int) -> float:
    """Returns the largest norm of the gradient of a logit, over temperature, in some states of a step."""
    parameters, largest = sampled.update.parameters, 0.0
    spaced = range(0, len(sampled.batch), len(sampled.batch) // STATES)
    for row in spaced[:STATES]:
        view, decision = sampled.view(row, step)
        logits = view.logits[view.where(decision.committed)] / sampled.update.algorithm.sampler.temperature
        wanted = logits[torch.isfinite(logits)]
        for number, logit in enumerate(wanted, start=1):
            gradients = torch.autograd.grad(logit, parameters, retain_graph=number < len(wanted), allow_unused=True)
            squares = [float(g.square().sum()) for g in gradients if g is not None]
            largest = max(largest, sum(squares) ** 0.5)
    return largest


def rows_of(task: TaskSpec, sets: list[str], sampler: str) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Yields the rows of ``within.csv`` of a sampler and, for ``EntropyOrder``, those of ``bound.csv``."""
    sampled = Sampled.of(task, sets, sampler)
    batch, steps = sampled.batch, sampled.steps()
    found = [norms(sampled, step) for step in range(steps)]
    by_step = torch.tensor([own for own, _ in found])
    entropy = batch[STEP_ENTROPY]
    for first in range(0, len(batch), GROUP_SIZE):
        rows = range(first, first + GROUP_SIZE)
        rhos = [float(spearmanr(entropy[row], by_step[:, row]).statistic) for row in rows]
        yield "within", (task.name, sampler, int(batch[GROUP][first]), sum(rhos) / len(rhos))
    if sampler != "EntropyOrder":
        return
    advantage = batch[ADVANTAGE]
    logit = [largest_logit_gradient(sampled, step) for step in range(steps)]
    constant = 2 * float(advantage.abs().max()) * max(logit)
    for step in range(steps):
        summed = float((entropy[:, step] * batch[STEP_NUM_COMMITTED][:, step]).mean())
        part = float((by_step[step] * advantage.abs()).mean())
        sides = (found[step][1], part, constant / 2 * distance(sampled, step), constant * summed)
        yield "bound", (task.name, step + 1, summed, logit[step], *sides)


TITLES: dict[str, tuple[str, ...]] = {
    "steps": ("task", "batches", "step", *NUMBERS),
    "kept": ("task", "selector", "step", "kept"),
    "within": ("task", "sampler", "prompt", "rho"),
    "bound": ("task", "step", "entropy", "logit_gradient", "error", "part", "distance_bound", "entropy_bound"),
}


def main() -> None:
    """Writes the files to the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    spec = read_spec(HERE / "referee.toml")
    tables: dict[str, list[tuple[object, ...]]] = {name: [] for name in TITLES}
    for task in spec.tasks:
        sets = [*spec.sets, *task.sets]
        for name, rows in zip(("steps", "kept"), steps_and_kept(task, sets), strict=True):
            tables[name] += rows
        for sampler in SAMPLERS:
            for name, row in rows_of(task, sets, sampler):
                tables[name].append(row)
        print(f"{task.name} is measured")
    for name, rows in tables.items():
        write_atomic(folder / f"{name}.csv", csv_text([TITLES[name], *map(_short, rows)]))


def _short(row: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(float(f"{cell:.6g}") if isinstance(cell, float) else cell for cell in row)


if __name__ == "__main__":
    main()
