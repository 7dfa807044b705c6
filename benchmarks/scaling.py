"""Weak and strong scaling counted in work: forwards, tokens, bytes between processes, and who waits for whom.

    python benchmarks/scaling.py

One update of the small denoiser in 1, 2 and 4 processes of this machine. Bytes are the payloads of the collectives that
torch really runs, against those of ``training.exchange``. Work is tokens through the model; the idle share is that of
the rollout, in which nobody waits before the end. Seconds of processes that share two cores would say nothing.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.phases import listening
from dlmrl_kit.core.processes import ALONE, Processes, Several
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training.exchange import exchange, passes
from dlmrl_kit.training.start import start_training
from dlmrl_kit.training.update import Update

KINDS: Mapping[str, tuple[str, int]] = {
    "c10d::allreduce_": ("all-reduce", 0),
    "c10d::_allgather_base_": ("all-gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce-scatter", 1),
}
"""Collectives of tensors: what they are called, and which of their arguments has the payload of all processes."""


class Collectives(TorchDispatchMode):
    """Adds up the payloads of the collectives that run within it, in bytes, by their kind."""

    def __init__(self) -> None:
        super().__init__()
        self.payloads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and counts it if it is a collective of tensors; objects travel as bytes, uint8."""
        kind = KINDS.get(func._schema.name)
        if kind is not None:
            name, index = kind
            tensors = args[index] if isinstance(args[index], list) else [args[index]]
            size = sum(t.numel() * t.element_size() for t in tensors if t.is_floating_point())
            if size:
                self.payloads[name] += size
        return func(*args, **(kwargs or {}))


class Tokens:
    """Counts forwards and tokens that go through a policy's body, by phase of the update."""

    def __init__(self, policy: TransformersPolicy) -> None:
        self.forwards: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self._phases = ["other"]
        for model in [policy.model, *([] if policy.frozen is None else [policy.frozen])]:
            model.get_input_embeddings().register_forward_pre_hook(self._count)

    def within(self, phase: str) -> Any:
        """Notes a phase while it lasts."""
        return _Phase(self._phases, phase)

    def _count(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        outer = [phase for phase in self._phases if phase in ("sampling", "old and reference", "update")]
        phase = outer[0] if outer else "other"
        self.forwards[phase] += 1
        self.tokens[phase] += inputs[0].numel()


class _Phase:
    def __init__(self, phases: list[str], name: str) -> None:
        self.phases, self.name = phases, name

    def __enter__(self) -> None:
        self.phases.append(self.name)

    def __exit__(self, *error: object) -> None:
        self.phases.pop()


def measured(processes: Processes, algorithm: Algorithm) -> dict[str, Any]:
    """Takes two updates, and returns what the second one did in this process, and the payloads on paper."""
    trainer = algorithm.trainer
    started = start_training(algorithm, processes)
    sharding = trainer.sharding if processes.world > 1 else "none"
    whole = algorithm.policy.load()  # of the sizes that the parameters have before they are cut
    count = passes(algorithm, started.plan, processes.world)
    half = trainer.precision == "bfloat16"
    paper = exchange(started.plan, whole, processes.world, count, sharding, half)
    update = Update(algorithm, *started, processes=processes)
    update(0)  # the check before the first update is not part of the algorithm
    tokens = Tokens(started.policy)
    with Collectives() as collectives, listening(tokens.within):
        update(1)
    expected = {"all-reduce": paper.reduced, "all-gather": paper.gathered, "reduce-scatter": paper.scattered}
    return {
        "payloads": dict(collectives.payloads),
        "expected": {name: int(size) for name, size in expected.items() if size},
        "sent": paper.sent(processes.world),
        "forwards": dict(tokens.forwards),
        "tokens": dict(tokens.tokens),
    }


def _serve(rank: int, world: int, folder: str, recipe: str, sets: Sequence[str]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found = measured(Several(rank, world, store), load_recipe(recipe, sets=sets).build())
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run(world: int, recipe: str, sets: Sequence[str]) -> list[dict[str, Any]]:
    """Returns what each of ``world`` processes measured."""
    if world == 1:
        return [measured(ALONE, load_recipe(recipe, sets=sets).build())]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_serve, (world, folder, recipe, sets), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]


def line(label: str, world: int, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Makes a row of the table."""
    sampled = [one["tokens"].get("sampling", 0) for one in found]
    trained = [one["tokens"].get("update", 0) + one["tokens"].get("old and reference", 0) for one in found]
    first = found[0]
    assert all(one["payloads"] == first["payloads"] for one in found)
    kinds = sorted({*first["payloads"], *first["expected"]})
    sent = sum((2 if k == "all-reduce" else 1) * v for k, v in first["payloads"].items()) * (world - 1) / world
    exact = all(first["payloads"].get(k, 0) == first["expected"].get(k, 0) for k in kinds)
    return [
        *(label, str(world)),
        *(f"{max(one['forwards'].get('sampling', 0) for one in found)}", f"{max(sampled):,}", f"{max(trained):,}"),
        f"{1 - sum(sampled) / (world * max(sampled)):.0%}",
        f"{sent:,.0f}",
        "the same" if exact else f"{first['sent']:,.0f}",
    ]


def table(worlds: Sequence[int] = (1, 2, 4)) -> str:
    """Measures, and writes the table in Markdown."""
    heads = ["", "processes", "forwards of a rollout", "tokens sampled", "tokens scored and trained", "idle in rollout"]
    rows = [[*heads, "bytes sent", "on paper"], ["---"] * (len(heads) + 2)]
    for kind in ("strong", "weak"):
        for sharding in ("none", "full"):
            for world in worlds:
                prompts = 8 if kind == "strong" else 4 * world
                sets = [f"Trainer.prompts_per_update = {prompts}", "Trainer.minibatches = 1"]
                sets += [f"Trainer.sharding = {sharding!r}", "Trainer.micro_batch_size = 8", "Trainer.group_size = 4"]
                rows.append(line(f"{kind}, {prompts} prompts, {sharding}", world, run(world, "egspo_sa", sets)))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def idle(lengths: Sequence[float], world: int, dealt: str) -> float:
    """Returns the idle share of a rollout whose prompts take so long each, dealt ``in turn`` or ``by length``."""
    loads = [0.0] * world
    if dealt == "in turn":
        for number, length in enumerate(lengths):
            loads[number % world] += length
    else:  # the longest first, each to the process with least, of those with room: as many prompts for all
        room = [math.ceil(len(lengths) / world)] * world
        for length in sorted(lengths, reverse=True):
            least = min((rank for rank in range(world) if room[rank]), key=lambda rank: loads[rank])
            loads[least] += length
            room[least] -= 1
    return 1 - sum(loads) / (world * max(loads))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
