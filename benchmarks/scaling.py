"""Weak and strong scaling, counted in work: the measured tables of ``docs/scaling.md``, beside the paper model.

    python benchmarks/scaling.py

Runs tiny recipes in 1, 2 and 4 processes (gloo, one thread each) and counts what goes through the model in each of
them, what they send each other, and how much of a rollout they wait for one another. Numbers do not depend on
what else runs on the machine. Takes 100 seconds of processor time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import fmean
from typing import SupportsIndex

import torch
from cluster import table
from common import parser_without_options
from counting import Collectives, counted

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.processes import Processes, joined
from dlmrl_kit.core.seeding import derive_seed, sample_seeds
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.policies.saving import save_transformers
from dlmrl_kit.pretrainers.masked_diffusion import MaskedDiffusion
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.tasks.base import BaseTask, Example
from dlmrl_kit.training.cluster import Calls, Cluster
from dlmrl_kit.training.dry_run import job_of
from dlmrl_kit.training.estimate import forwards
from dlmrl_kit.training.exchange import exchange, passes
from dlmrl_kit.training.sharded_memory import settings_of
from dlmrl_kit.training.start import start_training
from dlmrl_kit.training.update import Update

WORLDS = (1, 2, 4)
GROUP = 4
"""Completions of a prompt."""
LENGTH, BLOCK = 16, 4
"""Positions of a completion and of a block, in the runs with completions of uneven lengths."""
UNEVEN_PROMPTS = 32
ROLLOUTS = 4
"""Rollouts that the waiting is averaged over; each is of all prompts."""

EVEN = [
    f"Trainer.group_size = {GROUP}",
    "Trainer.rollout_batch_size = 8",
    "Trainer.micro_batch_size = 4",
    "Trainer.minibatches = 1",
    "Trainer.updates = 2",
    "Sampler.stop_at_eos = False",
    "Sudoku4x4.num_train = 64",
    "CharacterLlama.hidden_size = 16",
    "CharacterLlama.num_layers = 2",
    "CharacterLlama.num_heads = 2",
]
"""Settings of the runs with completions of one length; the model has random weights."""


@dataclass(frozen=True)
class Load:
    """What one process did in one update.

    Attributes:
        work: by phase, as ``counting.counted`` counts it.
        sent: payloads of the collectives in bytes, as ``counting.Collectives`` counts them.
    """

    work: dict[str, dict[str, int]]
    sent: dict[str, int]


class Repeat(BaseTask):
    """Asks for a letter some times, as often as the letter of the prompt says; the answer ends there."""

    def size(self, split: str) -> int:
        """Returns the number of examples."""
        return UNEVEN_PROMPTS

    def example(self, split: str, index: SupportsIndex) -> Example:
        """Returns example ``index``: its number, and the letter that stands for a length from 1 to ``LENGTH`` - 1."""
        number = int(index)
        length = derive_seed(0, "length", number) % (LENGTH - 1) + 1
        return Example(f"{number:03d}{chr(ord('a') + length - 1)}", "x" * length)

    def score(self, completion: str, example: Example) -> dict[str, float]:
        """Returns a reward that falls with the distance from the right length."""
        distance = abs(len(completion) - len(example.answer))
        return {"reward": 1 - distance / LENGTH, "solved": float(completion == example.answer)}


def trained_model(folder: Path, steps: int = 150, spread: int = 3) -> None:
    """Trains a model that answers ``Repeat`` in about the right length, up to ``spread`` more or less, and saves it."""
    torch.manual_seed(0)
    policy = CharacterLlama("0123456789abcdefghijklmnox", hidden_size=32, num_layers=2, num_heads=2).load()
    task = Repeat()
    examples = [task.example("train", number % UNEVEN_PROMPTS) for number in range(2 * UNEVEN_PROMPTS)]
    prompt = policy.encode([example.prompt for example in examples])
    letter, end = (policy.tokenizer.convert_tokens_to_ids(token) for token in ("x", policy.tokenizer.eos_token))
    wanted = torch.tensor([len(example.answer) for example in examples])
    place, generator = torch.arange(len(examples)) / len(examples), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.01)
    for step in range(steps):
        noise = torch.randint(-spread, spread + 1, wanted.shape, generator=generator)
        length = (wanted + noise).clamp(1, LENGTH)
        answers = torch.where(torch.arange(LENGTH) < length[:, None], letter, end)
        masks = (sample_seeds(len(examples), "cpu", step), (place + 0.618 * step) % 1)
        loss = MaskedDiffusion().objective(policy, prompt["prompt_ids"], prompt["prompt_mask"], answers, *masks)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    save_transformers(policy, folder)


def even(prompts: int, sharding: str = "none") -> Recipe:
    """Returns a recipe with completions of one length."""
    sets = [*EVEN, f"Trainer.prompts_per_update = {prompts}", f"Trainer.sharding = {sharding!r}"]
    return load_recipe("egspo_sa", sets=sets, uses=["policy=CharacterLlama"])


def uneven(model: Path, assignment: str, rollouts: int = ROLLOUTS) -> Algorithm:
    """Builds a run with completions that end where the model, as ``trained_model`` left it, ends them."""
    sets = [
        f"Trainer.prompts_per_update = {UNEVEN_PROMPTS}",
        f"Trainer.group_size = {GROUP}",
        f"Trainer.assignment = {assignment!r}",
        f"Trainer.updates = {rollouts + 1}",
        "Trainer.micro_batch_size = 16",
        "Selector.k = 1",
        f"Sampler.completion_length = {LENGTH}",
        f"Sampler.block_length = {BLOCK}",
        "Sampler.tokens_per_step = 1",
        "Sampler.temperature = 1.0",
        f"Pretrained.path = {str(model)!r}",
    ]
    built = load_recipe("egspo_sa", sets=sets).build_algorithm()
    return Algorithm(Repeat(), built.policy, trainer=built.trainer, logger=built.loggers, **built.fillings)


def loads(processes: Processes, algorithm: Algorithm) -> list[list[Load]]:
    """Takes all updates of a run; returns what each process did, by process, in all updates but the first.

    The checks before the first update are not part of the algorithm.
    """
    started = start_training(algorithm, processes)
    update = Update(algorithm, *started, processes=processes)
    update(0)
    own = []
    for number in range(1, algorithm.trainer.updates):
        with counted(started.policy) as work, Collectives() as found:
            update(number)
        own.append(Load({name: dict(counts) for name, counts in work.items()}, dict(found.payloads)))
    return processes.gather(own)


def on_paper(recipe: Recipe, world: int) -> Load:
    """Returns what the dry run's model says of the process with most samples; of the head it says no exact number."""
    job = job_of(recipe, Cluster(world))
    algorithm, trainer = job.algorithm, job.algorithm.trainer
    own = job.busiest(job.samples, job.samples)
    calls = job.calls(trainer.rollout_batch_size or job.samples, trainer.micro_batch_size)
    count = forwards(own, job.plan)
    states = Calls(count.rollout, count.correction + count.old + count.reference, count.update)
    tokens = job.prompt_length + algorithm.sampler.completion_length
    work = {
        phase: {"forwards": number, "states": rows, "tokens": rows * tokens}
        for (phase, number), rows in zip(asdict(calls).items(), astuple(states), strict=True)
    }
    steps, parts = passes(algorithm, job.plan, world), settings_of(trainer)
    sent = exchange(job.plan, job.policy, world, steps, trainer.sharding, parts)
    payloads = {"all-reduce": sent.reduced, "all-gather": sent.gathered, "reduce-scatter": sent.scattered}
    return Load(work, {name: int(size) for name, size in payloads.items() if size})


