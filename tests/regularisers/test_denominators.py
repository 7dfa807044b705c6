"""Every pair of a loss and a regulariser shares its denominator, unless the regulariser has a normaliser of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from support.regulariser_batches import DISTRIBUTION, ENTROPY, LOG_PROB, TOKEN_LOG_PROB, make_batch, run
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.losses.base import Objective
from dlmrl_kit.losses.dpo import DPO
from dlmrl_kit.losses.length_weighted_reinforce import LengthWeightedReinforce
from dlmrl_kit.losses.linearised_bound import LinearisedBound
from dlmrl_kit.losses.ppo import LengthNormalisedPPO, PerTokenSequencePPO, SequencePPO, StepPPO
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.losses.relative_score import GuidedSelfDistillation, RelativeScore
from dlmrl_kit.losses.reward_tilted import RewardTilted
from dlmrl_kit.losses.self_normalised_clip import SelfNormalisedClip
from dlmrl_kit.losses.token_ppo import ConfidenceTokenPPO, TokenAdvantagePPO, TokenPPO
from dlmrl_kit.normalisers.means import FixedLength, FixedStepLength, PerSequence, PerStep, PerToken
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.regularisers.base import Regulariser
from dlmrl_kit.regularisers.entropy_bonus import EntropyBonus
from dlmrl_kit.regularisers.kl import (
    KLK1,
    KLK2,
    KLK3,
    SequenceKLK1,
    SequenceKLK2,
    SequenceKLK3,
    TokenKLK1,
    TokenKLK2,
    TokenKLK3,
)
from dlmrl_kit.regularisers.kl_exact import KLExact
from dlmrl_kit.regularisers.success_nll import SuccessNLL
from dlmrl_kit.regularisers.value_loss import ValueLoss

NORMALISERS = {
    "PerToken": PerToken,
    "PerStep": PerStep,
    "PerSequence": PerSequence,
    "FixedLength": lambda: FixedLength(7),
    "FixedStepLength": lambda: FixedStepLength(5),
}
TOKEN_LOSSES: dict[str, Callable[[], Objective]] = {
    f"{loss.__name__}, {name}": lambda loss=loss, make=make: loss(normaliser=make())  # type: ignore[misc]
    for loss in (TokenPPO, TokenAdvantagePPO, ConfidenceTokenPPO)
    for name, make in NORMALISERS.items()
}
LOSSES: dict[str, Callable[[], Objective]] = {
    **TOKEN_LOSSES,
    **{
        loss.__name__: loss
        for loss in (
            StepPPO,
            SequencePPO,
            LengthNormalisedPPO,
            PerTokenSequencePPO,
            LinearisedBound,
            Reinforce,
            LengthWeightedReinforce,
            DPO,
            SelfNormalisedClip,
            RewardTilted,
            RelativeScore,
            GuidedSelfDistillation,
        )
    },
}
STEP: dict[str, Callable[[], Regulariser]] = {r.__name__: r for r in (KLK1, KLK2, KLK3, KLExact, EntropyBonus)}
TOKEN: dict[str, Callable[[], Regulariser]] = {
    r.__name__: r for r in (TokenKLK1, TokenKLK2, TokenKLK3, ValueLoss, SuccessNLL)
}
SEQUENCE: dict[str, Callable[[], Regulariser]] = {r.__name__: r for r in (SequenceKLK1, SequenceKLK2, SequenceKLK3)}
REGULARISERS = {**STEP, **TOKEN, **SEQUENCE}
CUT = {
    "KLK3": LOG_PROB,
    "SequenceKLK1": LOG_PROB,
    "SequenceKLK3": LOG_PROB,
    "TokenKLK2": TOKEN_LOG_PROB,
    "KLExact": DISTRIBUTION,
    "EntropyBonus": ENTROPY,
}


def batch_of(seed: int) -> TensorDict:
    """A batch with groups of two, one of them without a pair, and tokens that count only where a step is used."""
    batch = make_batch(seed, b=6)
    values = torch.randn(3, 6, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for name, value in zip(("value", "old_value", "return"), values, strict=True):
        batch["selected", name] = value
    batch["group"] = torch.tensor([4, 4, 2, 2, 9, 9])
    batch["reward"] = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.5], dtype=torch.float64)
    return batch


def test_every_loss_and_regulariser_is_here() -> None:
    losses = {name.split(",")[0] for name in LOSSES}
    assert losses == {c.name for c in components("loss") if c.package == "dlmrl_kit"}
    assert {*REGULARISERS} == {c.name for c in components("regulariser") if c.package == "dlmrl_kit"}


def sizes(batch: TensorDict) -> tuple[list[list[float]], list[list[int]], list[int]]:
    """Weights, numbers of tokens of the steps, and lengths."""
    weight, mask = batch["selected", "weight"].tolist(), batch["selected", "token_mask"]
    return weight, mask.sum(-1).tolist(), batch["sequence", "length"].tolist()


def step_factors(loss: str, batch: TensorDict) -> Tensor:
    """What the value of each step is multiplied by, [B, K], from the definitions of the losses, by loops."""
    weight, tokens, length = sizes(batch)
    rows, columns = range(len(weight)), range(len(weight[0]))
    normaliser = loss.split(", ")[-1]
    all_tokens = sum(weight[b][k] * tokens[b][k] for b in rows for k in columns)
    steps = sum(weight[b][k] for b in rows for k in columns)
    out = torch.zeros(len(weight), len(weight[0]), dtype=torch.float64)
    for b in rows:
        own = sum(weight[b][k] * tokens[b][k] for k in columns)
        used = [b for b in rows if any(weight[b])]
        for k in columns:
            if weight[b][k] == 0:
                continue
            out[b, k] = weight[b][k] * {
                "PerToken": 1 / all_tokens,
                "PerStep": 1 / tokens[b][k] / steps,
                "PerSequence": 1 / own / len(weight) if own else 0,
                "FixedLength": 1 / 7 / len(weight),
                "FixedStepLength": 1 / 5 / steps,
                "PerTokenSequencePPO": 1 / length[b] / len(weight),
                "LengthWeightedReinforce": 1 / sum(length[b] for b in used),
                "DPO": 1 / 2 if b not in (2, 3) else 0,  # two of the three groups have a pair
            }.get(normaliser, 1 / len(weight))
    return out


def sequence_factors(loss: str, batch: TensorDict) -> Tensor:
    """What the value of each sample is multiplied by, [B]: tokens are equal shares of it beside a loss of tokens."""
    weight, tokens, length = sizes(batch)
    if loss in TOKEN_LOSSES:
        own = [sum(w * n for w, n in zip(ws, ns, strict=True)) for ws, ns in zip(weight, tokens, strict=True)]
        counted = torch.tensor(tokens, dtype=torch.float64)
        each = (step_factors(loss, batch) * counted).sum(-1)
        return torch.tensor([float(e) / o if o else 0.0 for e, o in zip(each, own, strict=True)], dtype=torch.float64)
    count = {"LengthWeightedReinforce": sum(n for n, ws in zip(length, weight, strict=True) if any(ws)), "DPO": 2}
    per_token = [1.0 if loss == "LengthWeightedReinforce" else 1 / n for n in length]
    if loss == "DPO":
        per_token[2] = per_token[3] = 0.0
    return torch.tensor(per_token, dtype=torch.float64) / count.get(loss, len(weight))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_denominator_is_that_of_the_loss(loss: str) -> None:
    batch, objective = batch_of(3), LOSSES[loss]()
    for make in REGULARISERS.values():
        term = make().beside(objective)
        assert float(term.count(batch)) == float(objective.count(batch))
        assert {*objective.average.reads} <= {*term.in_keys}


@pytest.mark.parametrize("loss", LOSSES)
def test_values_are_averaged_as_those_of_the_loss(loss: str) -> None:
    batch, objective = batch_of(1), LOSSES[loss]()
    used = batch["selected", "weight"] != 0
    d = torch.where(used, batch["selected", "log_prob"] - batch["selected", "ref_log_prob"], 0.0)
    by_step = step_factors(loss, batch)
    step = KLK2(2.0).beside(objective)(batch)["loss_kl"]
    torch.testing.assert_close(step, 2.0 * (by_step * d.square() / 2).sum(), rtol=1e-12, atol=0)
    entropy = EntropyBonus(2.0).beside(objective)(batch)["loss_entropy"]
    torch.testing.assert_close(entropy, -2.0 * (by_step * batch["selected", "entropy"]).sum(), rtol=1e-12, atol=0)
    whole = (batch["selected", "weight"] * d).sum(-1).square() / 2
    sequence = SequenceKLK2(2.0).beside(objective)(batch)["loss_kl"]
    torch.testing.assert_close(sequence, 2.0 * (sequence_factors(loss, batch) * whole).sum(), rtol=1e-12, atol=0)
    mask = batch["selected", "token_mask"] & used[..., None]
    tokens = batch["selected", "token_log_prob"] - batch["selected", "ref_token_log_prob"]
    each = torch.where(mask, tokens.square() / 2, 0.0).sum(-1)
    found = TokenKLK2(2.0).beside(objective)(batch)["loss_kl"]
    torch.testing.assert_close(found, 2.0 * (by_step * each).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_k1_of_steps_is_the_sum_of_k1_of_tokens(loss: str) -> None:
    """Where a step's log-probability is that of its tokens, the two are one loss with one gradient, beside any loss."""
    batch, objective = batch_of(5), LOSSES[loss]()
    for new, old in (("log_prob", "token_log_prob"), ("ref_log_prob", "ref_token_log_prob")):
        batch["selected", new] = (batch["selected", old] * batch["selected", "token_mask"]).sum(-1)
    step, of_step = run(KLK1().beside(objective), batch, LOG_PROB)  # type: ignore[arg-type]
    token, of_token = run(TokenKLK1().beside(objective), batch, TOKEN_LOG_PROB)  # type: ignore[arg-type]
    torch.testing.assert_close(step["loss_kl"], token["loss_kl"], rtol=1e-12, atol=1e-15)
    mask = batch["selected", "token_mask"] & (batch["selected", "weight"] != 0)[..., None]
    torch.testing.assert_close(of_token, torch.where(mask, of_step[..., None], 0.0), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
def test_cuts_leave_the_gradient_as_it_is(loss: str) -> None:
    """By samples, and between segments where the term says that it is a sum over them; a piece may count nothing."""
    for name, key in CUT.items():
        batch, objective = batch_of(8), LOSSES[loss]()
        term = REGULARISERS[name]().beside(objective)
        assert isinstance(term, Regulariser)
        _, whole = run(term, batch, key)
        columns = (slice(0, 1), slice(1, 4)) if term.segmentwise else (slice(0, 4),)
        count, total = term.count(batch), torch.zeros_like(whole)
        for rows, kept in itertools.product((slice(0, 2), slice(2, 4), slice(4, 6)), columns):
            part = batch[rows].clone()
            inside = torch.zeros_like(part["selected", "weight"], dtype=torch.bool)
            inside[:, kept] = True
            part["selected", "weight"] = part["selected", "weight"].masked_fill(~inside, 0)
            share = term.count(part).double() / count  # what an update multiplies a piece by
            total[rows] += run(term, part, key)[1] * share
        torch.testing.assert_close(total, whole, rtol=1e-9, atol=1e-14)
