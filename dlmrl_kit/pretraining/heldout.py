"""The held-out loss: an estimate whose masks are the same before and after, so that the two can be compared."""

from __future__ import annotations

import torch

from dlmrl_kit.core import seeding
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.demonstrators.base import Demonstrator
from dlmrl_kit.pretrainers.base import Pretrainer
from dlmrl_kit.pretraining.demonstrations import Demonstrations, batch_of, encode_demonstrations
from dlmrl_kit.rollout.services import examples
from dlmrl_kit.tasks.base import BaseTask

DRAWS = 4
"""States of each held-out example, with masking levels that are spread evenly over all states."""
ROWS = 64
"""States of one forward, where the recipe names no micro_batch_size."""


def encode_heldout(
    task: BaseTask, demonstrator: Demonstrator, policy: Policy, length: int, settings: Pretrainer
) -> tuple[Demonstrations | None, list[str]]:
    """Encodes the held-out demonstrations of the loss.

    Args:
        task, demonstrator, policy, length: as ``encode_demonstrations``.
        settings: how many there are, and what becomes of answers that are too long.

    Returns:
        The demonstrations, or None where there are none to be had; and what the user should know of that.
    """
    number = min(settings.loss_size, task.size("heldout"))
    if number == 0:
        return None, []
    try:
        found = examples(task, "heldout", range(number))
        if any(not text for example in found for text, _ in demonstrator.demonstrations(example)):
            return None, ["no held-out loss: not every held-out example has an answer"]
        data = encode_demonstrations(
            task, demonstrator, policy, length, split="heldout", most=number, too_long=settings.too_long
        )
    except RecipeError as error:  # what is evaluated by its reward need not have an answer that can be learned
        return None, [f"no held-out loss: {error}"]
    return data, data.notes("heldout", length)


def heldout_loss(data: Demonstrations, policy: Policy, settings: Pretrainer, length: int) -> float:
    """Estimates the loss of held-out demonstrations, each in ``DRAWS`` states.

    The states depend on the seed of the run and the demonstrations alone.

    Args:
        data: from ``encode_heldout``.
        policy: the denoiser.
        settings: the objective, and the size of batches.
        length: the most tokens of a completion.
    """
    rows = torch.arange(len(data.prompts), device=policy.device).repeat(DRAWS)
    base = torch.full_like(rows, seeding.derive_seed(settings.seed, "heldout"))
    place = torch.arange(len(rows), device=policy.device)
    seed = seeding.combine_seeds(base, place)
    # Each example gets levels of every DRAWS-th part of (0, 1).
    spread = (place + 0.5) / len(rows)
    batch = batch_of(data, rows, seed, policy, settings, length)
    total = 0.0
    with torch.no_grad():
        for part in torch.arange(len(rows), device=policy.device).split(settings.micro_batch_size or ROWS):
            prompt, mask, completion, counted = (tensor[part] for tensor in batch)
            loss = settings.objective(policy, prompt, mask, completion, seed[part], spread[part], counted)
            total += loss.item() * len(part)
    return total / len(rows)
