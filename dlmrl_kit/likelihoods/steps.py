"""Likelihoods of single denoising steps: the exact log-probability of an action, and that of its tokens alone.

    StepLogProb         log pi(x_{t+1} | x_t), the sampler's own, order term included: exact for every sampler
    StepTokenLogProb    sum over the committed positions of log p(token), as published (EGSPO, CJ-GRPO, TraceRL): it
                        leaves out why these positions were committed, so that it is exact for samplers that choose
                        them from the state alone, and biased for LowConfidence

States are rebuilt from (final tokens, commit step); all selected steps of all samples go through the policy as one flat
batch, those of weight 0 left out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core.behaviour import LOG_ZERO, entropy
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    PROMPT_IDS,
    PROMPT_MASK,
    SELECTED_DISTRIBUTION,
    SELECTED_ENTROPY,
    SELECTED_LOG_PROB,
    SELECTED_STEP,
    SELECTED_TOKEN_LOG_PROB,
    SELECTED_TOKEN_MASK,
    SELECTED_WEIGHT,
    STATE_COMMITTED,
    STATE_FINAL,
    STATE_STEPS_IN_BLOCK,
    STEP_ACCEPTED,
    STEP_LOG_PROB,
    STEP_MODEL_LOG_PROB,
    STEP_STATE_IDS,
    STEP_TOKEN_LOG_PROB,
    TOKEN_COMMIT_RANK,
    TOKEN_LOG_PROB,
    TOKEN_MODEL_LOG_PROB,
    Key,
)
from dlmrl_kit.core.policy import Policy, completion_features, log_probs_of
from dlmrl_kit.core.promises import Given, promises, shown, tensor_fault
from dlmrl_kit.core.recomputed import recomputed
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import canvas_state, committed_at, gather_steps, places, state_at, states
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.samplers.base import Decision, Sampler, View
from dlmrl_kit.samplers.mask import logit_pieces

PIECES_AT_ONCE = 6
"""Where pieces of logits are differentiated at once, they are so many times smaller: about three tensors of their size
are in memory together, beside the graph of the body."""


@dataclass(frozen=True)
class Replay:
    """The R selected steps (weight > 0) of a batch, flat, in row-major order.

    Attributes:
        prompt: TensorDict [R], prompts, and what a state is besides tokens if the sampler redraws positions.
        ids: int64 [R, L], the states x_t.
        decision: the actions taken.
        used: bool [B, K], the entries of the selection that the steps come from.
    """

    prompt: TensorDictBase
    ids: Tensor
    decision: Decision
    used: Tensor

    def scatter(self, values: Tensor) -> Tensor:
        """Puts values [R, ...] back into [B, K, ...], zeros elsewhere; differentiable."""
        out = values.new_zeros((*self.used.shape, *values.shape[1:]))
        return out.index_put(places(self.used), values)


def replay(tensordict: TensorDictBase, mask_id: int) -> Replay:
    """Rebuilds the selected steps of a trajectory batch."""
    used = tensordict[SELECTED_WEIGHT] > 0
    row, column = places(used)
    step = tensordict[SELECTED_STEP][row, column][:, None]
    commit_step = tensordict[COMMIT_STEP][row]
    tokens = tensordict[COMPLETION_IDS][row]
    rank = tensordict.get(TOKEN_COMMIT_RANK, None)
    prompt = TensorDict(
        {PROMPT_IDS: tensordict[PROMPT_IDS][row], PROMPT_MASK: tensordict[PROMPT_MASK][row]}, [len(row)]
    )
    committed = committed_at(commit_step, step).squeeze(1)
    if STEP_STATE_IDS in tensordict.keys(include_nested=True):
        return _stored(tensordict[row], step, prompt, committed.any(-1), used)
    ids = state_at(tokens, commit_step, step, mask_id).squeeze(1)
    return Replay(prompt, ids, Decision(committed, tokens, None if rank is None else rank[row].long()), used)


def _stored(rows: TensorDictBase, step: Tensor, prompt: TensorDict, final: Tensor, used: Tensor) -> Replay:
    """Reads steps of a sampler that redraws positions: of R trajectories ``rows``, the step int64 [R, 1] of each."""
    committed = gather_steps(rows[STEP_ACCEPTED], step).squeeze(1)
    steps = canvas_state(rows, step)[STATE_STEPS_IN_BLOCK].squeeze(1)
    prompt.update({STATE_STEPS_IN_BLOCK: steps, STATE_FINAL: final, STATE_COMMITTED: committed})
    ids, after = states(rows, step, -1).squeeze(1), states(rows, step + 1, -1).squeeze(1)
    return Replay(prompt, ids, Decision(committed, after), used)


def pack(values: Tensor, committed: Tensor, width: int) -> Tensor:
    """Packs values [n, ...] of the committed positions (row-major) into [R, C, ...], C = ``width``, zeros behind."""
    filled = torch.arange(width, device=committed.device) < committed.sum(-1)[:, None]
    out = values.new_zeros((*filled.shape, *values.shape[1:]))
    return out.index_put(filled.nonzero(as_tuple=True), values)


def pack_tokens(tensordict: TensorDictBase, values: Tensor, width: int) -> Tensor:
    """Packs values [B, L] of tokens by selected step: [B, K, C] with C = ``width``; zeros in entries of weight 0."""
    steps = replay(tensordict, mask_id=-1)  # the states are not read
    row = steps.used.nonzero(as_tuple=True)[0]
    return steps.scatter(pack(values[row][steps.decision.committed], steps.decision.committed, width))


def derived(function: Callable[..., Sequence[Tensor]], features: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
    """Calls ``function(features, positions)`` and differentiates it at once, so that its graph need not be kept.

    Values and gradients are those of the call; what waits for the backward pass is a derivative of the size of the
    features.

    Args:
        function: returns tensors [R]; entry r depends on the features of row r alone, and no gradient of anything but
            the features is wanted.
        features: [N, D], with gradient.
        positions: bool [R, L], True at the N positions.
    """
    row, again = positions.nonzero(as_tuple=True)[0], features.detach().requires_grad_()
    values = function(again, positions)
    found = []
    for number, value in enumerate(values, 1):
        if not value.requires_grad:
            found.append(value)
            continue
        (slope,) = torch.autograd.grad(value.sum(), again, retain_graph=number < len(values))
        # A line through the value with that slope: it adds 0, and its gradient.
        line = value.new_zeros(len(value)).index_add(0, row, (features.to(value) * slope.to(value)).sum(-1))
        found.append(value.detach() + (line - line.detach()))
    return tuple(found)


def _of_replayed(result: object, given: Given) -> str:
    """Says what is wrong with estimates: whether they are tensors of one row for each step; ``Component`` sees keys."""
    rows, device = len(given["steps"].ids), given["steps"].ids.device
    if not isinstance(result, dict):
        return f"{shown(result)}; it should be a dict of tensors by key"
    wide = [(value, value.shape[1:] if isinstance(value, Tensor) else ()) for value in result.values()]
    form = [
        tensor_fault(value, "number", (rows, *rest), device=device, name=repr(key))
        for key, (value, rest) in zip(result, wide, strict=True)
    ]
    return next(filter(None, form), "")


class StepLikelihood(Likelihood):
    """Base class of likelihoods of single denoising steps: subclasses implement ``estimate``."""

    @abstractmethod
    @promises(_of_replayed)
    def estimate(
        self, steps: Replay, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> dict[Key, Tensor]:
        """Computes ``out_keys`` and ``keys`` of the R replayed steps, flat: [R, ...] each."""

    def forward(
        self, tensordict: TensorDictBase, *, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> TensorDictBase:
        """Adds ``out_keys`` and the on-demand ``keys``; see ``Likelihood.forward``."""
        steps = replay(tensordict, policy.mask_id)
        for key, values in self.estimate(steps, policy, sampler, keys).items():
            tensordict.set(key, steps.scatter(values))
        return tensordict


@register("likelihood", unbiased=True, under="any sampler of the kit")
class StepLogProb(StepLikelihood):
    """Computes the exact log-probability of each selected step's action, order term included; one forward per step.

    Reads the trajectory and ``("selected", "step")``, ``("selected", "weight")``; writes ``("selected", "log_prob")``
    [B, K], on demand ``("selected", "entropy")`` [B, K].
    """

    optional_keys = (SELECTED_ENTROPY,)

    @property
    def recorded(self) -> dict[Key, Key]:
        """The sampler records exactly this log-probability."""
        return {SELECTED_LOG_PROB: STEP_LOG_PROB}

    def estimate(
        self, steps: Replay, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> dict[Key, Tensor]:
        """Predicts every position that the sampler could have committed, then calls its own ``action_log_prob``."""
        asked = sampler.asked_positions(policy, steps.prompt, steps.ids)
        features = completion_features(policy, steps.prompt[PROMPT_IDS], steps.prompt[PROMPT_MASK], steps.ids, asked)

        def score(rows: slice, features: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
            view = sampler.seen(policy, features, positions, steps.prompt[rows])
            return self._score(view, steps.decision.at(rows), sampler, SELECTED_ENTROPY in keys)

        # Rows go in pieces whose logits fit in memory. With gradients a piece is differentiated at once, or, where the
        # head is trained too, computed once more in the backward pass.
        count = asked.sum(-1)
        differentiated = torch.is_grad_enabled() and features.requires_grad
        at_once = differentiated and not (policy.trains_head or any(p.requires_grad for p in sampler.parameters()))
        pieces = list(
            logit_pieces(count, policy.vocab_size, count.device, count * PIECES_AT_ONCE if at_once else count)
        )
        if len(pieces) <= 1:
            found = [score(slice(None), features, asked)]
        else:
            found = []
            for rows, place in pieces:
                inputs, work = (features[place], asked[rows]), partial(score, rows)
                found.append(derived(work, *inputs) if at_once else recomputed(work, *inputs))
        written = (SELECTED_LOG_PROB, SELECTED_ENTROPY)  # without entropy, zip ends before it
        return {key: torch.cat(values) for key, values in zip(written, zip(*found, strict=True), strict=False)}

    def _score(self, view: View, decision: Decision, sampler: Sampler, with_entropy: bool) -> tuple[Tensor, ...]:
        """Returns the log-probability of the actions and, if asked, their entropy at committed positions: [R] each."""
        log_prob = sampler.action_log_prob(view, decision)
        if not with_entropy:
            return (log_prob,)
        chosen = decision.committed[view.allowed]
        total = view.row_sum(entropy(view.log_probs[chosen]), view.index[0][chosen])
        return log_prob, total / decision.committed.sum(-1)


@register(
    "likelihood",
    paper="arXiv 2603.12554",
    unbiased=True,
    under="samplers that choose positions from the state alone, with sampling_temperature=True",
)
class StepTokenLogProb(StepLikelihood):
    """Sums the log-probabilities of the tokens that each selected step committed; one forward per step.

    Args:
        sampling_temperature: True scores with the sampler's behaviour distribution (temperature and filters); False
            with softmax(logits), as the released codes do whatever temperature they sampled at.

    Reads the trajectory and ``("selected", "step")``, ``("selected", "weight")``; writes ``("selected", "log_prob")``
    [B, K]. On demand, with C the most positions a step can commit: ``token_mask``, ``token_log_prob`` [B, K, C],
    ``distribution`` [B, K, C, V], ``entropy`` [B, K].
    """

    optional_keys = (
        SELECTED_TOKEN_MASK,
        SELECTED_TOKEN_LOG_PROB,
        SELECTED_DISTRIBUTION,
        SELECTED_ENTROPY,
    )

    def __init__(self, sampling_temperature: bool = True) -> None:
        super().__init__()
        self.sampling_temperature = sampling_temperature

    @property
    def recorded(self) -> dict[Key, Key]:
        """Step sums and single tokens, under the behaviour distribution or under softmax(logits)."""
        if self.sampling_temperature:
            return {SELECTED_LOG_PROB: STEP_TOKEN_LOG_PROB, SELECTED_TOKEN_LOG_PROB: TOKEN_LOG_PROB}
        return {SELECTED_LOG_PROB: STEP_MODEL_LOG_PROB, SELECTED_TOKEN_LOG_PROB: TOKEN_MODEL_LOG_PROB}

    def prepare(
        self, tensordict: TensorDictBase, *, sampler: Sampler, policy: Policy, keys: Collection[Key] = ()
    ) -> TensorDictBase:
        """Adds ``("selected", "token_mask")`` if asked: which of the C places of a step hold a committed position."""
        if SELECTED_TOKEN_MASK in keys:
            ones = torch.ones_like(tensordict[COMPLETION_IDS], dtype=torch.bool)
            tensordict.set(SELECTED_TOKEN_MASK, pack_tokens(tensordict, ones, sampler.max_commits))
        return tensordict

    def estimate(
        self, steps: Replay, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> dict[Key, Tensor]:
        """Predicts the committed positions only; no logits are kept where no distribution is asked for."""
        if {SELECTED_DISTRIBUTION, SELECTED_ENTROPY} & {*keys}:
            return self._with_distributions(steps, policy, sampler, keys)
        committed, prompt = steps.decision.committed, steps.prompt
        features = completion_features(policy, prompt[PROMPT_IDS], prompt[PROMPT_MASK], steps.ids, committed)
        behaviour = sampler.behaviour if self.sampling_temperature else None
        process = sampler.processing(prompt, committed)
        row, position = places(committed)
        picked = log_probs_of(policy, features, steps.decision.tokens[row, position], behaviour, process)
        out: dict[Key, Tensor] = {SELECTED_LOG_PROB: picked.new_zeros(len(committed)).index_add(0, row, picked)}
        if SELECTED_TOKEN_LOG_PROB in keys:
            out[SELECTED_TOKEN_LOG_PROB] = pack(picked, committed, sampler.max_commits)
        return out

    def _with_distributions(
        self, steps: Replay, policy: Policy, sampler: Sampler, keys: Collection[Key]
    ) -> dict[Key, Tensor]:
        """Computes the same with whole distributions in memory."""
        committed = steps.decision.committed
        view = sampler.view(policy, steps.prompt, steps.ids, committed)
        log_probs = view.log_probs if self.sampling_temperature else view.logits.log_softmax(-1)
        tokens = steps.decision.tokens[committed]
        picked = log_probs.gather(-1, tokens[:, None]).squeeze(-1).clamp(min=LOG_ZERO)
        row, width = view.index[0], sampler.max_commits
        out: dict[Key, Tensor] = {SELECTED_LOG_PROB: view.row_sum(picked, row)}
        if SELECTED_TOKEN_LOG_PROB in keys:
            out[SELECTED_TOKEN_LOG_PROB] = pack(picked, committed, width)
        if SELECTED_DISTRIBUTION in keys:
            out[SELECTED_DISTRIBUTION] = pack(log_probs, committed, width)
        if SELECTED_ENTROPY in keys:
            out[SELECTED_ENTROPY] = view.row_sum(entropy(view.log_probs), row) / committed.sum(-1)
        return out
