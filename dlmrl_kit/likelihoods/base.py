"""Likelihood estimators: the log-probability of the selected steps under the current policy, with gradients.

States are rebuilt from (final tokens, commit step); all selected steps of all samples go through the policy as one flat
batch, segments of weight 0 left out. The base class does the bookkeeping; an estimator says which positions it needs and
what it makes of their logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dlmrl_kit.core.behaviour import LOG_ZERO, Behaviour, behaviour_log_probs, forbid
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    PROMPT_IDS,
    PROMPT_MASK,
    SELECTED_LOG_PROB,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_ACCEPTED,
    STEP_STATE_IDS,
    TOKEN_COMMIT_RANK,
    Key,
)
from dlmrl_kit.core.policy import Policy, most_predictions
from dlmrl_kit.core.trajectory import canvas_state, committed_at, gather_steps, state_at, states
from dlmrl_kit.samplers.base import Decision, Process, Sampler

T = TypeVar("T")


@dataclass(frozen=True)
class Replay:
    """The R selected steps (weight > 0) of a batch, flat: states, actions, prompts and where they belong.

    ``prompt``: TensorDict [R]; ``ids``: int64 [R, L], the states x_t; ``decision``: the actions taken;
    ``used``: bool [B, K], True where a segment holds one of the R steps, in row-major order.
    """

    prompt: TensorDictBase
    ids: Tensor
    decision: Decision
    used: Tensor

    def scatter(self, values: Tensor) -> Tensor:
        """Values [R, ...] back into [B, K, ...], zeros elsewhere; differentiable."""
        out = values.new_zeros((*self.used.shape, *values.shape[1:]))
        return out.index_put(self.used.nonzero(as_tuple=True), values)


def replay(tensordict: TensorDictBase, mask_id: int) -> Replay:
    """Rebuilds the selected steps of a trajectory batch."""
    used = tensordict[SELECTED_WEIGHT] > 0
    row, column = used.nonzero(as_tuple=True)
    step = tensordict[SELECTED_STEP][row, column][:, None]
    commit_step = tensordict[COMMIT_STEP][row]
    tokens = tensordict[COMPLETION_IDS][row]
    rank = tensordict.get(TOKEN_COMMIT_RANK, None)
    prompt = TensorDict(
        {PROMPT_IDS: tensordict[PROMPT_IDS][row], PROMPT_MASK: tensordict[PROMPT_MASK][row]}, [len(row)]
    )
    committed = committed_at(commit_step, step).squeeze(1)
    if STEP_STATE_IDS in tensordict.keys(include_nested=True):
        return _renoised(tensordict[row], step, prompt, committed.any(-1), used)
    ids = state_at(tokens, commit_step, step, mask_id).squeeze(1)
    return Replay(prompt, ids, Decision(committed, tokens, None if rank is None else rank[row].long()), used)


def _renoised(rows: TensorDictBase, step: Tensor, prompt: TensorDict, final: Tensor, used: Tensor) -> Replay:
    """``replay`` of a renoising sampler: R trajectories ``rows``, the step int64 [R, 1] of each; see ``canvas_state``."""
    committed = gather_steps(rows[STEP_ACCEPTED], step).squeeze(1)
    prompt.update({"steps_in_block": canvas_state(rows, step)["steps_in_block"].squeeze(1), "final": final})
    prompt.set("committed", committed)
    ids, after = states(rows, step, -1).squeeze(1), states(rows, step + 1, -1).squeeze(1)
    return Replay(prompt, ids, Decision(committed, after), used)


def pack(values: Tensor, committed: Tensor, width: int) -> Tensor:
    """Values [n, ...] of the committed positions (row-major) into [R, C, ...] with C = ``width``, zeros behind."""
    filled = torch.arange(width, device=committed.device) < committed.sum(-1)[:, None]
    out = values.new_zeros((*filled.shape, *values.shape[1:]))
    return out.index_put(filled.nonzero(as_tuple=True), values)


def pack_tokens(tensordict: TensorDictBase, values: Tensor, width: int) -> Tensor:
    """Per-token values [B, L] of the selected steps as [B, K, C] with C = ``width``; zeros in empty segments."""
    steps = replay(tensordict, mask_id=-1)
    row = steps.used.nonzero(as_tuple=True)[0]
    return steps.scatter(pack(values[row][steps.decision.committed], steps.decision.committed, width))


def token_log_probs(
    policy: Policy,
    features: Tensor,
    tokens: Tensor,
    behaviour: Behaviour | None,
    process: Process | None = None,
) -> Tensor:
    """Log-probability of one token at each position, at least ``LOG_ZERO``; differentiable.

    Args:
        policy: its head makes logits of the features.
        features: [N, D].
        tokens: int64 [N].
        behaviour: the distribution, or None for softmax(logits).
        process: what is done to the logits before, as ``Sampler.processing`` gives; None: nothing.

    Returns:
        [N].
    """

    def pick(features: Tensor, tokens: Tensor, part: slice = slice(None)) -> Tensor:
        logits = forbid(policy.head(features), policy.forbidden_ids)
        if process is not None:
            logits = process(logits, part)
        log_probs = logits.log_softmax(-1) if behaviour is None else behaviour_log_probs(logits, behaviour)
        return log_probs.gather(-1, tokens[:, None]).squeeze(-1).clamp(min=LOG_ZERO)

    most = most_predictions(policy.vocab_size, features.device)
    if len(features) <= most:
        return pick(features, tokens)
    parts = [slice(first, first + most) for first in range(0, len(features), most)]
    return torch.cat([recomputed(partial(pick, part=part), features[part], tokens[part]) for part in parts])


def recomputed(function: Callable[..., T], *given: Tensor) -> T:
    """``function(*given)``, whose intermediate results are not kept for the backward pass but computed again."""
    if not torch.is_grad_enabled():
        return function(*given)
    found: T = checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
    return found


class Likelihood(Component, ABC):
    """Base class of likelihood estimators: they write ``("selected", "log_prob")`` [B, K] and, on demand, other keys.

    Under the policy that generated the trajectory the same numbers may be known from the rollout: ``recorded`` maps
    each key that has an ``old_`` twin to the sampler's key that holds it.
    """

    requires = ("policy", "sampler")
    redraw: bool = False
    """Whether it reads ``iteration``: its masks are drawn anew in each pass over a rollout."""
    random_masks: bool = False
    """Whether what it computes depends on ``seed``."""
    sampling_temperature: bool = True
    """Whether it scores with the sampler's behaviour distribution, or else with softmax(logits)."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys: list[Key] = [
            PROMPT_IDS,
            PROMPT_MASK,
            COMPLETION_IDS,
            COMMIT_STEP,
            SELECTED_STEP,
            SELECTED_WEIGHT,
        ]
        self.out_keys: list[Key] = [SELECTED_LOG_PROB]

    @property
    def recorded(self) -> dict[Key, Key]:
        """Estimated key -> key in which the sampler records the same quantity under the behaviour policy."""
        return {}

    def forwards(self, length: int) -> int:
        """Model forwards for each entry of a selection, for completions of ``length`` positions."""
        return 1

    def prepare(
        self, tensordict: TensorDictBase, *, sampler: Sampler, policy: Policy, keys: Collection[Key] = ()
    ) -> TensorDictBase:
        """Adds those of ``keys`` that do not depend on the policy's weights, once per rollout; here there are none."""
        return tensordict

    @abstractmethod
    def forward(  # type: ignore[override]
        self, tensordict: TensorDictBase, *, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> TensorDictBase:
        """Adds ``out_keys`` and the on-demand ``keys``, with gradient: [B, K, ...] each, 0 where the weight is."""


class StepLikelihood(Likelihood):
    """Base class of likelihoods of single denoising steps: subclasses implement ``estimate``."""

    @abstractmethod
    def estimate(
        self, steps: Replay, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> dict[Key, Tensor]:
        """``out_keys`` and ``keys`` of the R replayed steps, flat: [R, ...] each."""

    def forward(  # type: ignore[override]
        self, tensordict: TensorDictBase, *, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> TensorDictBase:
        """Adds ``out_keys`` and the on-demand ``keys``; see ``Likelihood.forward``."""
        steps = replay(tensordict, policy.mask_id)
        for key, values in self.estimate(steps, policy, sampler, keys).items():
            tensordict.set(key, steps.scatter(values))
        return tensordict
