"""Shares the prompts of an update out among processes by the number of denoising steps that they are expected to take.

Completions that end early take fewer steps, so that a process with long ones lets the others wait. What is expected of
a prompt is what its completions took on average when it was sampled last; of one that was not sampled yet, the mean of
the others. Longest first, each prompt goes to the process with the least to do (R. L. Graham, Bounds on multiprocessing
timing anomalies, 1969). No process gets more prompts than it would in turn, so that the update itself stays even.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import EXAMPLE, GROUP
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.core.trajectory import first_rows, num_valid, partition


class Lengths:
    """What is known of the lengths of completions. Every process of a run knows the same.

    Attributes:
        mean: by example, the mean number of denoising steps of its completions when it was sampled last.
    """

    def __init__(self) -> None:
        self.mean: dict[int, float] = {}

    def owners(self, prompts: TensorDictBase, world: int) -> Tensor:
        """Returns the process that samples each prompt, int64 [B]; the samples of a group stay together.

        Args:
            prompts: [B], of all processes.
            world: number of processes.
        """
        group = partition(prompts[GROUP])
        examples = prompts[EXAMPLE][first_rows(group)].tolist()
        known = [self.mean[example] for example in examples if example in self.mean]
        usual = fmean(known) if known else 1.0
        owner = assigned([self.mean.get(example, usual) for example in examples], world)
        return torch.tensor(owner, device=group.device)[group]

    def learn(self, trajectory: TensorDictBase, processes: Processes) -> None:
        """Takes over the lengths of a rollout; every process calls this with the samples that it has, possibly none."""
        own = zip(trajectory[EXAMPLE].tolist(), num_valid(trajectory).tolist(), strict=True) if len(trajectory) else ()
        steps = defaultdict[int, list[int]](list)
        for pairs in processes.gather(list(own)):
            for example, number in pairs:
                steps[example].append(number)
        self.mean.update({example: fmean(numbers) for example, numbers in steps.items()})


def assigned(expected: Sequence[float], world: int) -> list[int]:
    """Returns the process of each prompt; in turn where all expect the same.

    Args:
        expected: denoising steps of the completions of each prompt.
        world: number of processes.
    """
    most = -(-len(expected) // world)
    steps, prompts, owner = [0.0] * world, [0] * world, [0] * len(expected)
    for number in sorted(range(len(expected)), key=lambda number: -expected[number]):
        rank = min((r for r in range(world) if prompts[r] < most), key=lambda r: (steps[r], prompts[r]))
        owner[number] = rank
        steps[rank] += expected[number]
        prompts[rank] += 1
    return owner
