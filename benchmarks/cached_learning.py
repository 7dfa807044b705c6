"""What a cache costs and what it learns on the shipped Sudoku, beside exact rollouts: equal updates, several seeds.

    OMP_NUM_THREADS=1 python benchmarks/cached_learning.py --seeds 10 --out benchmarks/cached_learning

Tokens are those that go through the model in training, padding and all forwards of the update included. Finished runs
in ``runs.csv`` of the folder are kept, so that more seeds and settings can be added; ``--updates`` must stay.

``blocks``: blocks of 4 positions, one token per step, K = 2 steps with the exact log-probability, no reference, so that
most forwards are the rollout's. ``shipped``: the recipe ``egspo`` as it is, one block, 2 tokens per step, K = 4, KL.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

from common import report

from dlmrl_kit.experiments.referee.statistics import mean
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training.runs import train

SETTINGS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "blocks": (
        ("Sampler.block_length = 4", "Sampler.tokens_per_step = 1", "Selector.k = 2"),
        ("likelihood=StepLogProb", "regulariser=none"),
    ),
    "shipped": ((), ()),
}
"""Bindings and swaps on the recipe ``egspo``."""

VARIANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "exact": ((), ()),
    "DualCache": ((), ("cache=DualCache",)),
    "AdaptiveRefresh": ((), ("cache=AdaptiveRefresh",)),
}
VARIANTS |= {
    f"{name}, Continuous": ((*sets, "Continuous.sampler = @LowConfidence()"), (*uses, "sampler=Continuous"))
    for name, (sets, uses) in VARIANTS.items()
}
"""Each also with equal states run once, which changes no trajectory."""
SIZES = ("Trainer.prompts_per_update = 8", "Trainer.eval_every = 0", "Trainer.traced_examples = 0")
LAST = 5
"""Updates at the end whose training reward is averaged."""


def measured(setting: str, variant: str, seed: int, updates: int, examples: int) -> dict[str, object]:
    """Trains once; returns a row."""
    (sets, uses), (more_sets, more_uses) = SETTINGS[setting], VARIANTS[variant]
    trainer = (f"Trainer.seed = {seed}", f"Trainer.updates = {updates}", f"Trainer.eval_size = {examples}")
    recipe = load_recipe("egspo", sets=(*sets, *more_sets, *SIZES, *trainer), uses=(*uses, *more_uses))
    with tempfile.TemporaryDirectory() as folder:
        result = train(recipe, Path(folder) / "run")
        found = {name: [value for _, value in series] for name, series in read_metrics(Path(folder) / "run").items()}
    sizes = found.get("correction/effective_sample_size", [1.0])
    return {
        "setting": setting,
        "variant": variant,
        "seed": seed,
        "before": result.before.accuracy,
        "accuracy": result.after.accuracy,
        "last_rewards": statistics.fmean(found["reward"][-LAST:]),
        "tokens_per_update": statistics.fmean(found["forwards/tokens"]),
        "effective_sample_size": statistics.fmean(sizes),
        "smallest_effective_sample_size": min(sizes),
        "last_refresh": found["cache/refresh"][-1] if "cache/refresh" in found else "",
    }


def summary(rows: list[dict[str, object]], setting: str) -> list[dict[str, object]]:
    """Returns means over seeds for each variant, and its differences to exact rollouts of the same seeds, paired."""

    def of(variant: str, name: str) -> dict[int, float]:
        own = [row for row in rows if (row["setting"], row["variant"]) == (setting, variant)]
        return {int(str(row["seed"])): float(str(row[name])) for row in own}

    made = []
    for variant in VARIANTS:
        if not of(variant, "accuracy"):
            continue
        row: dict[str, object] = {"setting": setting, "variant": variant, "seeds": len(of(variant, "accuracy"))}
        for name in ("accuracy", "last_rewards"):
            own, exact = of(variant, name), of("exact", name)
            pairs = [own[seed] - exact[seed] for seed in own if seed in exact]
            found = mean(pairs)
            row |= {name: statistics.fmean(own.values()), f"{name}_difference": found.mean}
            row |= {f"{name}_low": found.low, f"{name}_high": found.high}
        tokens, exact_tokens = of(variant, "tokens_per_update"), of("exact", "tokens_per_update")
        row["tokens_per_update"] = statistics.fmean(tokens.values())
        row["tokens_over_exact"] = statistics.fmean(tokens[seed] / exact_tokens[seed] for seed in tokens)
        row["effective_sample_size"] = statistics.fmean(of(variant, "effective_sample_size").values())
        made.append(row)
    return made


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, default="blocks")
    parser.add_argument("--variant", choices=VARIANTS, action="append")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    given = parser.parse_args()
    path, rows = given.out / "runs.csv", list[dict[str, object]]()
    given.out.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        rows += list(csv.DictReader(path.read_text().splitlines()))
    done = {(row["setting"], row["variant"], int(str(row["seed"]))) for row in rows}
    for seed in range(given.seeds):
        for variant in given.variant or ("exact", "DualCache", "AdaptiveRefresh"):
            if (given.setting, variant, seed) not in done:
                rows.append(measured(given.setting, variant, seed, given.updates, given.examples))
                with path.open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
    found = [row for setting in SETTINGS for row in summary(rows, setting)]
    report("cached_learning", given.out, found, updates=given.updates, examples=given.examples)


if __name__ == "__main__":
    main()
