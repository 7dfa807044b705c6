r"""Masked-diffusion pre-training (MDLM, arXiv 2406.07524; LLaDA, arXiv 2502.09992, eq. 3).

    L = E_{t ~ U(0,1)} [ 1/t * 1/L * sum over masked i of -log p(x_i | x_t) ]

Every completion token is masked with probability t, the prompt never; t is stratified over the batch. L is the number
of positions that are learned, so that every answer counts the same, however long it is (LLaDA, algorithm 2).

A block-causal model sees the blocks before a masked one without masks, as it does when it decodes (arXiv 2503.09573).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.policy import Policy, completion_features
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.seeding import uniforms
from dlmrl_kit.core.validate import check
from dlmrl_kit.policies.block_causal import BlockCausalPolicy
from dlmrl_kit.pretrainers.base import Pretrainer
from dlmrl_kit.trainers.base import EVAL_BATCH_SIZE


@register("pretrainer", paper="arXiv 2502.09992, eq. 3")
class MaskedDiffusion(Pretrainer):
    """Minimises the masked-diffusion loss of the demonstrations by AdamW, with a linear warm-up and then a schedule.

    Args:
        steps: optimiser steps.
        batch_size: demonstrations per step.
        learning_rate, beta1, beta2, weight_decay, max_grad_norm: of AdamW and gradient clipping.
        warmup_steps: linear warm-up; then ``schedule``.
        schedule: as ``Trainer``.
        min_mask: smallest masking probability t, which bounds the weight 1/t.
        device, seed: as ``Trainer``.
        log_every, checkpoint_every: steps between log lines and between checkpoints.
        eval_size: held-out examples decoded at the end; 0: none are.
        eval_batch_size: completions that are decoded at once there.
        width, filler, too_long, micro_batch_size, loss_size: as ``Pretrainer``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        steps: int = 1500,
        batch_size: int = 128,
        learning_rate: float = 2e-3,
        schedule: str = "linear",
        warmup_steps: int = 100,
        beta1: float = 0.9,
        beta2: float = 0.98,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
        min_mask: float = 0.03,
        device: str = "auto",
        seed: int = 0,
        log_every: int = 50,
        checkpoint_every: int = 250,
        eval_size: int = 512,
        eval_batch_size: int = EVAL_BATCH_SIZE,
        width: Literal["completion", "longest"] = "completion",
        filler: Literal["learned", "masked"] = "learned",
        too_long: Literal["refuse", "leave_out", "cut"] = "refuse",
        micro_batch_size: int | None = None,
        loss_size: int = 256,
    ) -> None:
        super().__init__(
            steps=steps,
            batch_size=batch_size,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            eval_size=eval_size,
            eval_batch_size=eval_batch_size,
            learning_rate=learning_rate,
            schedule=schedule,
            warmup_steps=warmup_steps,
            betas=(beta1, beta2),
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            device=device,
            seed=seed,
            data={
                "width": width,
                "filler": filler,
                "too_long": too_long,
                "micro_batch_size": micro_batch_size,
                "loss_size": loss_size,
            },
        )
        check(0 < min_mask < 1, self, "min_mask", min_mask, "in (0, 1)")
        self.min_mask = min_mask

    def check_policy(self, policy: Policy) -> None:
        """Refuses policies whose open positions hold no mask, and block-causal ones whose logits are shifted.

        Raises:
            RecipeError: it is such a one.
        """
        name = policy.name or type(policy).__name__
        if policy.noise != "mask":
            raise RecipeError(f"MaskedDiffusion is not for {name}, whose open positions hold random tokens, no masks")
        if isinstance(policy, BlockCausalPolicy) and policy.shift_logits:
            raise RecipeError(
                f"MaskedDiffusion is not for {name}: a block's first token is predicted by the block before, which is "
                "without masks while this one is learned; take a model whose logits are not shifted"
            )

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
        """Computes the loss of one batch; see ``Pretrainer.objective``."""
        rows, length = completion_ids.shape
        counted = torch.ones_like(completion_ids, dtype=torch.bool) if counted is None else counted
        level = spread.clamp(min=self.min_mask)[:, None]
        masked = (uniforms(seed, length, purpose="mask") < level) & counted
        weight = level.float() * (counted.sum(-1, keepdim=True) / length)
        state = completion_ids.masked_fill(masked | ~counted, policy.mask_id)
        if isinstance(policy, BlockCausalPolicy):
            features = policy.replayed(prompt_ids, prompt_mask, completion_ids, state, masked)
        else:
            features = completion_features(policy, prompt_ids, prompt_mask, state, masked)
        logits = policy.head(features)
        losses = torch.nn.functional.cross_entropy(logits.float(), completion_ids[masked], reduction="none")
        return (losses / weight.expand_as(masked)[masked]).sum() / (rows * length)
