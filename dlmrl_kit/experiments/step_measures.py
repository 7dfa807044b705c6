"""What each denoising step contributes to a recipe's gradient at a given model, measured on independent batches.

A batch is the rollout of an update, and the gradient that of the loss at its first optimiser step, with all samples in
one minibatch and without regularisers: what the audit judges on small problems, here on the recipe's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.core.keys import (
    ADVANTAGE,
    LATER_PASSES,
    REWARD,
    SELECTED_ADVANTAGE,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_VALID,
)
from dlmrl_kit.core.seeding import derive_seed
from dlmrl_kit.experiments.step_gradients import GradientMoments, StepGradients, chance_ratio
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.training.opening import OpenedModel, open_model
from dlmrl_kit.training.rollout_record import means_by_step, sums_by_step
from dlmrl_kit.training.start import COMPONENTS, load_components, start_training
from dlmrl_kit.training.update import Rollout, Update


@dataclass(frozen=True)
class StepMeasure:
    """What was measured of a denoising step, or of all of them together.

    Attributes:
        step: from 1; None: all steps, the whole gradient.
        kept: share of the trained samples with this step in which it was selected, or lies in a segment that was.
        entropy: of the behaviour policy in nats, over all samples; None where the sampler records none.
        reward_variance: of the final reward, over the trained samples that have this step.
        advantage, advantage_variance: over the segments that start at the step; None where there are none.
        norm: root mean square of the gradient's norm, of one batch.
        signal: norm of the expected gradient, from an unbiased estimate of its square; 0 where that is negative.
        noise: root of the trace of the covariance of one batch's gradient.
        ratio: signal to noise; None where there is no gradient.
    """

    step: int | None
    kept: float | None
    entropy: float | None
    reward_variance: float | None
    advantage: float | None
    advantage_variance: float | None
    norm: float
    signal: float
    noise: float
    ratio: float | None


@dataclass(frozen=True)
class StepReport:
    """What ``measure_steps`` found.

    Attributes:
        recipe, model: what was measured.
        batches: independent batches.
        steps: in order, then all together.
        selectors: by name, how often each step was kept, as ``StepMeasure.kept``; the recipe's own comes first.
    """

    recipe: str
    model: str
    batches: int
    steps: list[StepMeasure]
    selectors: dict[str, list[float | None]]

    @property
    def chance(self) -> float:
        """The ratio of signal to noise that a gradient without signal exceeds with at most 5%."""
        return chance_ratio(self.batches)

    def to_json(self) -> dict[str, object]:
        """Returns everything for JSON."""
        steps = [vars(measure) for measure in self.steps]
        return {**vars(self), "steps": steps, "chance": self.chance}


def measure_steps(
    path: str,
    *,
    recipe: str | None = None,
    selectors: Sequence[str] = (),
    batches: int = 16,
    sets: Sequence[str] = (),
    uses: Sequence[str] = (),
    allow_imports: bool = False,
) -> StepReport:
    """Measures the steps of a recipe at a model; trains nothing.

    Args:
        path, recipe, sets, uses, allow_imports: as ``open_model``.
        selectors: components that are asked, too, which steps they would keep; each samples the batches again.
        batches: at least 2.

    Raises:
        UserError: there is no such model or component, or the recipe is broken, not for training, or trains an adapter.
    """
    if batches < 2:
        raise UserError(f"signal and noise need at least 2 batches, got {batches}")
    opened = open_model(path, recipe, sets, uses, allow_imports)
    swapped = {name: open_model(path, recipe, sets, [*uses, f"selector={name}"], allow_imports) for name in selectors}
    for other in swapped.values():  # what does not fit is said before anything is measured
        other.build()
    sampled = _Batches(opened, batches)
    own = type(sampled.update.algorithm.selector).__name__
    steps = sampled.measures()
    kept: dict[str, list[float | None]] = {own: [measure.kept for measure in steps[:-1]]}
    del sampled
    for name, other in swapped.items():
        kept[name] = _Batches(other, batches).kept
    return StepReport(opened.recipe.name, path, batches, steps, kept)


class _Given(PolicySource):
    """Loads a model in place of that of a recipe."""

    def __init__(self, opened: OpenedModel, source: PolicySource) -> None:
        self.opened, self.mask_id, self.eos_ids = opened, source.mask_id, source.eos_ids

    def load(self) -> TransformersPolicy:
        """Returns the model, on the CPU."""
        return load_policy(self.opened.model, mask_id=self.mask_id, eos_ids=self.eos_ids)


class _Batches:
    """Batches of an algorithm at a model, sampled and credited."""

    def __init__(self, opened: OpenedModel, batches: int) -> None:
        built = opened.build()
        if not isinstance(built, Algorithm):
            raise RecipeError(f"{opened.recipe.name} is a recipe for pre-training, which has no denoising steps")
        if built.policy.lora_rank:
            raise RecipeError(
                f"{opened.recipe.name} trains an adapter: measure it with lora_rank = 0, or another recipe"
            )
        source = _Given(opened, built.policy)
        algorithm = Algorithm(task=built.task, policy=source, trainer=built.trainer, **built.fillings)
        self.update = Update(algorithm, *start_training(algorithm))
        if (Path(opened.model) / COMPONENTS).is_file():
            load_components(Path(opened.model), algorithm.components)
        with self.update.opened():
            self.rollouts = [self._rollout(number) for number in range(batches)]
        self.means = means_by_step([sums_by_step(rollout) for rollout in self.rollouts])

    def _rollout(self, number: int) -> Rollout:
        torch.manual_seed(derive_seed(self.update.trainer.seed, number))
        rollout = self.update.roll_out(number)
        if len(rollout.kept):
            self.update.prepare(rollout)
            rollout.kept.pop(LATER_PASSES, None)
        return rollout

    @property
    def kept(self) -> list[float | None]:
        """How often each step was kept."""
        return self._of_steps("selected")

    def _of_steps(self, name: str) -> list[float | None]:
        return [*self.means.get(name, ()), *[None] * self.length][: self.length]

    @property
    def length(self) -> int:
        """The most steps of a completion."""
        return max(rollout.everything[STEP_VALID].shape[1] for rollout in self.rollouts)

    def measures(self) -> list[StepMeasure]:
        """Measures each step, then all together."""
        trained = [rollout.kept for rollout in self.rollouts if len(rollout.kept)]
        update = self.update
        gradients = [StepGradients(update.algorithm.loss, update.log_probs, batch) for batch in trained]
        rewards, advantages = _joined(map(_rewards, trained)), _joined(map(_advantages, trained))
        entropy, kept = self._of_steps("entropy"), self.kept
        found = []
        for step in (*range(self.length), None):
            moments = GradientMoments(update.parameters)
            for number in range(len(self.rollouts)):
                if number < len(gradients):  # of the others filters kept nothing: their gradient is 0
                    gradients[number].backward(step)
                moments.take()
            found.append(
                StepMeasure(
                    None if step is None else step + 1,
                    None if step is None else kept[step],
                    None if step is None else entropy[step],
                    _moments(rewards, step)[1],
                    *_moments(advantages, step),
                    moments.norm,
                    moments.signal,
                    moments.noise,
                    moments.ratio,
                )
            )
        return found


Located = tuple[Tensor, Tensor]
"""Numbers and the steps that they belong to, [N] each."""


def _rewards(batch: TensorDictBase) -> Located:
    """Returns the reward of each sample at each of its steps."""
    valid = batch[STEP_VALID]
    sample, step = valid.nonzero(as_tuple=True)
    return batch[REWARD][sample].double(), step


def _advantages(batch: TensorDictBase) -> Located:
    """Returns the advantage of each selected segment, at its first step."""
    used, keys = batch[SELECTED_WEIGHT] != 0, set(batch.keys(True, True))
    if SELECTED_ADVANTAGE in keys:
        return batch[SELECTED_ADVANTAGE][used].double(), batch[SELECTED_STEP][used]
    if ADVANTAGE not in keys:  # one for each token, or none
        return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    return batch[ADVANTAGE][:, None].expand(used.shape)[used].double(), batch[SELECTED_STEP][used]


def _joined(parts: Iterable[Located]) -> Located:
    values, steps = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.int64)]
    for value, step in parts:
        values.append(value.cpu())
        steps.append(step.cpu())
    return torch.cat(values), torch.cat(steps)


def _moments(located: Located, step: int | None) -> tuple[float | None, float | None]:
    """Returns mean and variance of the numbers of a step, or of all; None of none, and the variance of one."""
    values, steps = located
    own = values if step is None else values[steps == step]
    return float(own.mean()) if len(own) else None, float(own.var()) if len(own) > 1 else None
