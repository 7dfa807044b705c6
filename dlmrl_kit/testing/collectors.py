"""Checks of collectors: they sample what this process would sample, with the weights that they are given last."""

from __future__ import annotations

import copy

import torch
from tensordict import TensorDictBase

from dlmrl_kit.collectors.base import Collector, Sampling
from dlmrl_kit.core.component import trained
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.keys import COMPLETION_IDS, EXAMPLE, GROUP, PROGRESS, PROMPT_IDS, PROMPT_MASK, SEED, STEP_LOG_PROB
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.processes import ALONE
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.testing.core import ConformanceError, attempt, fail
from dlmrl_kit.testing.world import world

ALLOWED = 1e-4
"""Nats by which recorded log-probabilities may differ: another batch, another machine or engine rounds otherwise."""
FIX = "sample with the weights, prompts and sampler that it is given, and return the trajectories of the prompts"


class TinySource(PolicySource):
    """Makes a random policy of six characters."""

    def load(self) -> TransformersPolicy:
        """Returns the policy."""
        return CharacterLlama("abcdef", hidden_size=16, num_layers=1, num_heads=2).load()


def check_closes(name: str, component: Collector) -> None:
    """Building it starts nothing: a copy that was never opened is closed twice."""
    with attempt(name, "copied and closed before it was opened", "do nothing in close where nothing is open"):
        twin = copy.deepcopy(component)
        twin.close()
        twin.close()


def check_collects(name: str, component: Collector) -> None:
    """It samples as this process does, with other weights in a later call, and again after it was closed."""
    here = world()
    sampling, policy = Sampling(TinySource(), here.sampler, batch_size=3), TinySource().load()
    prompts = here.full.select(PROMPT_IDS, PROMPT_MASK, GROUP, EXAMPLE, PROGRESS, SEED)
    for version in range(3):
        if version != 1:
            try:
                with attempt(name, "opened", "prepare for collect in open, or raise a UserError"):
                    component.open(sampling, policy, ALONE)
            except ConformanceError as error:
                if isinstance(error.__cause__, UserError):  # what it talks to is not here
                    return
                raise
        try:
            _same(name, component, sampling, policy, prompts, version)
        finally:
            if version:
                with attempt(name, "closed twice", "do nothing in close where nothing is open"):
                    component.close()
                    component.close()


def _same(
    name: str, component: Collector, sampling: Sampling, policy: Policy, prompts: TensorDictBase, version: int
) -> None:
    """Compares a rollout of the collector with one of this process, with random weights."""
    generator = torch.Generator().manual_seed(version)
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.normal_(std=0.3, generator=generator)
    wanted = sampling.sampler(prompts.copy(), policy=policy, keys=sampling.keys)
    with attempt(name, "asked for a rollout", FIX):
        found = component.begin(prompts.copy(), trained(policy, [sampling.sampler]), version).result().cpu()
    missing = sorted({*map(str, wanted.keys(True, True))} - {*map(str, found.keys(True, True))})
    if missing:
        fail(name, f"returns trajectories without {missing[0]}", FIX)
    if found.shape != wanted.shape or not torch.equal(found[SEED], wanted[SEED]):
        fail(name, "returns other samples than those of the prompts, or in another order", FIX)
    if not torch.equal(found[COMPLETION_IDS], wanted[COMPLETION_IDS]):
        fail(name, f"samples something else than this process does with the same weights (call {version + 1})", FIX)
    if not torch.allclose(found[STEP_LOG_PROB], wanted[STEP_LOG_PROB], atol=ALLOWED):
        fail(name, "records other log-probabilities than those of the sampler", FIX)


CHECKS = (check_closes, check_collects)
