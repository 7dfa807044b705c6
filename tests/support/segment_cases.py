"""Estimators of segments with the loops they must equal, and small rollouts to run them on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from support import segment_loops as loops
from support.policies import tiny_policy
from support.rollouts import prompts
from support.seeds import seeded
from tensordict import TensorDict

from dlmrl_kit.core.keys import SELECTED_END
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.likelihoods.antithetic_elbo import AntitheticElbo
from dlmrl_kit.likelihoods.autoregressive_order import AutoregressiveOrder
from dlmrl_kit.likelihoods.coupled import Coupled
from dlmrl_kit.likelihoods.coupled_elbo import CoupledElbo
from dlmrl_kit.likelihoods.elbo import Elbo
from dlmrl_kit.likelihoods.mean_field import MeanField
from dlmrl_kit.likelihoods.quadrature_elbo import QuadratureElbo
from dlmrl_kit.likelihoods.random_mask import RandomMask
from dlmrl_kit.likelihoods.sandwich import Sandwich
from dlmrl_kit.likelihoods.scheduled_mask import ScheduledMask
from dlmrl_kit.likelihoods.segments import SegmentLikelihood
from dlmrl_kit.likelihoods.step_merge import StepMerge
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.selectors.base import Selector

LENGTH_OF_COMPLETIONS = 7
POLICY = tiny_policy(hidden=16, layers=1, characters="abc", initializer_range=0.6).double()
SEVERAL_ENDS = tiny_policy(hidden=16, layers=1, characters="abcd", initializer_range=0.6).double()
SEVERAL_ENDS.eos_ids = (*SEVERAL_ENDS.eos_ids, len(SEVERAL_ENDS.tokenizer) - 1)  # "d" ends a text, too
WEIGHT = ("selected", "weight")
Loop = Callable[[loops.Segment], loops.Values]
CASES: dict[str, tuple[SegmentLikelihood, Loop]] = {
    "MeanField": (MeanField(), loops.mean_field),
    "MeanField, prompt": (MeanField(False, True, True, prompt_mask_share=0.4), loops.mean_field),
    "StepMerge": (StepMerge(), loops.step_merge),
    "StepMerge, prompt": (StepMerge(False, True, True, prompt_mask_share=0.4), loops.step_merge),
    "RandomMask": (RandomMask(), loops.random_mask),
    "RandomMask, all arguments": (RandomMask(False, True, True, 0.3, 0.6), loops.random_mask),
    "ScheduledMask": (ScheduledMask(4), loops.scheduled_mask),
    "ScheduledMask, all arguments": (ScheduledMask(3, False, True), loops.scheduled_mask),
    "Coupled": (Coupled(), loops.coupled),
    "Coupled, all arguments": (Coupled(False, True, True, 0.4, 0.5), loops.coupled),
    "Elbo": (Elbo(), loops.elbo),
    "Elbo, all arguments": (Elbo(False, True, True), loops.elbo),
    "AntitheticElbo": (AntitheticElbo(), loops.antithetic_elbo),
    "AntitheticElbo, all arguments": (AntitheticElbo(False, True, True), loops.antithetic_elbo),
    "QuadratureElbo": (QuadratureElbo(), loops.quadrature_elbo),
    "QuadratureElbo, all arguments": (QuadratureElbo(False, True, True), loops.quadrature_elbo),
    "CoupledElbo": (CoupledElbo(), loops.coupled_elbo),
    "CoupledElbo, all arguments": (CoupledElbo(False, True, True), loops.coupled_elbo),
    "Sandwich": (Sandwich(block_length=3), loops.sandwich),
    "Sandwich, all arguments": (Sandwich(False, True, True, 3, 2.5, 0.8, 2, 0.5, 0.5), loops.sandwich),
    "AutoregressiveOrder": (AutoregressiveOrder(), loops.autoregressive_order),
    "AutoregressiveOrder, all arguments": (AutoregressiveOrder(False, True), loops.autoregressive_order),
}


def selected(data: TensorDict, selector: Selector) -> TensorDict:
    """A copy with the selection, and advantages of both signs."""
    data = data.clone()
    selector(data, keys=[SELECTED_END])
    generator = torch.Generator().manual_seed(2)
    data["selected", "advantage"] = torch.randn(data[WEIGHT].shape, generator=generator, dtype=torch.float64)
    return data


@cache
def rolled_out(
    sampler_class: type[Sampler], tokens_per_step: int, stop_at_eos: bool, eos: bool = True, policy: Any = POLICY
) -> Any:
    """A sampler and six rows, some of which hold an end of text, or (``eos`` = False) none does."""
    sampler = sampler_class(LENGTH_OF_COMPLETIONS, tokens_per_step, 4, 1.3, 5, stop_at_eos=stop_at_eos)
    keys = [("step", "token_log_prob"), ("step", "model_log_prob")]
    rows = sampler(seeded(prompts(policy, 40), 3), policy=policy, keys=keys).clone()
    has = policy.is_end(rows["completion_ids"]).any(-1)
    inside = policy.is_end(rows["completion_ids"][:, :-1]).any(-1)
    chosen = torch.cat([inside.nonzero()[:4], (~has).nonzero()[:2]]) if eos else (~has).nonzero()[:6]
    data = rows[chosen.squeeze(-1)].clone()
    assert len(data) == 6
    data["seed"] = sample_seeds(6, "cpu", 5)
    data["iteration"] = torch.full((6,), 1)
    return sampler, data


def estimated(likelihood: SegmentLikelihood, sampler: Sampler, data: TensorDict, policy: Any = POLICY) -> TensorDict:
    """All keys, on a copy."""
    data, keys = data.clone(), likelihood.optional_keys
    likelihood.prepare(data, sampler=sampler, policy=policy, keys=keys)
    with torch.no_grad():
        return likelihood(data, policy=policy, sampler=sampler, keys=keys)  # type: ignore[return-value]


def alike(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
