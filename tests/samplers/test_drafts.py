"""Drafts: one-step completions of every step."""

from __future__ import annotations

import pytest
import torch
from support.drafts import logits_of, state
from support.oracles import log_odds, loop_probs
from support.policies import TabularPolicy, tiny_policy
from support.rollouts import SAMPLERS, make, no_prompt, prompts, roll_out
from support.seeds import seeded
from support.statistics import chi_square, chi_square_limit

from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.random_order import RandomOrder

LENGTH = 6
DRAFT = ("step", "draft_ids")
POLICY = tiny_policy(characters="abcd", initializer_range=0.25).to(torch.float64)
every = pytest.mark.parametrize("cls", SAMPLERS, ids=lambda c: c.__name__)


@every
@pytest.mark.parametrize("block_length", [None, 4])
def test_drafts_fill_every_mask_and_keep_the_rest(cls: type[Sampler], block_length: int | None) -> None:
    sampler = make(cls, LENGTH, 2, block_length=block_length, temperature=1.5)
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=12))
    drafts, valid, commit = data[DRAFT], data["step", "valid"], data["commit_step"]
    assert drafts.dtype == torch.int32
    assert valid.sum() > 12
    differ = 0
    for b in range(12):
        for t in range(valid.shape[1]):
            draft = drafts[b, t].tolist()
            if not valid[b, t]:
                assert not any(draft)
                continue
            for i, (before, token) in enumerate(zip(state(data, b, t), draft, strict=True)):
                assert token not in POLICY.forbidden_ids
                if before != POLICY.mask_id:
                    assert token == before
                if commit[b, i] == t:
                    assert token == data["completion_ids"][b, i]
                differ += commit[b, i] > t and token != data["completion_ids"][b, i]
    assert differ > 0  # some draws were thrown away


def test_the_draft_of_low_confidence_is_what_it_chose_from() -> None:
    """The positions committed are the most confident of the draft, which is the rule itself."""
    sampler = LowConfidence(LENGTH, 2, temperature=1.3)
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=20))
    for b, t in data["step", "valid"].nonzero().tolist():
        open_ = [i for i, token in enumerate(state(data, b, t)) if token == POLICY.mask_id]
        logits = logits_of(data, b, t).tolist()
        sure = {i: log_odds(logits[i], POLICY.forbidden_ids)[int(data[DRAFT][b, t, i])] for i in open_}
        chosen = set(sorted(open_, key=lambda i: (-sure[i], i))[:2])
        assert chosen == {i for i in open_ if data["commit_step"][b, i] == t}


def test_asking_for_drafts_changes_no_trajectory() -> None:
    batch = prompts(POLICY, rows=8)
    sampler = LowConfidence(LENGTH, 2)
    found = [roll_out(sampler, POLICY, batch, seed=3, keys=keys) for keys in ([], [DRAFT])]
    for key in ("completion_ids", "commit_step", ("step", "log_prob")):
        assert torch.equal(found[0][key], found[1][key])
    assert DRAFT not in found[0].keys(True, True)


@pytest.mark.parametrize("sampler", [LowConfidence(2, 1, 1, temperature=0.7), RandomOrder(2, temperature=0.7)], ids=str)
def test_drafts_follow_the_behaviour_distribution(sampler: Sampler) -> None:
    """In x_0 all positions are masked; each is drawn by itself, whether it may be committed or not."""
    policy, rows = TabularPolicy(3, 2, seed=4), 4000
    data = sampler(seeded(no_prompt(rows)), policy=policy, keys=[DRAFT])
    first = data[DRAFT][:, 0].tolist()
    logits = policy.table[3 + 4 * 3].tolist()
    p = [loop_probs(row, temperature=0.7, forbidden=[3]) for row in logits]
    cells = [(v, w) for v in range(3) for w in range(3)]
    statistic, degrees = chi_square([first.count(list(c)) for c in cells], [p[0][v] * p[1][w] for v, w in cells])
    assert statistic < chi_square_limit(degrees)
