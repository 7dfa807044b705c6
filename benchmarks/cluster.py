"""Large models on many GPUs, on paper: the tables of ``docs/scaling.md``.

    python benchmarks/cluster.py

What the dry run says (``training.cluster``), with 64 prompts of 8 completions in an update and one minibatch. Sharded
weights are counted also where the kit refuses them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from common import parser_without_options

from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training.cluster import GIB, Choice, Cluster, Job
from dlmrl_kit.training.dry_run import job_of

MODELS: dict[str, tuple[str, list[str]]] = {
    "LLaDA-8B, LoRA": ("egspo_sa_llada", []),
    "LLaDA-8B, all weights": ("egspo_sa_llada", ["Pretrained.lora_rank = 0"]),
    "LLaDA2.0-mini, LoRA": ("egspo_sa_llada2", []),
    "LLaDA2.0-flash, LoRA": ("egspo_sa_llada2", ["Pretrained.path = 'inclusionAI/LLaDA2.0-flash'"]),
}
"""Recipe and bindings of each row."""

SETS = ["Trainer.prompts_per_update = 64", "Trainer.minibatches = 1", "Trainer.rollout_batch_size = 16"]
GPUS_PER_MACHINE = 8


def jobs(model: str, gpus: Sequence[int]) -> Iterator[Job]:
    """Yields a model's job for numbers of GPUs, in machines of eight; its policy is made once."""
    name, sets = MODELS[model]
    job = job_of(load_recipe(name, sets=[*SETS, *sets]), Cluster())
    for number in gpus:
        within = min(number, GPUS_PER_MACHINE)
        cluster = Cluster(within, number // within)
        yield Job(job.algorithm, job.plan, job.policy, job.prompt_length, cluster)


def cheapest(job: Job, sharding: str) -> tuple[Choice, bool]:
    """Returns the best choice of a sharding, and whether it fits; if none does, the fastest one."""
    found = [choice for choice in job.choices() if choice.sharding == sharding]
    best = job.best(found)
    return (best, True) if best is not None else (min(found, key=lambda c: (round(c.seconds, 3), c.memory.peak)), False)


def row(model: str, job: Job, sharding: str) -> list[str]:
    """Makes a row of the table of choices."""
    choice, fits = cheapest(job, sharding)
    parts = {"rollout": choice.rollout, "scoring": choice.scoring, "update": choice.update}
    parts["exchange"] = choice.exchanging
    largest = max(parts, key=lambda name: parts[name])
    possible = "too large" if not fits else "refused" if sharding == "full" and job.refusal() else "yes"
    return [
        *(model, str(job.cluster.world), sharding, possible),
        f"{choice.memory.peak / GIB:.0f}",
        f"{choice.exchange.sent(job.cluster.world) / 1e9:.1f}",
        *(f"{value:.1f}" for value in parts.values()),
        f"{largest} {parts[largest] / choice.seconds:.0%}",
    ]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes a table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows))


def choices() -> str:
    """Writes the table of 8 and 64 GPUs."""
    heads = ("model", "GPUs", "sharding", "possible", "peak, GiB", "sent per GPU, GB")
    heads += ("rollout, s", "scoring, s", "update, s", "exchange, s", "most of it")
    rows = [row(model, job, s) for model in MODELS for job in jobs(model, (8, 64)) for s in ("none", "full")]
    return table(heads, rows)


def scaling(gpus: Sequence[int] = (1, 8, 16, 32, 64, 128)) -> str:
    """Writes the table of seconds per update against the number of GPUs, for whole weights in every GPU."""
    rows = []
    for model in MODELS:
        seconds = [cheapest(job, "none")[0].seconds for job in jobs(model, gpus)]
        rows.append([model, *(f"{s:.0f} ({seconds[0] / s / n:.0%})" for s, n in zip(seconds, gpus, strict=True))])
    return table(["model", *(f"{n} GPU{'s' if n > 1 else ''}" for n in gpus)], rows)


if __name__ == "__main__":
    parser_without_options(__doc__).parse_args()
    print(choices(), scaling(), sep="\n\n")
