"""One update, from prompts to an optimiser step. ``Update`` is the algorithm: read its methods from top to bottom.

Three collaborators stand behind it: ``rollout.services`` makes prompts and gives components what they ask for,
``rollout.rewards`` scores completions in a thread, and ``training.gradient`` runs the likelihood and back-propagates
the loss in pieces that fit in memory. Which component runs when is planned once,
from the keys that components read and write (``algorithm.dataflow``); ``dlmrl check RECIPE`` prints the plan.

Of several processes (``core.processes``) each takes its share of the prompts, and all of them take the same step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import Plan
from dlmrl_kit.algorithm.stages import Stage
from dlmrl_kit.caches.base import Cache
from dlmrl_kit.caches.pace import EXACT
from dlmrl_kit.core import seeding
from dlmrl_kit.core.component import trained
from dlmrl_kit.core.errors import NotFiniteError
from dlmrl_kit.core.keys import (
    COMPLETION_IDS,
    EXAMPLE,
    GROUP,
    LATER_PASSES,
    PROGRESS,
    SEED,
    SELECTED_WEIGHT,
    STEP_ENTROPY,
    STEP_GREEDY_IDS,
    STEP_NUM_COMMITTED,
    STEP_VALID,
)
from dlmrl_kit.core.phases import phase
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.trajectory import cut, group_max, in_one_order, length_order, on_device, restored, shuffled
from dlmrl_kit.corrections.apply import apply_correction
from dlmrl_kit.corrections.base import Drift, warning
from dlmrl_kit.filters.base import Filter
from dlmrl_kit.rollout.rewards import Reward, Scorer
from dlmrl_kit.rollout.services import Services, UpdateServices, prompt_batch, training_indices
from dlmrl_kit.tasks.base import component_values
from dlmrl_kit.trainers.trainer import Trainer
from dlmrl_kit.training.balancing import Lengths
from dlmrl_kit.training.cached_positions import cached_positions
from dlmrl_kit.training.collecting import collecting
from dlmrl_kit.training.gradient import Gradient, LogProbs, Totals, of_all
from dlmrl_kit.training.guard import Guard
from dlmrl_kit.training.not_finite import blame_stages
from dlmrl_kit.training.old_check import check_old
from dlmrl_kit.training.refreshing import COMPUTED, refreshing
from dlmrl_kit.training.shared_gradients import add_up_and_clip
from dlmrl_kit.training.trajectory_checks import check_trajectory


@dataclass(frozen=True)
class Rollout:
    """The trajectories of one update that this process has sampled, possibly none.

    Attributes:
        everything: all samples, with the keys written up to the first filter, such as rewards.
        kept: the samples that the filters keep, with the keys of all components; they are trained.
        drift: what the correction found if ``kept`` has old and reference log-probabilities; None: not yet.
        updates_behind: by how many updates the weights that sampled are older than the policy.
    """

    everything: TensorDictBase
    kept: TensorDictBase
    drift: Drift | None = None
    updates_behind: int = 0

    @property
    def prepared(self) -> bool:
        """Whether ``kept`` already has old and reference log-probabilities."""
        return self.drift is not None


class Update:
    """Takes the updates of an algorithm, one per call.

    Args:
        algorithm: the components.
        plan: the order in which they run, from ``make_plan``.
        policy: the denoiser that is trained.
        optimiser, scheduler: of torch, over the parameters of the policy and of components that train some.
        say: is called with each message that the user should see.
        processes: that take the updates together.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        plan: Plan,
        policy: Policy,
        optimiser: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        say: Callable[[str], None] = lambda text: None,
        processes: Processes = ALONE,
    ) -> None:
        self.algorithm, self.plan, self.trainer, self.policy = algorithm, plan, algorithm.trainer, policy
        self.optimiser, self.scheduler, self.say, self.processes = optimiser, scheduler, say, processes
        self.parameters = list(trained(policy, algorithm.components).values())
        self.scorer = Scorer(algorithm.task, "train", policy)
        self.log_probs = LogProbs(
            algorithm,
            plan,
            policy,
            micro_batch_size=self.trainer.micro_batch_size,
            micro_batch_tokens=self.trainer.micro_batch_tokens,
            precision=self.trainer.precision,
        )
        self.gradient = Gradient(algorithm.terms, self.log_probs, processes)
        self.collecting = collecting(algorithm, plan, policy, processes, self.prompts)
        self.guard = Guard(algorithm, self.log_probs, processes)
        self.refreshing = refreshing(algorithm)
        self.lengths = Lengths() if self.trainer.assignment == "by_length" else None
        self.skipped = self.skipped_in_a_row = 0
        self.warned = False
        self.compared = False
        """Whether all actions of a rollout have been compared with what the policy would have done."""
        self.rollout: Rollout | None = None
        """Of the latest update, until ``take_rollout``."""
        self.by_step: dict[str, Tensor] = {}
        """What the terms knew of each denoising step in the latest update, as ``Totals.by_step``."""
        self.difference: float | None = None
        """Largest difference of old and new log-probabilities, in nats, before the first update; None before that."""

    def opened(self) -> AbstractContextManager[None]:
        """Within the context updates can be taken; it opens the collector, if the algorithm has one."""
        return nullcontext() if self.collecting is None else self.collecting.open()

    def __call__(self, number: int) -> dict[str, float]:
        """Takes update ``number``: a rollout, old and reference log-probabilities, optimiser steps. Returns metrics.

        Raises:
            TrainingError: old and new log-probabilities disagree, or too many steps in a row were not finite.
        """
        torch.manual_seed(seeding.derive_seed(self.trainer.seed, number))
        self.rollout, self.by_step = None, {}  # the memory of the one before is free now
        with self.policy.whole():
            with self.policy.in_step():
                rollout = self.roll_out(number)
            self.rollout = rollout
            if self.lengths is not None:
                self.lengths.learn(rollout.everything, self.processes)
            metrics = self.rollout_metrics(rollout) | self.check(rollout, number)
            trains = any(of_all(len(rollout.kept), self.processes))  # if filters keep nothing, there is no step
            if trains:
                with phase("old and reference"):
                    metrics |= self.prepare(rollout)
        if trains:
            with phase("update"):
                metrics |= self.learn(rollout.kept, number)
        if self.refreshing is not None:
            found, why = self.refreshing.learn(metrics)
            metrics |= found
            if why is not None:
                self.say(why)
        return metrics

    @property
    def cache(self) -> Cache | None:
        """What the present update is sampled with."""
        return self.algorithm.cache if self.refreshing is None else self.refreshing.cache

    @property
    def exact(self) -> bool:
        """Whether the present update has a cache with which it is sampled from the policy itself."""
        cache = self.cache
        return cache is not None and cache.refresh == EXACT and self.collecting is None

    def prompts(self, number: int) -> TensorDict:
        """Makes the prompts of an update: the next training examples, each once for every sample of its group."""
        trainer, task = self.trainer, self.algorithm.task
        size = task.size("train")
        indices = training_indices(size, trainer.prompts_per_update, number, trainer.seed, task.in_order)
        prompts = prompt_batch(
            task, "train", indices, self.policy, trainer.group_size, self.algorithm.sampler.completion_length
        )
        prompts.set(SEED, seeding.sample_seeds(len(prompts), self.policy.device, trainer.seed, number, "samples"))
        prompts.set(PROGRESS, torch.full((len(prompts),), number / trainer.updates, device=self.policy.device))
        rank, world = self.processes.rank, self.processes.world
        owner = prompts[GROUP] % world if self.lengths is None else self.lengths.owners(prompts, world)
        return prompts[owner == rank]  # whole groups

    def roll_out(self, number: int) -> Rollout:
        """Samples completions of the next prompts, scores them, and decides which steps to train, by what advantage."""
        plan, trainer = self.plan, self.trainer
        prompts, behind = self.prompts(number), 0
        if not len(prompts):  # more processes than prompts
            behind = 0 if self.collecting is None else self.collecting.take(number)[1]
            return Rollout(prompts, prompts, updates_behind=behind)

        self.scorer.forget()
        self.policy.take_metrics()  # what it measured in an evaluation
        chunk = trainer.rollout_batch_size or len(prompts)
        sampler = self.algorithm.sampler
        services = UpdateServices(self.policy, sampler, self.scorer, chunk)
        with self.scorer.ahead(), self.log_probs.autocast():
            # Sample: denoise all completions. Finished ones are scored while others are still sampled.
            if self.collecting is None:
                trajectory, unannounced = self.sample(prompts, services)
                if not self.compared:
                    check_trajectory(trajectory, sampler, self.policy)
            else:
                with phase("sampling"):
                    trajectory, behind = self.collecting.take(number)
                check_trajectory(trajectory, sampler, self.policy)
                unannounced = self.announce(plan.announced, trajectory)

            with torch.no_grad():
                # Select: all stages that need no reward, such as EGSPO's choice of the steps with high entropy.
                _, trajectory = run_stages(plan.before_rewards, trajectory, services)
                self.announce(unannounced, trajectory)

                # Old and reference log-probabilities here, while rewards are awaited, if they do not depend on rewards.
                drift = None
                if plan.likelihood_early:
                    # ``LogProbs`` turns autocast on by itself; around it, as in ``prepare``, numbers stay float32.
                    with phase("old and reference"), torch.autocast(self.policy.device.type, enabled=False):
                        drift = self.log_probs.add_fixed(trajectory, trainer.inner_iterations, self.exact)

                # Rewards, filters, advantages, and a selection that reads them, in the order of the plan.
                everything, trajectory = run_stages(plan.with_rewards, trajectory, services)
        return Rollout(everything, trajectory, drift, behind)

    def check(self, rollout: Rollout, number: int) -> dict[str, float]:
        """Compares a rollout with what the policy would have sampled: some of it, where that is due; returns metrics.

        Before the first update, and before the first one of a run that goes on, it compares all of it. That is no
        metric, so that a run that goes on has those of one that was not interrupted.
        """
        every, behind, metrics = self.guard.every, rollout.updates_behind, dict[str, float]()
        with phase("check"):
            if not (self.compared or behind):
                self.compared = True
                self.guard.check(rollout.everything, number, self.cache, whole=True)
            if number and every and number % every == 0:
                metrics = self.guard.check(rollout.everything, number, self.cache, behind=behind)
        return metrics

    def sample(self, prompts: TensorDict, services: UpdateServices) -> tuple[TensorDictBase, Sequence[Reward]]:
        """Samples trajectories, ``services.chunk`` at a time, with prompts of similar length together.

        Returns:
            The trajectories, in the order of the prompts, and the reward components that cannot begin to score yet.
        """
        stage, cache = self.plan.sampler, self.cache
        given = {**services.given_to(stage.component), "keys": stage.keys}
        given |= {"cache": cache, "may_choose": self.plan.may_choose}
        rows, pieces = [], []
        unannounced: Sequence[Reward] = self.plan.announced
        for index, piece in cut(prompts, services.chunk, length_order(prompts, services.chunk)):
            rows.append(index)
            with phase("sampling"):
                pieces.append(stage.component.forward(piece, **given))
            unannounced = self.announce(self.plan.announced, pieces[-1])
        return restored(pieces, rows), unannounced

    def announce(self, rewards: Iterable[Reward], trajectory: TensorDictBase) -> Sequence[Reward]:
        """Begins to score in the background; returns the reward components whose completions are not known yet."""
        known = set(trajectory.keys(include_nested=True))
        later = [reward for reward in rewards if not known.issuperset(reward.in_keys)]
        for reward in rewards:
            if reward not in later:
                self.scorer.begin(*reward.completions(trajectory))
        return later

    def prepare(self, rollout: Rollout) -> dict[str, float]:
        """Completes a rollout: old and reference log-probabilities, unless it has them already, and corrected weights.

        Before the first update it also checks that ratios start at 1. Returns the metrics of the correction.

        Raises:
            TrainingError: old and new log-probabilities disagree.
        """
        drift, metrics = rollout.drift, dict[str, float]()
        with self.policy.in_step():
            if drift is None:
                drift = self.log_probs.add_fixed(rollout.kept, self.trainer.inner_iterations, self.exact)
        if self.algorithm.correction is not None:
            metrics = sum(of_all(drift, self.processes), Drift()).metrics()
            self.weigh(rollout, metrics)
        if self.difference is None and not rollout.updates_behind:
            with phase("check"):
                self.difference = check_old(rollout.kept, self.algorithm, self.cache, self.log_probs, self.processes)
            largest = f"largest difference {self.difference:.1e}"
            self.say(f"old and new log-probabilities agree before the first update ({largest})")
        return metrics

    def weigh(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """Multiplies the selection's weights by the correction; warns, once, if its effective sample size is poor."""
        if len(rollout.kept):
            apply_correction(rollout.kept)
        poor = warning(metrics, rollout.updates_behind > 0)
        if poor is not None and not self.warned:
            self.warned = True
            self.say(f"warning: {poor}")

    def learn(self, trajectory: TensorDictBase, number: int) -> dict[str, float]:
        """Takes all optimiser steps on one rollout; returns their metrics.

        Raises:
            NotFiniteError: too many steps in a row with a non-finite loss or gradient.
        """
        totals = Totals(self.processes)
        for minibatch in self.minibatches(trajectory, number):
            found = Totals(self.processes)
            with self.policy.fused():
                loss = self.gradient.accumulate(minibatch, found)  # back-propagates the loss and the regularisers
            if self.processes.world == 1:
                norm = nn.utils.clip_grad_norm_(self.parameters, self.trainer.max_grad_norm).item()
            else:
                norm = add_up_and_clip(self.parameters, self.trainer.max_grad_norm, self.processes)
            totals.add("learning_rate", float(self.scheduler.get_last_lr()[0]))
            if math.isfinite(loss) and math.isfinite(norm):
                with phase("optimiser"):
                    self.optimiser.step()
                self.scheduler.step()
                self.skipped_in_a_row = 0
                totals.merge(found)
                totals.add("loss", loss)
                totals.add("grad_norm", norm)
            else:
                self.skip(loss, norm, minibatch)
            self.optimiser.zero_grad(set_to_none=True)
        self.by_step = totals.by_step
        return {**totals.means(), "skipped": float(self.skipped)}

    def minibatches(self, trajectory: TensorDictBase, number: int) -> Iterator[TensorDictBase]:
        """Yields the minibatches of every inner iteration: the samples in random order, cut into equal shares.

        One-step completions were scored; with a number for every step and position they are not copied along.
        """
        readers = [*self.gradient.terms, *(model.component for model in self.log_probs.models)]
        if not any(STEP_GREEDY_IDS in reader.in_keys for reader in readers):
            trajectory = trajectory.exclude(STEP_GREEDY_IDS)
        whole_groups = self.gradient.whole_groups
        return minibatches(trajectory, self.trainer, self.trainer.seed, number, whole_groups, self.processes)

    def skip(self, loss: float, norm: float, minibatch: TensorDictBase) -> None:
        """Counts an optimiser step that is left out because its loss or gradient is not finite.

        Raises:
            NotFiniteError: ``Trainer.max_skipped`` in a row.
            ComponentError: the numbers come from a component of a plugin.
        """
        blame_stages(self.plan.rollout[1:], minibatch)
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.trainer.max_skipped:
            raise NotFiniteError(
                f"{self.skipped_in_a_row} optimiser steps in a row had a non-finite loss ({loss}) or gradient norm "
                f"({norm}), so training cannot go on: lower Trainer.learning_rate or Trainer.max_grad_norm, or look at "
                "the advantages"
            )

    def take_rollout(self) -> Rollout:
        """Returns the rollout of the latest update, once, so that its memory is free afterwards."""
        assert self.rollout is not None, "no update has been taken since"
        rollout, self.rollout = self.rollout, None
        return rollout

    def counters(self) -> dict[str, object]:
        """Returns what a checkpoint must hold besides weights and optimiser, for JSON; ``restore`` takes it back."""
        known: dict[str, object] = {} if self.lengths is None else {"lengths": self.lengths.mean}
        if self.refreshing is not None:
            known["refreshing"] = self.refreshing.state()
        return {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row, **known}

    def rollouts_ahead(self) -> dict[str, Tensor]:
        """Returns the rollouts that were begun for later updates, as tensors for a checkpoint; waits for them."""
        return {} if self.collecting is None else self.collecting.ahead()

    def restore(self, counters: Mapping[str, Any], rollouts: Mapping[str, Tensor]) -> None:
        """Takes over the ``counters`` of a checkpoint, and the rollouts of later updates that it holds."""
        if self.collecting is not None:
            self.collecting.restore(rollouts)
        if self.lengths is not None:
            self.lengths.mean = {int(example): float(steps) for example, steps in counters.get("lengths", {}).items()}
        if self.refreshing is not None:
            self.refreshing.restore(counters["refreshing"])
        self.skipped, self.skipped_in_a_row = int(counters["skipped"]), int(counters["skipped_in_a_row"])

    def rollout_metrics(self, rollout: Rollout) -> dict[str, float]:
        """Averages rewards, entropy (nats), steps, and the shares that were kept and selected, over a rollout.

        ``mixed_groups`` is the share of samples in whose group rewards differ: a group advantage learns from no other.
        """
        trajectory, kept, totals = rollout.everything, rollout.kept, Totals(self.processes)
        totals.open("tokens")
        for name, value in self.policy.take_metrics(self.processes).items():
            totals.add(name, value)
        if len(trajectory):
            scores = self.scorer.components(trajectory[COMPLETION_IDS], trajectory[EXAMPLE])
            valid, entropy = trajectory[STEP_VALID], trajectory.get(STEP_ENTROPY, None)
            for name, values in component_values(scores).items():
                label = {"reward": "reward", "solved": "accuracy"}.get(name, f"reward/{name}")
                totals.add_sum(label, sum(values), len(values))
            reward = torch.tensor([score["reward"] for score in scores], dtype=torch.float64)
            group = trajectory[GROUP].cpu()
            mixed = group_max(reward, group) > -group_max(-reward, group)
            totals.add_sum("mixed_groups", int(mixed.sum()), len(trajectory))
            if entropy is not None:  # offline samplers record none, as their completions are not the policy's
                totals.add_sum("entropy", (entropy * valid).sum().item(), max(int(valid.sum()), 1))
            totals.add_part("tokens", float(trajectory[STEP_NUM_COMMITTED].sum()))
            totals.add_sum("steps", int(valid.sum()), len(trajectory))
            if self.cache is not None:
                totals.add_sum(COMPUTED, *cached_positions(trajectory, self.cache, self.algorithm.sampler, self.policy))
            if self.algorithm.filters:
                totals.add_sum("kept", len(kept), len(trajectory))
        if self.collecting is not None:
            totals.add("rollout/updates_behind", rollout.updates_behind)
        if len(kept):
            totals.add_sum("selected_steps", int((kept[SELECTED_WEIGHT] > 0).sum()), len(kept))
        return totals.means()


def minibatches(
    trajectory: TensorDictBase,
    trainer: Trainer,
    seed: int,
    number: int,
    whole_groups: bool,
    processes: Processes = ALONE,
) -> Iterator[TensorDictBase]:
    """Yields the minibatches of every inner iteration on the rollout of update ``number``.

    Minibatches are drawn among the samples of all processes. This one gets those that it has, possibly none.
    """
    group, row = in_one_order(of_all(trajectory[GROUP].cpu(), processes), processes.rank)
    for iteration in range(trainer.inner_iterations):
        generator = seeding.generator("cpu", seed, number, "minibatches", iteration)
        for part in shuffled(group, trainer.minibatches, generator, whole_groups):
            own = row[part]
            minibatch = trajectory[on_device(own[own >= 0], trajectory[GROUP].device)]
            redrawn = minibatch.pop(LATER_PASSES, None)
            # A likelihood that draws new masks in each pass has its fixed keys once for each later pass.
            if redrawn is not None and iteration > 0:
                minibatch.update(redrawn[str(iteration)])
            if len(part):
                yield minibatch


def run_stages(
    stages: Iterable[Stage], trajectory: TensorDictBase, services: Services
) -> tuple[TensorDictBase, TensorDictBase]:
    """Runs stages one after another on a trajectory; stops if a filter keeps nothing.

    Returns:
        All samples, with the keys written up to the first filter, and the samples that the filters keep, with all keys.
    """
    everything = trajectory
    for stage in stages:
        if len(trajectory) == 0:
            break
        # Stages add keys in place, and a filter may return its argument: all samples must be another object then.
        if isinstance(stage.component, Filter) and everything is trajectory:
            everything = trajectory.copy()
        trajectory = services.call(stage.component, trajectory, stage.keys)
    return everything, trajectory
