"""Continuous batching of rollouts: rows begin as others finish, and equal states are run once.

A row's trajectory follows from its prompt and its seed alone. So it does not matter which rows share a forward, nor at
which step each of them is. A batch that is denoised step by step has fewer and fewer rows as texts end; here a forward
has a number of places, and that of a finished row goes to the next one that waits (Orca, Yu et al. 2022).

What the policy predicts follows from the state alone. So the samples of a group, which begin in one state, share its
forward until they part, and they do wherever they meet again.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.behaviour import Process
from dlmrl_kit.core.component import Component, Sizes, rebuilt
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK
from dlmrl_kit.core.policy import Policy, Vocabulary
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.seeding import combine_seeds, seeds_of
from dlmrl_kit.core.trajectory import on_device, on_host, rows_of
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import Decision, Sampler, View
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.samplers.recorder import MaskRecorder, Predicted, Rows


@register("sampler", paper="Yu et al. 2022 (Orca)")
class Continuous(MaskSampler):
    """Samples the trajectories of another sampler: rows begin as others finish, and equal states are run once.

    Trajectories are the sampler's own, seed by seed, up to how forwards of other sizes round. Recipes leave
    ``Trainer.rollout_batch_size`` at None, so that all prompts of an update come at once.

    Args:
        sampler: what is sampled. It fills masks, each sample by itself.
        states: a forward has places for so many rows; others wait. None: no limit, so that none waits.

    Reads and writes as the sampler.

    Raises:
        ValueError: a value out of range.
    """

    not_sizes = (*MaskSampler.not_sizes, "states")  # which changes no trajectory

    def __init__(self, sampler: Sampler, states: int | None = None) -> None:
        alone = isinstance(sampler, MaskSampler) and sampler.group_size is None
        stepwise = isinstance(sampler, MaskSampler) and type(sampler).advance is MaskSampler.advance
        expected = "one that fills masks, each sample by itself, and step by step"
        check(alone and stepwise, self, "sampler", sampler, expected)
        check(states is None or states >= 1, self, "states", states, "at least 1, or None")
        assert isinstance(sampler, MaskSampler)
        super().__init__(
            sampler.completion_length,
            sampler.tokens_per_step,
            sampler.block_length,
            sampler.temperature,
            sampler.top_k,
            sampler.top_p,
            sampler.stop_at_eos,
        )
        self.sampler, self.states = sampler, states
        self.in_keys, self.out_keys = sampler.in_keys, sampler.out_keys

    @property
    def max_steps(self) -> int:
        """T of the sampler."""
        return self.sampler.max_steps

    def states_at_once(self, rows: int) -> int:
        """Returns the places of a forward, or how many of them so many completions need."""
        return rows if self.states is None else min(rows, self.states)

    def num_steps(self, policy: Policy) -> int:
        """Returns T of the sampler for this policy."""
        return self.sampler.num_steps(policy)

    def block_steps(self, positions: int) -> int:
        """Returns an upper bound on the sampler's steps in a block of so many positions."""
        return self.sampler.block_steps(positions)

    @property
    def max_commits(self) -> int:
        """C of the sampler."""
        return self.sampler.max_commits

    def resized(self, before: Sizes, after: Sizes) -> Sampler:
        """Returns one of the sampler resized."""
        return rebuilt(self, sampler=self.sampler.resized(before, after))

    def at_temperature(self, temperature: float) -> Continuous:
        """Returns one of the sampler at another temperature."""
        return rebuilt(self, sampler=self.sampler.at_temperature(temperature))

    def attach(self, policy: Policy) -> None:
        """Attaches the sampler; errors are the sampler's."""
        self.sampler.attach(policy)

    def decide(self, view: View, seed: Tensor) -> Decision:
        """Draws the sampler's action."""
        return self.sampler.decide(view, seed)

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Returns the sampler's log-probability [B] of an action."""
        return self.sampler.action_log_prob(view, decision)

    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        """Lists the sampler's choices of positions."""
        return self.sampler.position_choices(view)

    def num_commits(self, view: View) -> Tensor:
        """Returns how many positions the sampler commits: int64 [B]."""
        return self.sampler.num_commits(view)

    def asked_positions(self, policy: Policy, prompt: TensorDictBase, ids: Tensor) -> Tensor:
        """Returns the positions that the sampler's log-probability is computed from: bool [B, L]."""
        return self.sampler.asked_positions(policy, prompt, ids)

    def processing(self, prompt: TensorDictBase, positions: Tensor) -> Process | None:
        """Returns what the sampler does to logits."""
        return self.sampler.processing(prompt, positions)

    def exact_advantage(self) -> Component | None:
        """Returns the advantage that the sampler names to the audit."""
        return self.sampler.exact_advantage()

    def seen(self, policy: Policy, features: Tensor, positions: Tensor, prompt: TensorDictBase) -> View:
        """Returns the sampler's view."""
        return self.sampler.seen(policy, features, positions, prompt)

    def seen_in_rollout(self, policy: Policy, features: Tensor, some: Rows, recorder: MaskRecorder) -> View:
        """Returns the sampler's view of a step that is being taken."""
        return self.sampler.seen_in_rollout(policy, features, some, recorder)

    def allowed(self, still_open: Tensor, offset: Tensor | None = None) -> Tensor:
        """Returns the positions that the sampler may commit: bool [B, L]."""
        return self.sampler.allowed(still_open, offset)

    def running(self, ids: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Returns which rows the sampler goes on with: bool [B]."""
        return self.sampler.running(ids, vocabulary)

    def advance(self, steps: range, prompt: TensorDictBase, recorder: MaskRecorder, policy: Policy) -> None:
        """Takes the denoising steps ``steps`` with the rows of ``recorder`` that are not finished, each at its pace."""
        rollout = self.rollout(steps, prompt, recorder, policy)
        while rollout.forward():
            pass

    def rollout(self, steps: range, prompt: TensorDictBase, recorder: MaskRecorder, policy: Policy) -> Rollout:
        """Returns the rollout; arguments as ``advance``."""
        return Rollout(self, steps, prompt, recorder, policy)


class Rollout:
    """A rollout in which each row is at a step of its own.

    Args:
        sampler: whose rollout it is.
        steps, prompt, recorder, policy: as ``MaskSampler.advance``.
    """

    def __init__(
        self, sampler: Continuous, steps: range, prompt: TensorDictBase, recorder: MaskRecorder, policy: Policy
    ) -> None:
        self.sampler, self.stop, self.prompt = sampler, steps.stop, prompt
        self.recorder, self.policy, self.seed = recorder, policy, seeds_of(prompt, sampler)
        self.step = torch.full((len(self.seed),), steps.start)
        """The step that each row is at, int64 [B], on the CPU."""
        # Prompts of like length together, the longest first, so that forwards need little padding.
        self.order = on_host(prompt[PROMPT_MASK]).sum(-1).argsort(descending=True, stable=True)
        self.blockwise = policy.block_size is not None
        """Whether a forward runs the blocks that are not computed yet, instead of whole sequences."""

    def forward(self) -> bool:
        """Runs the states of rows that are not finished, and takes a step of each; returns whether there were any."""
        rows, places = self.order[self.runs(on_host(self.recorder.ids), self.step)[self.order]], self.sampler.states
        if self.blockwise and places is not None and len(rows):
            # A row that begins would pad the others to its prompt: the next rows begin when all are finished.
            piece = self.order.argsort()[rows] // places
            rows = rows[piece == piece[0]]
        if len(rows):
            self.take(rows[:places])
        return len(rows) > 0

    def take(self, rows: Tensor) -> None:
        """Takes a step of rows, int64 [n] on the CPU."""
        step = self.step[rows]
        predicted = self.predicted(rows, step, on_host(self.recorder.ids)[rows])
        self.sampler.act(self.there(step), predicted, self.recorder, self.policy)
        self.step[rows] += 1

    def runs(self, ids: Tensor, step: Tensor) -> Tensor:
        """Returns whether a step is taken from states int64 [R, L] at ``step`` int64 [R]: bool [R]; all on the CPU."""
        return self.sampler.running(ids, self.policy) & (step < self.stop)

    def predicted(self, numbers: Tensor, step: Tensor, ids: Tensor) -> Predicted:
        """Runs the policy's body on states, equal ones once.

        Args:
            numbers, step: int64 [n] on the CPU, row and step of each state.
            ids: int64 [n, L] on the CPU.
        """
        prompt = [on_host(self.prompt[key])[numbers].long() for key in (PROMPT_IDS, PROMPT_MASK)]
        first, copy = distinct(torch.cat([*prompt, ids], dim=1))
        rows, own = self.there(numbers), self.there(numbers[first])
        seed = combine_seeds(self.seed[rows], self.there(step))
        found = self.sampler.predict(
            own, rows_of(self.prompt, own), seed[self.there(first)], self.there(ids[first]), self.recorder, self.policy
        )
        if len(first) == len(numbers):
            return found
        found = found.part(copy)
        return found._replace(rows=found.rows._replace(numbers=rows, seed=seed))

    def there(self, values: Tensor) -> Tensor:
        """Returns values of the CPU where the rollout runs."""
        return on_device(values, self.seed.device)


def distinct(values: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers the m different ones among rows [n, W] in the order in which they come.

    Returns:
        The first row that has each, int64 [m], and the number of each row, int64 [n].
    """
    kinds, copy = values.unique(dim=0, return_inverse=True)
    first = copy.new_full((len(kinds),), len(values)).scatter_reduce(0, copy, torch.arange(len(values)), "amin")
    order = first.argsort()
    return first[order], order.argsort()[copy]
