"""The losses and regularisers of the shipped recipes as their documents write them: whole batches, no micro-batches.

documented(terms, batch) = the scalar that an update minimises, with gradient, of all samples at once
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.losses.base import Term


def documented(terms: Sequence[Term], batch: TensorDictBase) -> Tensor:
    """Sums the documented value of every term."""
    return torch.stack([FORMULAS[type(term).__name__](term, batch) for term in terms]).sum()


def _selected(batch: TensorDictBase, name: str) -> Tensor:
    """A key of the segments, 0 where the weight is."""
    values = batch["selected", name]
    used = batch["selected", "weight"] != 0
    return torch.where(used.reshape(*used.shape, *[1] * (values.dim() - 2)), values, 0.0)


def _scored(batch: TensorDictBase) -> Tensor:
    return batch["selected", "token_mask"] & (batch["selected", "weight"] != 0)[..., None]


def _over_tokens(term: Any, values: Tensor, batch: TensorDictBase, normaliser: str | None = None) -> Tensor:
    """The mean of ``values`` [B, K, C] over tokens, steps or samples, as the normaliser is documented."""
    mask, weight = _scored(batch), batch["selected", "weight"]
    values = torch.where(mask, values, 0.0)
    rule = normaliser or type(term.average.normaliser).__name__
    if rule == "PerToken":
        return (weight * values.sum(-1)).sum() / (weight * mask.sum(-1)).sum()
    if rule == "PerSequence":
        tokens = (weight * mask.sum(-1)).sum(-1)
        return ((weight * values.sum(-1)).sum(-1) / tokens.masked_fill(tokens == 0, 1)).sum() / len(batch)
    steps = (weight * mask.any(-1)).sum()
    if rule == "PerStep":
        return (weight * values.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / steps
    if rule == "FixedStepLength":
        return (weight * values.sum(-1)).sum() / term.average.normaliser.length / steps
    assert rule == "FixedLength"
    return (weight * values.sum(-1)).sum() / term.average.normaliser.length / len(batch)


def _clipped(term: Any, log_ratio: Tensor, advantage: Tensor) -> Tensor:
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - term.clip_low, 1 + term.clip_high) * advantage)


def _token_ppo(term: Any, batch: TensorDictBase, advantage: Tensor | None = None) -> Tensor:
    advantage = _selected(batch, "advantage")[..., None] if advantage is None else advantage
    ratio = _selected(batch, "token_log_prob") - _selected(batch, "old_token_log_prob")
    return -_over_tokens(term, _clipped(term, ratio, advantage), batch)


def _token_advantage_ppo(term: Any, batch: TensorDictBase) -> Tensor:
    return _token_ppo(term, batch, _selected(batch, "token_advantage"))


def _confidence_token_ppo(term: Any, batch: TensorDictBase) -> Tensor:
    confidence = _selected(batch, "old_token_log_prob").exp()
    return _token_ppo(term, batch, _selected(batch, "advantage")[..., None] * confidence)


def _step_ppo(term: Any, batch: TensorDictBase) -> Tensor:
    ratio = _selected(batch, "log_prob") - _selected(batch, "old_log_prob")
    return -(batch["selected", "weight"] * _clipped(term, ratio, _selected(batch, "advantage"))).sum() / len(batch)


def _sequence_log_ratio(batch: TensorDictBase, other: str) -> Tensor:
    return (batch["selected", "weight"] * (_selected(batch, "log_prob") - _selected(batch, other))).sum(-1)


def _length(batch: TensorDictBase) -> Tensor:
    return batch["sequence", "length"].clamp(min=1)


def _sequence_ppo(term: Any, batch: TensorDictBase) -> Tensor:
    return -_clipped(term, _sequence_log_ratio(batch, "old_log_prob"), batch["advantage"]).sum() / len(batch)


def _length_normalised_ppo(term: Any, batch: TensorDictBase) -> Tensor:
    ratio = _sequence_log_ratio(batch, "old_log_prob") / _length(batch)
    return -_clipped(term, ratio, batch["advantage"]).sum() / len(batch)


def _per_token_sequence_ppo(term: Any, batch: TensorDictBase) -> Tensor:
    surrogate = _clipped(term, _sequence_log_ratio(batch, "old_log_prob"), batch["advantage"])
    return -(surrogate / _length(batch)).sum() / len(batch)


def _linearised_bound(term: Any, batch: TensorDictBase) -> Tensor:
    difference = (_selected(batch, "log_prob") - _selected(batch, "old_log_prob")) / _length(batch)[:, None]
    advantage = _selected(batch, "advantage")
    bound = torch.where(advantage >= 0, 1 + difference, difference.exp())
    clipped = torch.minimum(bound * advantage, bound.clamp(1 - term.clip_low, 1 + term.clip_high) * advantage)
    value = torch.where(advantage < 0, torch.maximum(clipped, term.dual_clip * advantage), clipped)
    return -(batch["selected", "weight"] * value).sum() / len(batch)


def _reinforce(term: Any, batch: TensorDictBase, count: Tensor | None = None) -> Tensor:
    total = (batch["selected", "weight"] * _selected(batch, "advantage") * _selected(batch, "log_prob")).sum()
    return -total / (len(batch) if count is None else count)


def _length_weighted_reinforce(term: Any, batch: TensorDictBase) -> Tensor:
    used = (batch["selected", "weight"] != 0).any(-1)
    return _reinforce(term, batch, (_length(batch) * used).sum())


def _dpo(term: Any, batch: TensorDictBase) -> Tensor:
    relative = term.beta * _sequence_log_ratio(batch, "ref_log_prob")
    losses = []
    for group in batch["group"].unique():
        rows = (batch["group"] == group).nonzero().squeeze(-1)
        reward = batch["reward"][rows]
        best, worst = rows[reward == reward.max()], rows[reward == reward.min()]
        if reward.max() > reward.min():
            margin = relative[best][:, None] - relative[worst][None]
            losses.append(-torch.nn.functional.logsigmoid(margin).mean())
    return torch.stack(losses).mean()


def _by_group(batch: TensorDictBase) -> list[Tensor]:
    """The rows of each group that have a segment of non-zero weight."""
    used = (batch["selected", "weight"] != 0).any(-1)
    return [((batch["group"] == group) & used).nonzero().squeeze(-1) for group in batch["group"].unique()]


def _sequence(batch: TensorDictBase, name: str) -> Tensor:
    return (batch["selected", "weight"] * _selected(batch, name)).sum(-1)


def _self_normalised_clip(term: Any, batch: TensorDictBase) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    log_prob, old = (_sequence(batch, name) / _length(batch) for name in ("log_prob", "old_log_prob"))
    for rows in _by_group(batch):
        ratio = (log_prob - old)[rows].detach().exp().clamp(1 - term.clip_low, 1 + term.clip_high)
        total = total - len(rows) * (ratio * batch["advantage"][rows] * log_prob[rows]).sum() / ratio.sum()
    return total / len(batch)


def _reward_tilted(term: Any, batch: TensorDictBase) -> Tensor:
    """With c = 1: ``tests/losses`` holds the search for another c against a scan."""
    assert term.least_ess == 0
    total = torch.zeros((), dtype=torch.float64)
    drift = (_sequence(batch, "ref_log_prob") - _sequence(batch, "old_log_prob")).detach()
    for rows in _by_group(batch):
        reward = batch["reward"][rows] / term.alpha
        weight = (drift[rows] + reward).softmax(0) - (drift[rows] - reward).softmax(0)
        total = total - len(rows) * (weight * _sequence(batch, "log_prob")[rows]).sum()
    return total / len(batch)


def _relative_score(term: Any, batch: TensorDictBase) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    difference = _sequence(batch, "log_prob") - _sequence(batch, "ref_log_prob")
    for rows in _by_group(batch):
        error = batch["advantage"][rows] / term.beta - (difference[rows] - difference[rows].mean())
        total = total + term.beta / 2 * error.square().sum()
    return total / len(batch)


def _guided_self_distillation(term: Any, batch: TensorDictBase) -> Tensor:
    difference = _selected(batch, "log_prob") - _selected(batch, "old_log_prob")
    bounds = torch.log(torch.tensor([1 - term.clip, 1 + term.clip], dtype=torch.float64))
    inside = torch.where((difference > bounds[0]) & (difference < bounds[1]), difference, difference.detach())
    error = term.psi * _selected(batch, "advantage") - inside.clamp(*bounds.tolist()) / _length(batch)[:, None]
    return (batch["selected", "weight"] * error.square()).sum() / len(batch)


def _k2(d: Tensor) -> Tensor:
    return d.square() / 2


def _k3(d: Tensor) -> Tensor:
    return (-d).exp() - 1 + d


def _kl(k: Any) -> Any:
    def value(term: Any, batch: TensorDictBase) -> Tensor:
        d = _selected(batch, "log_prob") - _selected(batch, term.to_key[1])
        return term.coefficient * (batch["selected", "weight"] * k(d)).sum() / len(batch)

    return value


def _token_kl(k: Any) -> Any:
    def value(term: Any, batch: TensorDictBase) -> Tensor:
        d = _selected(batch, "token_log_prob") - _selected(batch, term.to_key[1])
        return term.coefficient * _over_tokens(term, k(d), batch)

    return value


def _sequence_k2(term: Any, batch: TensorDictBase) -> Tensor:
    d = _sequence_log_ratio(batch, term.to_key[1])
    return term.coefficient * (_k2(d) / _length(batch)).sum() / len(batch)


def _success_nll(term: Any, batch: TensorDictBase) -> Tensor:
    succeeded = (batch["reward"] >= term.success).to(batch["reward"])[:, None, None]
    return term.coefficient * _over_tokens(term, -succeeded * _selected(batch, "token_log_prob"), batch)


def _value_loss(term: Any, batch: TensorDictBase) -> Tensor:
    value, old, target = (_selected(batch, name) for name in ("value", "old_value", "return"))
    clipped = old + (value - old).clamp(-term.clip, term.clip)
    error = torch.maximum((value - target).square(), (clipped - target).square()) / 2
    return term.coefficient * _over_tokens(term, error, batch)


FORMULAS: dict[str, Any] = {
    "TokenPPO": _token_ppo,
    "TokenAdvantagePPO": _token_advantage_ppo,
    "ConfidenceTokenPPO": _confidence_token_ppo,
    "StepPPO": _step_ppo,
    "SequencePPO": _sequence_ppo,
    "LengthNormalisedPPO": _length_normalised_ppo,
    "PerTokenSequencePPO": _per_token_sequence_ppo,
    "LinearisedBound": _linearised_bound,
    "Reinforce": _reinforce,
    "LengthWeightedReinforce": _length_weighted_reinforce,
    "DPO": _dpo,
    "SelfNormalisedClip": _self_normalised_clip,
    "RewardTilted": _reward_tilted,
    "RelativeScore": _relative_score,
    "GuidedSelfDistillation": _guided_self_distillation,
    "KLK3": _kl(_k3),
    "TokenKLK2": _token_kl(_k2),
    "TokenKLK3": _token_kl(_k3),
    "SequenceKLK2": _sequence_k2,
    "SuccessNLL": _success_nll,
    "ValueLoss": _value_loss,
}
"""By the name of a loss or regulariser; tests of plugins add theirs."""
