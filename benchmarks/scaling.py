"""Weak and strong scaling counted in work: forwards, tokens, bytes between processes, and who waits for whom.

    python benchmarks/scaling.py

One update of the small denoiser in 1, 2 and 4 processes of this machine. Bytes are the payloads of the collectives that
torch really runs, against those of ``training.exchange``. Work is tokens through the model; the idle share is that of
the rollout, in which nobody waits before the end. Seconds of processes that share two cores would say nothing.
"""

from __future__ import annotations

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


def _serve(rank: int, world: int, folder: str, cases: Sequence[Sequence[str]]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found = []
    for number, sets in enumerate(cases):
        processes = Several(rank, world, dist.PrefixStore(str(number), store))
        found.append(measured(processes, load_recipe("egspo_sa", sets=sets).build()))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run(world: int, cases: Sequence[Sequence[str]]) -> list[list[dict[str, Any]]]:
    """Returns for each case (bindings of the recipe) what each of ``world`` processes measured."""
    if world == 1:
        return [[measured(ALONE, load_recipe("egspo_sa", sets=sets).build())] for sets in cases]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_serve, (world, folder, cases), nprocs=world)
        each = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
        return [list(found) for found in zip(*each, strict=True)]


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
    heads = [
        "scaling, prompts, sharding",
        "processes",
        "forwards of a rollout",
        "tokens sampled",
        "tokens scored and trained",
        "idle in rollout",
    ]
    rows = [[*heads, "bytes sent", "on paper"], ["---"] * (len(heads) + 2)]
    for world in worlds:
        cases = {
            (kind, prompts, sharding): [
                *(f"Trainer.prompts_per_update = {prompts}", f"Trainer.sharding = {sharding!r}"),
                *("Trainer.minibatches = 1", "Trainer.micro_batch_size = 2", "Trainer.group_size = 2"),
            ]
            for kind, prompts in (("strong", 8), ("weak", 4 * world))
            for sharding in ("none", "full")[: 1 if world == 1 else None]
        }
        for (kind, prompts, sharding), found in zip(cases, run(world, list(cases.values())), strict=True):
            rows.append(line(f"{kind}, {prompts} prompts, {sharding}", world, found))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
