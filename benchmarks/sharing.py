"""What an update computes that it does not need, counted: padding, and blocks that states share; then the time of it.

    OMP_NUM_THREADS=1 python benchmarks/sharing.py --out results

The first table is of models that attend both ways, which need every position of every state: how much is padding, by
the rows of a micro-batch. The second is of block-causal models: positions of whole states, of what the kit computes
(``policies.shared_blocks``), and of every block once. Prompts and texts are drawn from log-normal distributions, and
selected steps evenly. The last table has the CPU seconds of an update of a random model, with whole states and with
shared blocks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import update
from common import Size, TokenIds, interleaved, make_policy, make_prompts, report
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import COMMIT_STEP, COMPLETION_IDS, PROMPT_IDS, PROMPT_MASK, SELECTED_STEP, SELECTED_WEIGHT
from dlmrl_kit.core.trajectory import micro_batches, unpadded
from dlmrl_kit.likelihoods.block_replay import rounds
from dlmrl_kit.likelihoods.steps import replay
from dlmrl_kit.policies.block_causal import BlockCausalPolicy
from dlmrl_kit.policies.finished_blocks import PADDING
from dlmrl_kit.policies.shared_blocks import needed, packing, shared_tokens

MASK, VOCAB = 0, 1000
LENGTH, PROMPTS, GROUP = 256, 16, 6
"""Positions of a completion, prompts of an update, and samples of each."""


@dataclass(frozen=True)
class Count:
    """Positions that go through the body for one update's states, once.

    Attributes:
        whole: states as they are, padded to the longest prompt of their micro-batch.
        real: the same without padding.
        packed: in sequences with shared blocks, padding included.
        shared: the same without padding.
        once: every block of a micro-batch once.
        replayed: by ``BlockReplay``.
    """

    whole: int = 0
    real: int = 0
    packed: int = 0
    shared: int = 0
    once: int = 0
    replayed: int = 0


def log_normal(count: int, median: float, least: int, most: int, generator: torch.Generator) -> Tensor:
    """Draws lengths, int64 [count], with a standard deviation of 0.5 of their logarithm."""
    drawn = median * (0.5 * torch.randn(count, generator=generator)).exp()
    return drawn.round().long().clamp(least, most)


def trajectories(block_size: int, selected: int | None, seed: int = 0) -> TensorDict:
    """Makes trajectories with a token per step, block by block, whose texts end anywhere.

    Args:
        block_size: of the model; blocks are counted from the prompt.
        selected: steps of each, drawn from those until the text's last block is finished; None: all of these.
        seed: of everything that is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt = log_normal(PROMPTS, 128, 16, 512, generator).repeat_interleave(GROUP)
    rows, width = len(prompt), int(prompt.max())
    ids = torch.randint(2, VOCAB, (PROMPTS, width), generator=generator).repeat_interleave(GROUP, 0)
    block = (prompt[:, None] % block_size + torch.arange(LENGTH)) // block_size
    order = (block + torch.rand(rows, LENGTH, generator=generator)).argsort(-1)
    commit = torch.empty_like(order).scatter(1, order, torch.arange(LENGTH).expand(rows, LENGTH))
    last = block.gather(1, log_normal(rows, 160, 16, LENGTH, generator)[:, None] - 1)
    steps = (block <= last).sum(-1)
    commit = commit.where(block <= last, LENGTH)
    happened = torch.arange(LENGTH) < steps[:, None]
    chosen = torch.rand(rows, LENGTH, generator=generator).masked_fill(~happened, 2).argsort(-1)[:, :selected]
    mask = torch.arange(width) >= width - prompt[:, None]
    return TensorDict(
        {
            PROMPT_IDS: ids.masked_fill(~mask, 1),
            PROMPT_MASK: mask,
            COMPLETION_IDS: torch.randint(2, VOCAB, (rows, LENGTH), generator=generator),
            COMMIT_STEP: commit,
            SELECTED_STEP: chosen,
            SELECTED_WEIGHT: (chosen < steps[:, None]).double(),
        },
        [rows],
    )


