"""What a run costs each card of a cluster, for each choice of sharding and batch sizes, and which to choose.

Memory is that of ``training.estimate``, for the samples of one process; bytes are those of ``training.exchange``. With
A operations and C calls of a phase in the process with most samples, and weights of B bytes, the seconds are:

    a phase     the larger of A / rate and C B / memory's bandwidth
    exchange    the larger of bytes sent / link and bytes that leave a machine / its network

all one after another: what overlaps makes it shorter, small kernels and waiting make it longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import Plan
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.recompute import recomputed_blocks
from dlmrl_kit.policies.sharding import Parts
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.trainers.trainer import SHARDINGS
from dlmrl_kit.training.activation_memory import GIB, Recomputation, fewest_blocks
from dlmrl_kit.training.estimate import Memory, forwards, memory, model_sizes
from dlmrl_kit.training.exchange import Exchange, exchange, own_samples, passes, stored_bytes
from dlmrl_kit.training.flops import arithmetic
from dlmrl_kit.training.sharded_memory import FREE, of_busiest, settings_of, sharded


@dataclass(frozen=True)
class Cluster:
    """Cards of the same kind in machines of the same kind. The defaults are assumptions: those of an H100's data sheet.

    Attributes:
        gpus: cards of a machine.
        nodes: machines.
        memory: of a card, in GiB. A card of 80 GB has 74.5 GiB by that count.
        tflops: rate of a card in matrix products, in 10^12 operations per second: a third of the 989 of the data sheet
            (bfloat16, dense), about what trainers reach.
        bandwidth: of a card's memory, in TB/s: 3.35 by the data sheet (SXM).
        link: of a card to the others of its machine, in each direction, in GB/s: half of NVLink's 900.
        network: of a card's share of its machine's network, in each direction, in GB/s: one adapter of 400 Gbit/s.
    """

    gpus: int = 1
    nodes: int = 1
    memory: float = 74.5
    tflops: float = 300.0
    bandwidth: float = 3.35
    link: float = 450.0
    network: float = 50.0

    @property
    def world(self) -> int:
        """All cards, each with a process of its own."""
        return self.gpus * self.nodes

    def seconds(self, sent: float) -> float:
        """Returns how long a ring takes in which each process sends so many bytes."""
        within = sent / (self.link * 1e9) if self.gpus > 1 else 0.0
        between = sent / (self.gpus * self.network * 1e9) if self.nodes > 1 else 0.0
        return max(within, between)


@dataclass(frozen=True)
class Calls:
    """How often the process with most samples runs the model in an update, each time for a batch of states.

    Attributes:
        rollout: while it samples.
        scoring: without gradients, for corrections, old and reference log-probabilities.
        update: forwards, each with its backward.
    """

    rollout: int
    scoring: int
    update: int


@dataclass(frozen=True)
class Choice:
    """A way to run a recipe on a cluster, and what it costs.

    Attributes:
        sharding, rollout_batch, micro_batch: settings of the trainer.
        parts: how sharded weights are kept and put together.
        recomputation: how many blocks recompute their activations; None: as many as the recipe says.
        memory: of a card.
        exchange: payloads of an update.
        rollout, scoring, update, exchanging: seconds of an update.
    """

    sharding: str
    parts: Parts
    rollout_batch: int
    micro_batch: int
    recomputation: Recomputation | None
    memory: Memory
    exchange: Exchange
    rollout: float
    scoring: float
    update: float
    exchanging: float

    @property
    def ways(self) -> list[tuple[str, str]]:
        """The settings that say how sharded weights are kept and put together, where they are not the defaults."""
        found = [("offload", "cpu")] if self.parts.offloaded else []
        found += [("rollout_weights", "blocks")] if self.parts.in_blocks else []
        return [("sharding", self.sharding), *(found if self.sharding == "full" else [])]

    @property
    def seconds(self) -> float:
        """Of an update."""
        return self.rollout + self.scoring + self.update + self.exchanging


@dataclass(frozen=True)
class Job:
    """A recipe on a cluster.

    Attributes:
        algorithm, plan: the recipe.
        policy: at its full size; its parameters may be on the ``meta`` device.
        prompt_length: P, in tokens.
        cluster: that runs it.
    """

    algorithm: Algorithm
    plan: Plan
    policy: TransformersPolicy
    prompt_length: int
    cluster: Cluster

    @property
    def prompts(self) -> int:
        """Prompts of the process that has most of them."""
        return math.ceil(self.algorithm.trainer.prompts_per_update / self.cluster.world)

    @property
    def samples(self) -> int:
        """Samples of the process that has most of them."""
        return own_samples(self.algorithm.trainer, self.cluster.world)

    @property
    def idle(self) -> float:
        """Share of the cards' time that passes in waiting for those that have a prompt more."""
        return 1 - self.algorithm.trainer.prompts_per_update / (self.prompts * self.cluster.world)

    def busiest(self, rollout: int, micro: int) -> Algorithm:
        """Returns the algorithm of the process with most samples, with these batch sizes."""
        return of_busiest(self.algorithm, self.cluster.world, rollout_batch_size=rollout, micro_batch_size=micro)

    def calls(self, rollout: int, micro: int) -> Calls:
        """Counts the forwards of a choice of batch sizes, with completions of full length and no micro-batch cut."""
        own = self.busiest(rollout, micro)
        count, inner = forwards(own, self.plan), own.trainer.inner_iterations
        again = bool(count.correction) + (count.old + count.reference) * inner // max(count.update, 1)
        return Calls(
            rollout=math.ceil(self.samples / rollout) * own.sampler.max_steps,
            scoring=math.ceil(self.samples / micro) * again,
            update=passes(self.algorithm, self.plan, self.cluster.world, micro).update,
        )

    def choice(self, sharding: str, rollout: int, micro: int, offloaded: bool = False) -> Choice:
        """Estimates what a choice of settings costs; ``offloaded``: also where the recipe does not say so."""
        world, cluster, parts = self.cluster.world, self.cluster, settings_of(self.algorithm.trainer)
        own = self.busiest(rollout, micro)
        need = memory(own, self.plan, self.policy, self.prompt_length)
        shards = sharding == "full" and world > 1
        parts = replace(parts, offloaded=parts.offloaded or (shards and offloaded))
        found = self.recomputation(own, need, parts if shards else None)
        again = self.recomputed(found)
        need = memory(own, self.plan, self.policy, self.prompt_length, again)
        work = arithmetic(own, self.plan, self.policy, self.prompt_length, again)
        if shards:
            need, parts = self._sharded(need, parts)
        count = passes(self.algorithm, self.plan, world, micro, rollout)
        payload = exchange(self.plan, self.policy, world, count, sharding, parts)
        read = self._weights() / (cluster.bandwidth * 1e12)
        calls = self.calls(rollout, micro)
        times = 2 + again / model_sizes(self.policy).number

        def at_rate(operations: float, calls: float) -> float:
            return max(operations / (cluster.tflops * 1e12), calls * read)

        return Choice(
            sharding,
            parts,
            rollout,
            micro,
            found,
            need,
            payload,
            at_rate(work.rollout, calls.rollout),
            at_rate(work.scoring, calls.scoring),
            at_rate(work.update, times * calls.update),
            cluster.seconds(payload.sent(world)),
        )

    def recomputation(self, own: Algorithm, whole: Memory, parts: Parts | None = None) -> Recomputation | None:
        """Returns how many blocks would recompute their activations on a card; None where the recipe says it.

        Args:
            own: algorithm of the process with most samples.
            whole: its memory with no block recomputed.
            parts: how weights are kept and put together; None: they are not sharded.
        """
        if own.policy.gradient_checkpointing != "auto":
            return None
        need = whole if parts is None else sharded(whole, self.plan, self.policy, self.cluster.world, parts)
        return fewest_blocks(own, self.plan, self.policy, self.prompt_length, need, self.room)

    def recomputed(self, found: Recomputation | None) -> int:
        """Returns how many blocks recompute: as was found, or, for None, those of the policy that do."""
        return recomputed_blocks(self.policy.model) if found is None else found.number

    def _weights(self) -> float:
        """Returns the bytes that a forward reads."""
        return float(sum(p.numel() * stored_bytes(p) for p in self.policy.model.parameters()))

    def _sharded(self, whole: Memory, parts: Parts) -> tuple[Memory, Parts]:
        """Returns the memory of a process that has a part of the weights, and how it puts them together."""
        need = sharded(whole, self.plan, self.policy, self.cluster.world, parts)
        if self.algorithm.trainer.rollout_weights == "auto" and need.peak > self.room:
            parts = replace(parts, in_blocks=True)
            need = sharded(whole, self.plan, self.policy, self.cluster.world, parts)
        return need, parts

    def choices(self, offloaded: bool = False) -> list[Choice]:
        """Returns choices: each sharding with the recipe's batch sizes, and with others from one sample to all.

        Args:
            offloaded: whether sharded weights lie in the CPU's memory, also where the recipe does not say so.
        """
        trainer, most = self.algorithm.trainer, self.samples
        rollouts = _sizes(trainer.rollout_batch_size or most, most)
        micros = _sizes(trainer.micro_batch_size, most)
        shardings = SHARDINGS if self.cluster.world > 1 else SHARDINGS[:1]
        return [
            self.choice(s, rollout, micro, offloaded) for s in shardings for rollout in rollouts for micro in micros
        ]

    def is_own(self, choice: Choice) -> tuple[bool, bool]:
        """Tells whether the rollout batch and the micro-batch of a choice are the recipe's."""
        trainer, most = self.algorithm.trainer, self.samples
        own = min(trainer.rollout_batch_size or most, most), min(trainer.micro_batch_size, most)
        return choice.rollout_batch == own[0], choice.micro_batch == own[1]

    def refusal(self) -> str:
        """Says why the weights cannot be sharded; "" if they can."""
        try:
            self.policy.check_sharding()
        except UserError as error:
            return str(error)
        if self.algorithm.cache is not None or self.algorithm.trainer.compile is not None:
            return "Trainer.sharding = 'full' is for neither a cache nor Trainer.compile"
        return ""

    @property
    def room(self) -> float:
        """The bytes of a card that may be used: all but ``FREE``."""
        return (1 - FREE) * self.cluster.memory * GIB

    def fits(self, choice: Choice) -> bool:
        """Tells whether a choice fits into the memory of a card, with ``FREE`` left, and its activations may."""
        found = choice.recomputation
        return choice.memory.peak <= self.room and (found is None or not found.is_refused)

    def best(self, choices: Iterable[Choice]) -> Choice | None:
        """Returns the fastest choice that fits; of equally fast ones that with the largest batches. None: none fits."""

        def order(choice: Choice) -> tuple[float, int, int]:
            return round(choice.seconds, 3), -choice.rollout_batch, -choice.micro_batch

        return min(filter(self.fits, choices), key=order, default=None)


