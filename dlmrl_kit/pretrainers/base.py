"""The interface of pre-training objectives, and the settings of the loop that minimises them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Unpack

import torch
from torch import Tensor

from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.promises import Given, promises, tensor_fault
from dlmrl_kit.core.validate import check
from dlmrl_kit.trainers.base import EVAL_BATCH_SIZE, OptimiserArguments, OptimiserSettings


def _loss(result: object, given: Given) -> str:
    return tensor_fault(result, "real", (), device=given["completion_ids"].device, gradient=torch.is_grad_enabled())


class Pretrainer(OptimiserSettings, ABC):
    """Base class of pre-training objectives; subclasses implement ``objective``.

    Args:
        steps: optimiser steps.
        batch_size: demonstrations per step.
        log_every, checkpoint_every: steps between log lines and between checkpoints.
        eval_size: held-out examples decoded at the end.
        eval_batch_size: completions that are decoded at once there.
        optimiser: as ``OptimiserSettings``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        *,
        steps: int,
        batch_size: int,
        log_every: int,
        checkpoint_every: int,
        eval_size: int,
        eval_batch_size: int = EVAL_BATCH_SIZE,
        **optimiser: Unpack[OptimiserArguments],
    ) -> None:
        super().__init__(**optimiser)
        positive = {
            "steps": steps,
            "batch_size": batch_size,
            "log_every": log_every,
            "checkpoint_every": checkpoint_every,
            "eval_size": eval_size,
            "eval_batch_size": eval_batch_size,
        }
        for name, value in positive.items():
            check(value >= 1, self, name, value, "at least 1")
        self.steps = steps
        self.batch_size = batch_size
        self.log_every = log_every
        self.checkpoint_every = checkpoint_every
        self.eval_size = eval_size
        self.eval_batch_size = eval_batch_size

    @abstractmethod
    @promises(_loss)
    def objective(
        self,
        policy: Policy,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        completion_ids: Tensor,
        seed: Tensor,
        spread: Tensor,
    ) -> Tensor:
        """Computes the loss of one batch, a scalar with gradient.

        Args:
            policy: the denoiser.
            prompt_ids, prompt_mask: int64 and bool [B, P], left-padded.
            completion_ids: int64 [B, L], the demonstrations.
            seed: int64 [B], of each row's masks, from the row's number in the data and the pass over them.
            spread: float64 [B], uniform in [0, 1), and evenly spread over the rows of the optimiser step.
        """