def waiting(update: Sequence[Load], what: str, phase: str = "rollout") -> float:
    """Returns the share of a phase that processes wait for the one with most ``what``."""
    amounts = [load.work.get(phase, {}).get(what, 0) for load in update]
    return 1 - sum(amounts) / (len(amounts) * max(amounts))


def strong(world: int) -> int:
    """Returns prompts per update that do not grow with the processes."""
    return 8


def whole(world: int) -> int:
    """Returns prompts per update that four processes cannot share evenly."""
    return 6


def weak(world: int) -> int:
    """Returns prompts per update that grow with the processes."""
    return 4 * world


CASES: dict[str, tuple[Callable[[int], int], str]] = {
    "strong": (strong, "none"),
    "strong, six prompts": (whole, "none"),
    "weak": (weak, "none"),
    "strong, sharded": (strong, "full"),
}
"""Prompts per update by the number of processes, and ``Trainer.sharding``, of the runs with completions of one length.
"""
ASSIGNMENTS = ("in_turn", "by_length")


def measured(processes: Processes, model: Path) -> dict[str, list[list[Load]]]:
    """Runs everything in these processes; returns ``loads`` by case, and by assignment for completions that end early.

    Args:
        processes: of which each calls this.
        model: folder of ``trained_model``.
    """
    found = {
        name: loads(processes, even(prompts(processes.world), sharding).build_algorithm())
        for name, (prompts, sharding) in CASES.items()
    }
    return found | {name: loads(processes, uneven(model, name)) for name in ASSIGNMENTS}