def _sizes(own: int, most: int) -> list[int]:
    """Returns the recipe's batch size and powers of 4, up to all samples of a process."""
    return sorted({min(own, most), most, *(4**i for i in range(most.bit_length()) if 4**i < most)})


def in_words(job: Job) -> list[str]:
    """Returns the lines of a report: the choices, what they cost, and which to choose."""
    cluster, trainer, refusal = job.cluster, job.algorithm.trainer, job.refusal()
    machines = "1 machine" if cluster.nodes == 1 else f"{cluster.nodes} machines"
    lines = [
        f"plan         {machines} of {cluster.gpus} GPUs; assumed: {cluster.memory:g} GiB, {cluster.tflops:g} TFLOP/s, "
        f"memory at {cluster.bandwidth:g} TB/s, links at {cluster.link:g} GB/s, network at {cluster.network:g} GB/s "
        "(each per GPU and direction)",
        f"             at most {job.samples} samples per GPU; {job.idle:.0%} of the GPUs' time is idle, as prompts are "
        "whole",
    ]
    if trainer.prompts_per_update < cluster.world:
        lines.append(
            f"             {cluster.world - trainer.prompts_per_update} of {cluster.world} GPUs have nothing to do: "
            f"Trainer.prompts_per_update is {trainer.prompts_per_update}"
        )
    choices = job.choices()
    lines += table([choice for choice in choices if any(job.is_own(choice))], job)
    possible = SHARDINGS[:1] if refusal else SHARDINGS
    best = job.best(c for c in choices if c.sharding in possible)
    best = best or job.best(c for c in job.choices(offloaded=True) if c.sharding in possible)
    if refusal:
        lines.append(f"             not possible: {refusal}")
    if best is None:
        lines.append(
            f"choose       nothing: no choice fits into {cluster.memory:g} GiB and leaves {FREE:.0%} of it free"
        )
        return lines
    found = best.recomputation
    again = "" if found is None else f", {found.number} of {found.blocks} blocks recomputed"
    hours = best.seconds * trainer.updates / 3600
    chosen = " ".join(f"--set \"Trainer.{name}='{value}'\"" for name, value in best.ways)
    if best.memory.offloaded:
        lines.append(
            f"             with Trainer.offload = 'cpu' each process keeps {best.memory.offloaded / GIB:.1f} GiB in "
            "memory of the CPU; the seconds of the way there and back, and of the optimiser there, are not counted"
        )
    return [
        *lines,
        f"choose       {chosen} --set Trainer.rollout_batch_size="
        f"{best.rollout_batch} --set Trainer.micro_batch_size={best.micro_batch}: {best.memory.peak / GIB:.1f} GiB"
        f"{again}, {best.seconds:.3g} s per update, {hours:.3g} hours for {trainer.updates}; evaluations and rewards "
        "are not counted",
    ]


COLUMNS = (
    *("sharding", "rollout batch", "micro-batch", "kept", "rollout", "update", "eval", "peak GiB", "fits"),
    *("sent GB", "leaves GB", "sampling s", "scoring s", "update s", "exchange s"),
)
"""Heads of the table: settings, memory of a card, bytes, seconds."""


def table(choices: list[Choice], job: Job) -> list[str]:
    """Returns the lines of a table of choices.

    ``sent`` is what each card sends in an update, ``leaves`` what all cards of a machine send to others together.
    """
    rows: list[tuple[str, ...]] = [COLUMNS]
    for c in choices:
        sent, m = c.exchange.sent(job.cluster.world) / 1e9, c.memory
        sizes = (m.weights + m.optimiser, m.rollout, m.update, m.evaluation, m.peak)
        leaves = sent if job.cluster.nodes > 1 else 0.0
        times = (sent, leaves, c.rollout, c.scoring, c.update, c.exchanging)
        rows.append(
            (
                *(", ".join(value for _, value in c.ways), str(c.rollout_batch), str(c.micro_batch)),
                *(f"{size / GIB:.1f}" for size in sizes),
                "yes" if job.fits(c) else "no",
                *(f"{value:.2f}" for value in times),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
