"""The training loop's settings, as a component of a recipe."""

from __future__ import annotations

import math
from typing import Literal

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.trainers.base import EVAL_BATCH_SIZE, PRECISIONS, OptimiserSettings

COMPILE_MODES: tuple[str, ...] = ("default", "max-autotune-no-cudagraphs")
"""Modes of ``torch.compile`` without CUDA graphs; see ``policies.compiling``."""

SHARDINGS: tuple[str, ...] = ("none", "full")
"""What the processes of a run hold of the weights: all, or a part each."""

ROLLOUT_WEIGHTS: tuple[str, ...] = ("auto", "whole", "blocks")
"""How processes that hold parts of the weights put them together for rollouts."""

ASSIGNMENTS: tuple[str, ...] = ("in_turn", "by_length")
"""How the prompts of an update are shared out among the processes of a run."""


@register("trainer")
class Trainer(OptimiserSettings):
    """Says how often, how much and how fast to train. There is one rollout per update; AdamW takes the steps.

    Args:
        updates: rollouts to generate and learn from.
        prompts_per_update: prompts per rollout.
        group_size: G, completions per prompt.
        inner_iterations: passes over each rollout.
        minibatches: optimiser steps per pass; the samples of a rollout are split among them.
        micro_batch_size: samples per forward and backward pass; gradients are accumulated, results do not change.
        micro_batch_tokens: prompt and completion tokens per pass, over all states that are scored; None sets no limit.
            A sample whose states exceed it is cut between them, down to one state (one Monte Carlo draw) per pass.
        rollout_batch_size: samples generated at once, in evaluations, too; None generates all of a rollout together,
            and 256 in evaluations.
        learning_rate: peak learning rate.
        schedule: of ``transformers.get_scheduler``: ``constant``, ``constant_with_warmup``, ``linear``, ``cosine``,
            ``cosine_with_restarts``, ``polynomial`` or ``inverse_sqrt``.
        warmup_steps: optimiser steps of linear warm-up.
        beta1, beta2, weight_decay: of AdamW.
        max_grad_norm: gradient clipping by global norm.
        precision: ``float32``, or ``bfloat16`` for autocast, in evaluations, too (weights and optimiser stay in
            float32).
        compile: mode of ``torch.compile`` for the policy's transformer blocks: ``default`` or
            ``max-autotune-no-cudagraphs``; None: they are not compiled.
        sharding: ``none``: every process of a run of several holds all weights; ``full``: it holds a part of weights,
            gradients and optimiser state, and they are put together block by block (see ``policies.sharding``).
        offload: ``cpu``: these parts lie in the CPU's memory, where the optimiser runs; ``none``: on the device.
        rollout_weights: how such parts are put together for rollouts, evaluations and scoring: ``whole``: all weights
            at once in every process, which then needs no other; ``blocks``: one block at a time, with all processes in
            step; ``auto``: ``blocks`` where all weights do not fit in memory, by the estimate of the dry run.
        assignment: which process of several samples which prompts: ``in_turn``; or ``by_length``, so that all take
            about as many denoising steps, by what completions of each prompt took when it was sampled last (see
            ``training.balancing``). Samples do not depend on it.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` ...
        seed: of everything random.
        eval_every: updates between evaluations on held-out examples; 0 evaluates at the start and the end only.
        eval_size: held-out examples per evaluation.
        eval_temperature: of the sampler in evaluations, and on the page of trajectories; 0 decodes greedily.
        validation_size: examples of the split ``pretrain`` per evaluation, on which the best model of the run is
            chosen (see ``training.best_model``); 0 chooses none, and the run leaves its last model alone.
        traced_examples: how many of them ``trajectories.html`` in the run folder shows, step by step, before training
            and at the latest evaluation; 0 writes no such page.
        checkpoint_every: updates between checkpoints.
        guard_every: updates between checks that some actions of a rollout have the log-probability that was recorded
            (see ``training.guard``); 0: only before the first update, when all actions are checked; None: 1 with a
            collector, 0 without.
        guard_actions: how many actions such a check compares, in each process; each costs one forward of one state.
        max_skipped: optimiser steps with a non-finite loss or gradient in a row before training stops.
        timeout_minutes: the longest time that an update, an evaluation or the export may take in a run of several
            processes; a longer one is taken to hang and ends the run.

    Raises:
        ValueError: a value out of range.
    """

    precision: Literal["float32", "bfloat16"]

    def __init__(
        self,
        updates: int = 100,
        prompts_per_update: int = 16,
        group_size: int = 8,
        inner_iterations: int = 1,
        minibatches: int = 1,
        micro_batch_size: int = 64,
        micro_batch_tokens: int | None = None,
        rollout_batch_size: int | None = None,
        learning_rate: float = 1e-4,
        schedule: str = "constant",
        warmup_steps: int = 0,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        precision: Literal["float32", "bfloat16"] = "float32",
        compile: str | None = None,
        sharding: Literal["none", "full"] = "none",
        offload: Literal["none", "cpu"] = "none",
        rollout_weights: Literal["auto", "whole", "blocks"] = "auto",
        assignment: Literal["in_turn", "by_length"] = "in_turn",
        device: str = "auto",
        seed: int = 0,
        eval_every: int = 20,
        eval_size: int = 256,
        eval_temperature: float = 0.0,
        validation_size: int = 0,
        traced_examples: int = 4,
        checkpoint_every: int = 10,
        guard_every: int | None = None,
        guard_actions: int = 8,
        max_skipped: int = 5,
        timeout_minutes: float = 60.0,
    ) -> None:
        super().__init__(
            learning_rate, schedule, warmup_steps, (beta1, beta2), weight_decay, max_grad_norm, device, seed
        )
        self.updates = updates
        self.prompts_per_update = prompts_per_update
        self.group_size = group_size
        self.inner_iterations = inner_iterations
        self.minibatches = minibatches
        self.micro_batch_size = micro_batch_size
        self.micro_batch_tokens = micro_batch_tokens
        self.rollout_batch_size = rollout_batch_size
        self.precision = precision
        self.eval_batch_size = EVAL_BATCH_SIZE if rollout_batch_size is None else rollout_batch_size
        self.compile = compile
        self.sharding = sharding
        self.offload = offload
        self.rollout_weights = rollout_weights
        self.assignment = assignment
        self.eval_every = eval_every
        self.eval_size = eval_size
        self.eval_temperature = eval_temperature
        self.validation_size = validation_size
        self.traced_examples = traced_examples
        self.checkpoint_every = checkpoint_every
        self.guard_every = guard_every
        self.guard_actions = guard_actions
        self.max_skipped = max_skipped
        self.timeout_minutes = timeout_minutes
        self._check()

    def _check(self) -> None:
        positive = {
            "updates": self.updates,
            "prompts_per_update": self.prompts_per_update,
            "group_size": self.group_size,
            "inner_iterations": self.inner_iterations,
            "minibatches": self.minibatches,
            "micro_batch_size": self.micro_batch_size,
            "eval_size": self.eval_size,
            "checkpoint_every": self.checkpoint_every,
            "guard_actions": self.guard_actions,
            "max_skipped": self.max_skipped,
        }
        for name, value in positive.items():
            check(value >= 1, self, name, value, "at least 1")
        limits = {"rollout_batch_size": self.rollout_batch_size, "micro_batch_tokens": self.micro_batch_tokens}
        for name, limit in limits.items():
            check(limit is None or limit >= 1, self, name, limit, "at least 1, or None")
        samples = self.prompts_per_update * self.group_size
        fewer = f"at most the {samples} samples of a rollout"
        check(self.minibatches <= samples, self, "minibatches", self.minibatches, fewer)
        check(self.precision in PRECISIONS, self, "precision", self.precision, "'float32' or 'bfloat16'")
        modes = f"None or one of {', '.join(COMPILE_MODES)} (modes with CUDA graphs are not for single blocks)"
        check(self.compile is None or self.compile in COMPILE_MODES, self, "compile", self.compile, modes)
        self._check_sharding()
        check(self.assignment in ASSIGNMENTS, self, "assignment", self.assignment, "'in_turn' or 'by_length'")
        limit_of_time = 0 < self.timeout_minutes < math.inf
        check(limit_of_time, self, "timeout_minutes", self.timeout_minutes, "positive and finite")
        check(self.eval_every >= 0, self, "eval_every", self.eval_every, "at least 0")
        guarded = self.guard_every is None or self.guard_every >= 0
        check(guarded, self, "guard_every", self.guard_every, "at least 0, or None")
        warm = 0 <= self.eval_temperature < math.inf
        check(warm, self, "eval_temperature", self.eval_temperature, "at least 0 and finite")
        check(self.validation_size >= 0, self, "validation_size", self.validation_size, "at least 0")
        check(self.traced_examples >= 0, self, "traced_examples", self.traced_examples, "at least 0")

    def _check_sharding(self) -> None:
        check(self.sharding in SHARDINGS, self, "sharding", self.sharding, "'none' or 'full'")
        parts = self.sharding == "full"
        places = "'none' or 'cpu'" if parts else "'none' without sharding = 'full': whole weights stay on the device"
        check(self.offload in (("none", "cpu") if parts else ("none",)), self, "offload", self.offload, places)
        ways = "'auto', 'whole' or 'blocks'" if parts else "'auto' without sharding = 'full': there are no parts"
        known = ROLLOUT_WEIGHTS if parts else ROLLOUT_WEIGHTS[:1]
        check(self.rollout_weights in known, self, "rollout_weights", self.rollout_weights, ways)

    @property
    def optimiser_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.updates * self.inner_iterations * self.minibatches