def by_update(of_processes: list[list[Load]]) -> list[list[Load]]:
    """Turns loads by process and update into loads by update and process."""
    return [[*update] for update in zip(*of_processes, strict=True)]


def cell(counted: float, paper: float | None) -> str:
    """Writes a count, with what the paper model says behind it where that is something else."""
    return f"{counted:,}" if paper in (None, counted) else f"{counted:,} (paper {paper:,})"


def scaling_table(found: Mapping[int, Mapping[str, list[list[Load]]]]) -> str:
    """Writes what the busiest process does in an update, by case and number of processes."""
    heads = ["run", "processes", "prompts", "forwards: rollout, scoring, update", "tokens through the body"]
    heads += ["positions through the head", *SENT, "idle"]
    rows = []
    for name, (prompts, sharding) in CASES.items():
        for world, cases in found.items():
            (update,) = by_update(cases[name])
            paper = on_paper(even(prompts(world), sharding), world)
            most = {what: sum(busiest(update, what).values()) for what in ("tokens", "predictions")}
            of_paper = sum(part["tokens"] for part in paper.work.values())
            calls = ", ".join(
                cell(number, paper.work[phase]["forwards"]) for phase, number in busiest(update, "forwards").items()
            )
            sent = [cell(update[0].sent.get(kind, 0), paper.sent.get(kind, 0)) for kind in SENT[:-1]]
            rows.append(
                [
                    *(name, str(world), str(prompts(world)), calls),
                    *(cell(most["tokens"], of_paper), f"{most['predictions']:,}"),
                    *(*sent, f"{update[0].sent.get(SENT[-1], 0):,}"),
                    f"{waiting(update, 'tokens'):.0%}",
                ]
            )
    return table(heads, rows)


SENT = ("all-reduce", "all-gather", "reduce-scatter", "objects")
"""Payloads, as ``counting.Collectives`` calls them."""


def busiest(update: Sequence[Load], what: str) -> dict[str, int]:
    """Returns the most that any process does in each phase that the paper model has."""
    return {
        phase: max(load.work.get(phase, {}).get(what, 0) for load in update)
        for phase in ("rollout", "scoring", "update")
    }


def waiting_table(found: Mapping[int, Mapping[str, list[list[Load]]]]) -> str:
    """Writes the share of a rollout that processes wait where completions end early, by assignment."""
    heads = ["processes", "prompts of each", "idle, in tokens: in turn", "by length"]
    heads += ["idle, in forwards: in turn", "by length"]
    rows = []
    for world, cases in found.items():
        shares = [
            fmean(waiting(update, what) for update in by_update(cases[name]))
            for what in ("tokens", "forwards")
            for name in ASSIGNMENTS
        ]
        rows.append([str(world), str(UNEVEN_PROMPTS // world), *(f"{share:.1%}" for share in shares)])
    return table(heads, rows)


def worker(folder: Path) -> None:
    """Runs everything in the processes that were started, and writes what they did to ``folder``."""
    torch.set_num_threads(1)
    with joined() as processes:
        found = measured(processes, folder / "model")
        if processes.is_first:
            content = {name: [[asdict(load) for load in own] for own in all_] for name, all_ in found.items()}
            (folder / f"{processes.world}.json").write_text(json.dumps(content))


def in_processes(world: int, folder: Path) -> dict[str, list[list[Load]]]:
    """Runs everything in ``world`` processes, which ``torchrun`` starts."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    subprocess.run([sys.executable, *launcher, __file__, "--worker", str(folder)], check=True)
    content = json.loads((folder / f"{world}.json").read_text())
    return {name: [[Load(**load) for load in own] for own in all_] for name, all_ in content.items()}


def tables(worlds: Sequence[int] = WORLDS) -> str:
    """Runs everything in these numbers of processes; writes both tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained_model(folder / "model")
        found = {world: in_processes(world, folder) for world in worlds}
    return f"{scaling_table(found)}\n\n{waiting_table({world: found[world] for world in worlds if world > 1})}"


if __name__ == "__main__":
    parser = parser_without_options(__doc__)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker)
    else:
        print(tables())
