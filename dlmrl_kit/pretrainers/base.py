"""The interface of pre-training objectives, and the settings of the loop that minimises them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor

from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.promises import Given, promises, tensor_fault
from dlmrl_kit.core.validate import check
from dlmrl_kit.trainers.base import EVAL_BATCH_SIZE, OptimiserArguments, OptimiserSettings

WIDTHS = ("completion", "longest")
FILLERS = ("learned", "masked")
FATES = ("refuse", "leave_out", "cut")


def _loss(result: object, given: Given) -> str:
    return tensor_fault(result, "real", (), device=given["completion_ids"].device, gradient=torch.is_grad_enabled())


class DataArguments(TypedDict, total=False):
    """Types the arguments of ``Pretrainer`` that say how demonstrations become batches."""

    width: Literal["completion", "longest"]
    filler: Literal["learned", "masked"]
    too_long: Literal["refuse", "leave_out", "cut"]
    micro_batch_size: int | None
    loss_size: int


class Pretrainer(OptimiserSettings, ABC):
    """Base class of pre-training objectives; subclasses implement ``objective``.

    Args:
        steps: optimiser steps.
        batch_size: demonstrations per step.
        log_every, checkpoint_every: steps between log lines and between checkpoints.
        eval_size: held-out examples decoded at the end; 0: none are.
        eval_batch_size: completions that are decoded at once there.
        width: positions of a completion: the sampler's ``completion_length``, or as many as the ``longest`` of the
            optimiser step takes.
        filler: whether the end of text that fills the positions behind an answer is ``learned`` like the answer, as
            LLaDA does, or these positions are ``masked`` in every state and not learned.
        too_long: what becomes of answers longer than the sampler's ``completion_length``: ``refuse`` ends the run
            before it begins, ``leave_out`` and ``cut`` (at the right) are counted and said.
        micro_batch_size: demonstrations per forward and backward pass, whose gradients are added up; None: all.
        loss_size: the most held-out examples of the held-out loss, before and after; 0: there is none.
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
        data: DataArguments | None = None,
        **optimiser: Unpack[OptimiserArguments],
    ) -> None:
        super().__init__(**optimiser)
        positive = {
            "steps": steps,
            "batch_size": batch_size,
            "log_every": log_every,
            "checkpoint_every": checkpoint_every,
            "eval_batch_size": eval_batch_size,
        }
        for name, value in positive.items():
            check(value >= 1, self, name, value, "at least 1")
        check(eval_size >= 0, self, "eval_size", eval_size, "at least 0")
        self.steps = steps
        self.batch_size = batch_size
        self.log_every = log_every
        self.checkpoint_every = checkpoint_every
        self.eval_size = eval_size
        self.eval_batch_size = eval_batch_size
        self._take(data or {})

    def _take(self, data: DataArguments) -> None:
        """Keeps the settings that say how demonstrations become batches."""
        self.width = data.get("width", "completion")
        self.filler = data.get("filler", "learned")
        self.too_long = data.get("too_long", "refuse")
        self.micro_batch_size = data.get("micro_batch_size")
        self.loss_size = data.get("loss_size", 256)
        check(self.width in WIDTHS, self, "width", self.width, f"one of {', '.join(WIDTHS)}")
        check(self.filler in FILLERS, self, "filler", self.filler, f"one of {', '.join(FILLERS)}")
        check(self.too_long in FATES, self, "too_long", self.too_long, f"one of {', '.join(FATES)}")
        size = self.micro_batch_size
        check(size is None or size >= 1, self, "micro_batch_size", size, "at least 1, or None")
        check(self.loss_size >= 0, self, "loss_size", self.loss_size, "at least 0")

    def check_policy(self, policy: Policy) -> None:
        """Refuses a policy that the objective is not for. Default: none is.

        Raises:
            UserError: it is not.
        """

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
        counted: Tensor | None = None,
    ) -> Tensor:
        """Computes the loss of one batch, a scalar with gradient: a mean over its rows.

        Args:
            policy: the denoiser.
            prompt_ids, prompt_mask: int64 and bool [B, P], left-padded.
            completion_ids: int64 [B, L], the demonstrations.
            seed: int64 [B], of each row's masks, from the row's number in the data and the pass over them.
            spread: float64 [B], uniform in [0, 1), and evenly spread over the rows of the optimiser step.
            counted: bool [B, L], the positions that are learned; the others are masked in every state. None: all are.
        """
