"""What processes send each other in an update, counted, against the dry run's estimate: the same to the byte."""

from __future__ import annotations

import pytest
from support.collectives import payloads
from support.runs import build
from support.several import Pool

from dlmrl_kit.core.processes import Processes

FULL = "Trainer.sharding = 'full'"
ONCE = ["Trainer.minibatches = 1"]
CASES = {
    "whole": ("egspo_sa", [*ONCE, "Trainer.prompts_per_update = 3"]),
    "whole, minibatches": ("egspo_sa", ["Trainer.prompts_per_update = 3", "Trainer.minibatches = 2"]),
    "sharded": ("egspo_sa", [*ONCE, FULL, "Trainer.prompts_per_update = 4", "Trainer.micro_batch_size = 4"]),
    "sharded, adapter": ("egspo_sa", [*ONCE, FULL, "Trainer.prompts_per_update = 4", "Pretrained.lora_rank = 2"]),
    "sharded, bfloat16": ("egspo", [*ONCE, FULL, "Trainer.prompts_per_update = 4", "Trainer.precision = 'bfloat16'"]),
    "sharded, in blocks": (
        "egspo_sa",
        [*ONCE, FULL, "Trainer.rollout_weights = 'blocks'", "Trainer.prompts_per_update = 4"],
    ),
}


def case(processes: Processes, name: str, sets: list[str]) -> object:
    """In a process of the pool, which imports this module."""
    return payloads(processes, build(name, sets))


@pytest.mark.thorough
@pytest.mark.parametrize("label", CASES)
def test_bytes_are_those_on_paper(label: str, pool: Pool) -> None:
    for found in pool.run(case, *CASES[label], worlds=(2, 3)).values():
        for own in found:
            counted, on_paper = own
            assert counted == on_paper
            assert counted
