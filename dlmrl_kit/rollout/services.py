"""Services: what components use besides data (see ``component.SERVICES``), and the rollout that chains them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.dataflow import Plan
from dlmrl_kit.algorithm.rewards import Score, Submit
from dlmrl_kit.core import seeding
from dlmrl_kit.core.keys import COMPLETION_IDS, EXAMPLE, PROMPT_IDS, PROMPT_MASK, SELECTED_WEIGHT
from dlmrl_kit.core.trajectory import progress, states
from dlmrl_kit.filters.base import Filter
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.training.pieces import cut, length_order, restored


@dataclass(frozen=True)
class Services:
    """Everything a component may require, for one update.

    ``chunk``: samples per forward pass of restarted completions. ``submit``: begins to score in the background what
    ``score`` will be asked for; None: all of it is scored when it is asked for.
    """

    policy: Policy
    sampler: Sampler
    score: Score
    seed: int
    update: int
    chunk: int
    examples: Callable[[Tensor], list[Any]] | None = None
    submit: Submit | None = None

    def call(self, component: Any, tensordict: TensorDictBase) -> TensorDictBase:
        """Runs a component with the services it requires."""
        return component(tensordict, **{name: self._service(name, component) for name in component.requires})

    def _service(self, name: str, component: Any) -> Any:
        if name == "generator":
            return self.generator(type(component).__name__)
        return getattr(self, name)

    def generator(self, purpose: str) -> torch.Generator:
        """A generator of its own for each purpose and update."""
        return seeding.generator(self.policy.device, self.seed, self.update, purpose)

    @cached_property
    def _restart_noise(self) -> torch.Generator:
        """One generator for all restarts of an update, so that no two of them share their noise."""
        return self.generator("restart")

    def restart(self, tensordict: TensorDictBase, step: Tensor, n: int) -> Tensor:
        """Rewards float32 [B, K, n] of n completions sampled from each x_step; 0 in slots of weight 0."""
        slots = tensordict[SELECTED_WEIGHT] > 0
        ids = states(tensordict, step, self.policy.mask_id)
        rows = slots.nonzero(as_tuple=True)[0].repeat_interleave(n)
        if len(rows) == 0:  # nothing to split into pieces
            return torch.zeros((*slots.shape, n), device=ids.device)
        ids = ids[slots].repeat_interleave(n, dim=0)
        source = tensordict.select(PROMPT_IDS, PROMPT_MASK, "example")[rows]
        source.update({key: value[slots].repeat_interleave(n, 0) for key, value in progress(tensordict, step).items()})
        sampler = plain(self.sampler)
        rewards = [
            self.score(
                sampler.resume(prompt, part, policy=self.policy, generator=self._restart_noise)[COMPLETION_IDS],
                prompt[EXAMPLE],
            )
            for prompt, part in zip(source.split(self.chunk), ids.split(self.chunk), strict=True)
        ]
        flat = torch.cat(rewards).reshape(-1, n)
        return flat.new_zeros((*slots.shape, n)).index_put(slots.nonzero(as_tuple=True), flat)


def plain(sampler: Sampler, **changes: Any) -> Sampler:
    """A copy of a sampler that writes no optional keys, with attributes changed."""
    twin = copy.copy(sampler)
    twin.ask_for(())
    for name, value in changes.items():
        setattr(twin, name, value)
    return twin


@dataclass(frozen=True)
class Rollout:
    """``everything``: what was sampled, with rewards; ``kept``: what is trained, with the keys of all components.

    ``scored``: whether what ``roll_out`` was to do meanwhile was done with ``kept``.
    """

    everything: TensorDictBase
    kept: TensorDictBase
    scored: bool = False


def roll_out(
    plan: Plan, prompts: TensorDict, services: Services, meanwhile: Callable[[TensorDictBase], Any] | None = None
) -> Rollout:
    """Runs the rollout components of a plan on prompts; the sampler in pieces of ``services.chunk`` samples.

    Prompts of like length are sampled together; the rollout is in the order of ``prompts``. With ``services.submit``,
    what is to be scored is submitted as soon as it is known, and what needs no reward is done before rewards are waited
    for. Where a rollout filter keeps nothing, the components behind it do not run.

    Args:
        plan: of the recipe.
        prompts: [B], with the prompt keys.
        services: of this update.
        meanwhile: likelihoods of the selected steps; called before rewards are waited for, if they need none.
    """
    trajectory, rewards = _sampled(plan, prompts, services)
    late = {id(part) for part in plan.late}
    with torch.no_grad():
        _, trajectory = _completed([part for part in plan.rollout[1:] if id(part) not in late], trajectory, services)
        _submit(rewards, trajectory, services)
        scored = meanwhile is not None and plan.likelihood_early and len(trajectory) > 0
        if meanwhile is not None and scored:
            meanwhile(trajectory)
        everything, trajectory = _completed(plan.late, trajectory, services)
    return Rollout(everything, trajectory, scored)


def _sampled(plan: Plan, prompts: TensorDict, services: Services) -> tuple[TensorDictBase, Sequence[Any]]:
    """The trajectories of the prompts, in their order, and the reward stages that need more than these.

    The others' completions are scored while the pieces behind them are sampled.
    """
    sampler = plan.rollout[0]
    sampler.may_choose = plan.may_choose
    generator = services.generator(type(sampler).__name__)
    given = {name: services._service(name, sampler) for name in sampler.requires if name not in ("policy", "generator")}
    given |= {"policy": services.policy, "generator": generator}
    rows, pieces = [], []
    later: Sequence[Any] = plan.ahead
    for index, piece in cut(prompts, services.chunk, length_order(prompts, services.chunk)):
        rows.append(index)
        pieces.append(sampler(piece, **given))
        later = _submit(plan.ahead, pieces[-1], services)
    return restored(pieces, rows), later


def _submit(rewards: Sequence[Any], tensordict: TensorDictBase, services: Services) -> Sequence[Any]:
    """Submits the completions of the reward stages whose keys are there; returns the other stages."""
    if services.submit is None:
        return ()
    known = set(tensordict.keys(include_nested=True))
    later = [part for part in rewards if not known.issuperset(part.in_keys)]
    for part in rewards:
        if part not in later:
            services.submit(*part.completions(tensordict))
    return later


def _completed(
    parts: Sequence[Any], trajectory: TensorDictBase, services: Services
) -> tuple[TensorDictBase, TensorDictBase]:
    """What was given, without what components behind the first filter add; and what filters keep, with everything."""
    everything = trajectory
    for component in parts:
        if len(trajectory) == 0:
            break
        if isinstance(component, Filter) and everything is trajectory:
            everything = trajectory.copy()
        trajectory = services.call(component, trajectory)
    return everything, trajectory
