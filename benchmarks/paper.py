"""An update of an 8B model on paper: work, time and memory, from formulas alone.

    python benchmarks/paper.py --gpus 8

LLaDA-8B's sizes. The time model is a roofline: matrix products at ``--tflops``, weights read at ``--bandwidth``; a
forward takes the longer of the two. Between GPUs: weights gathered at ``--link`` if they are sharded.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """Sizes of a transformer; LLaDA-8B by default."""

    hidden: int = 4096
    layers: int = 32
    mlp: int = 12_288
    vocab: int = 126_464

    @property
    def layer(self) -> float:
        """Weights of a layer."""
        return 4 * self.hidden**2 + 3 * self.hidden * self.mlp

    @property
    def head(self) -> float:
        """Weights of the head."""
        return self.hidden * self.vocab

    @property
    def weight_bytes(self) -> float:
        """Weights in bfloat16, embedding included."""
        return 2 * (self.layers * self.layer + 2 * self.head)

    def body(self, rows: float, length: int, asked: float | None = None) -> float:
        """Floating-point operations of a forward without head; the last layer at ``asked`` positions per row only."""
        per_token = 2 * self.layer + 4 * length * self.hidden
        total = rows * length * per_token * self.layers
        if asked is not None:
            everywhere = 4 * self.hidden**2 * length  # keys and values
            total -= rows * (length * per_token - everywhere - asked * per_token)
        return total

    def window(self, rows: float, length: int, size: float) -> float:
        """Operations of a forward of ``size`` positions of each row that see the keys and values of all."""
        return rows * size * (2 * self.layer + 4 * length * self.hidden) * self.layers

    def cached(self, rows: float, prompt: int, length: int, block: int, per_step: int, to_end: bool) -> float:
        """Bodies of a rollout with an approximate cache: each block's anchor, then the window in each of its steps."""
        total = 0.0
        for begin in range(0, length, block):
            window = length - begin if to_end else block
            total += self.body(rows, prompt + length) + block // per_step * self.window(rows, prompt + length, window)
        return total

    def project(self, positions: float) -> float:
        """Operations of the head."""
        return 2 * positions * self.head


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--per-step", type=int, default=2)
    parser.add_argument("--batch", type=int, default=6, help="per GPU")
    parser.add_argument("--selected", type=int, default=8)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--tflops", type=float, default=600)
    parser.add_argument("--bandwidth", type=float, default=2.8, help="TB/s of memory")
    parser.add_argument("--link", type=float, default=0.4, help="TB/s between GPUs, per GPU")
    given = parser.parse_args()
    model, size, steps = Model(), given.prompt + given.length, given.length // given.per_step
    rows, asked = given.batch, (given.block + given.per_step) / 2
    states = rows * given.selected
    plain = {
        "rollout": steps * (model.body(rows, size) + model.project(rows * size)),
        "reference": model.body(states, size) + model.project(states * size),
        "policy, forward and backward": 2 * (model.body(states, size) + model.project(states * size)),
    }
    kit = {
        "rollout": steps * (model.body(rows, size, asked) + model.project(rows * asked)),
        "reference": model.body(states, size, given.per_step) + model.project(states * given.per_step),
        "policy, forward and backward": 2
        * (model.body(states, size, given.per_step) + model.project(states * given.per_step)),
    }
    reads = {"rollout": steps, "reference": 1, "policy, forward and backward": 2}
    gather = model.weight_bytes * (given.gpus - 1) / given.gpus / (given.link * 1e12)
    print(f"{'phase':30} {'plain PFLOP':>12} {'exact PFLOP':>12} {'exact s':>8} {'+ gathering, sharded':>21}")
    totals = [0.0] * 4
    for phase, work in plain.items():
        weights = reads[phase] * model.weight_bytes / (given.bandwidth * 1e12)
        seconds = max(kit[phase] / (given.tflops * 1e12), weights)
        row = [work / 1e15, kit[phase] / 1e15, seconds, reads[phase] * gather]
        totals = [total + value for total, value in zip(totals, row, strict=True)]
        print(f"{phase:30} {row[0]:12.2f} {row[1]:12.2f} {row[2]:8.2f} {row[3]:21.2f}")
    print(f"{'update':30} {totals[0]:12.2f} {totals[1]:12.2f} {totals[2]:8.2f} {totals[3]:21.2f}")
    for name, to_end in (("prefix cache", True), ("dual cache", False)):
        work = model.cached(rows, given.prompt, given.length, given.block, given.per_step, to_end)
        work += steps * model.project(rows * asked)
        seconds = max(work / (given.tflops * 1e12), steps * model.weight_bytes / (given.bandwidth * 1e12))
        exact = kit["rollout"] / (given.tflops * 1e12)
        print(f"{'rollout, ' + name:30} {'':12} {work / 1e15:12.2f} {seconds:8.2f}", end="")
        print(f"   {exact / seconds:.1f}x faster, then a correction like a reference pass")
    cache = rows * size * model.layers * 2 * model.hidden * 2 / 1e9
    print(f"keys and values of a cache, bfloat16: {cache:.2f} GB; weights {model.weight_bytes / 1e9:.2f} GB")
    distributions = rows * steps * given.per_step * model.vocab * 2 / 1e9
    logits = rows * size * model.vocab * 4 / 1e9
    step_logits = min(rows * given.block * model.vocab * 4 / 1e9, 1.074)
    print(
        f"kept distributions (plain, bfloat16): {distributions:.2f} GB; full logits of a step, float32: {logits:.2f} GB"
    )
    print(f"the kit's largest block of logits, float32: {step_logits:.2f} GB, whatever the number of steps")


if __name__ == "__main__":
    main()
