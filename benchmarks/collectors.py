"""What rollouts in actors of Ray cost beside those of this process: start, weights, samples.

    python benchmarks/collectors.py [--recipe egspo_sa] [--updates 5]

The same samples are drawn here, and by two actors in the same pieces; each line is the median over the updates.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.component import trained
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training.loop import Run

PIECE = 16
"""Samples that are drawn at once."""


def seconds(call: Callable[[], object]) -> float:
    """Returns the time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def run_of(recipe: str, sets: list[str], folder: Path) -> Run:
    """Returns a run with two actors that was not started."""
    built = load_recipe(recipe, sets=sets, uses=["collector=Ray"]).build()
    assert isinstance(built, Algorithm)
    return Run(built, folder, recipe, RunObserver())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="egspo_sa")
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    import ray

    torch.set_num_threads(1)
    cluster = seconds(lambda: ray.init(address="local", include_dashboard=False, log_to_driver=False))
    print(f"start of a cluster     {cluster:8.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(
            given.recipe, ["Trainer.rollout_batch_size = 16", "Ray.cpus_per_actor = 1", *given.set], Path(folder)
        )
        update, policy, sampler = run.update, run.policy, run.algorithm.sampler
        assert update.collecting is not None
        began = time.perf_counter()
        with update.opened():
            print(f"start of two actors    {time.perf_counter() - began:8.2f} s")
            weights = trained(policy, [sampler])
            arrays = {name: weight.detach().numpy() for name, weight in weights.items()}
            size = sum(array.nbytes for array in arrays.values()) / 2**20
            collect, keys = update.collecting.collector.collect, update.plan.sampler.keys
            there, here, put = [], [], []
            for number in range(given.updates + 1):
                prompts = update.prompts(number)
                pieces = [piece.copy() for piece in prompts.split(PIECE)]
                put.append(seconds(partial(ray.put, arrays)))
                there.append(seconds(partial(collect, prompts.copy(), weights, number)))
                here.append(sum(seconds(partial(sampler, piece, policy=policy, keys=keys)) for piece in pieces))
            print(f"weights, {size:8.2f} MiB  {1000 * statistics.median(put[1:]):8.2f} ms")
            print(f"{len(prompts)} samples here       {1000 * statistics.median(here[1:]):8.2f} ms")
            print(f"{len(prompts)} samples in actors  {1000 * statistics.median(there[1:]):8.2f} ms")


if __name__ == "__main__":
    main()