def counted(batch: TensorDictBase, block_size: int | None, hidden: int, rows: int, ordered: bool = True) -> Count:
    """Counts the states of a batch in micro-batches of some samples.

    Args:
        batch: of ``trajectories``.
        block_size: None counts ``whole`` and ``real`` only.
        hidden: size of the model, which decides what is shared.
        rows: samples of a micro-batch.
        ordered: whether they have prompts of like length, as in the kit.
    """
    total = Count()
    for micro in (part for _, part in micro_batches(batch, rows, False)) if ordered else batch.split(rows):
        steps = replay(micro, MASK)
        prompt_ids, prompt_mask = unpadded(steps.prompt[PROMPT_IDS], steps.prompt[PROMPT_MASK])
        ids, mask = torch.cat([prompt_ids, steps.ids], 1), torch.cat([prompt_mask, torch.ones_like(steps.ids) > 0], 1)
        total = replace(total, whole=total.whole + mask.numel(), real=total.real + int(mask.sum()))
        if block_size is None:
            continue
        row, column = steps.decision.committed.nonzero(as_tuple=True)
        column += prompt_ids.shape[1]
        packed = packing(ids, mask, row, column, block_size, hidden).block
        states = needed(ids, mask, row, (mask.long().cumsum(-1) - 1)[row, column], block_size).unique(dim=0)
        once = int((states != PADDING).sum() - shared_tokens(states, block_size).sum())
        turn = rounds(micro[COMMIT_STEP].long(), micro[PROMPT_MASK].sum(-1) % block_size, block_size)
        used = steps.scatter(steps.decision.committed.long()).any(1)
        copies = sum(len(turns[chosen].unique()) for turns, chosen in zip(turn, used, strict=True))
        replayed = copies * (mask.shape[1] + LENGTH + min(block_size - 1, prompt_ids.shape[1]))
        total = Count(
            total.whole,
            total.real,
            total.packed + packed.numel(),
            total.shared + int((packed != PADDING).sum()),
            total.once + once,
            total.replayed + replayed,
        )
    return total


def padding() -> list[dict[str, Any]]:
    """Counts padding of models that attend both ways."""
    batch, found = trajectories(32, 8), []
    for rows in (2, 6, 12, 24, 96):
        sorted_, mixed = (counted(batch, None, 0, rows, ordered) for ordered in (True, False))
        shares = {name: 1 - count.real / count.whole for name, count in (("kit", sorted_), ("in any order", mixed))}
        found.append({"rows": rows, **{f"padding, {name}": share for name, share in shares.items()}})
    return found


def blocks() -> list[dict[str, Any]]:
    """Counts what states of block-causal models share."""
    found = []
    for block_size in (4, 32):
        for selected in (1, 4, 8, 16, 32, None):
            for hidden in (256, 4096):
                count = counted(trajectories(block_size, selected), block_size, hidden, 6)
                row: dict[str, Any] = {"block": block_size, "K": selected or "all", "hidden": hidden}
                row |= {"whole": count.whole / count.once, "kit": count.packed / count.once}
                row |= {"padding": 1 - count.shared / count.packed, "BlockReplay": count.replayed / count.once}
                found.append(row)
    return found


class Whole(BlockCausalPolicy):
    """Computes all blocks of all states."""

    def hidden_at(self, input_ids: Tensor, attention_mask: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """As ``BlockCausalPolicy.hidden_at``; in rollouts finished blocks are reused here, too."""
        if self._cache is not None and not torch.is_grad_enabled():
            return super().hidden_at(input_ids, attention_mask, row, column)
        return self.hidden(input_ids, attention_mask)[row, column]


def timed(size: Size, repeats: int) -> dict[str, float]:
    """Measures an update of a random block-causal model, with whole states and with shared blocks."""
    works: dict[str, Callable[[], object]] = {}
    for name, kind in (("whole", Whole), ("kit", BlockCausalPolicy)):
        made = make_policy(replace(size, lora=0))
        made.model.config.block_size = size.block
        policy = kind(made.model, TokenIds(size.vocab))  # type: ignore[arg-type]
        for parameter in policy.model.parameters():
            parameter.requires_grad_(True)
        policy.freeze_reference()
        learner = update.make_update(policy, size)
        run = update.trajectory(policy, make_prompts(size), size, learner)
        works[name] = partial(update.learn, learner, run)
    return interleaved(works, repeats)


def times(repeats: int) -> list[dict[str, Any]]:
    """Measures updates by block and K."""
    found: list[dict[str, Any]] = []
    base = Size(vocab=512, layers=2, prompt=64, length=64, batch=6, per_step=2, spread=3, micro_tokens=16_384)
    for block, selected in ((4, 8), (32, 8), (32, 1)):
        seconds = timed(replace(base, block=block, selected=selected), repeats)
        found.append({"block": block, "K": selected, **seconds, "whole/kit": seconds["whole"] / seconds["kit"]})
    return found


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of the times; 0: counts only")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    given = parser.parse_args()
    if given.repeats:
        report("times", given.out, times(given.repeats))
    report("padding", given.out, padding())
    report("sharing", given.out, blocks())


if __name__ == "__main__":
    main()
