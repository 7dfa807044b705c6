"""The log-probability of a draft, against a loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.drafts import logits_of, state
from support.oracles import loop_probs
from support.policies import tiny_policy
from support.rollouts import prompts, roll_out
from tensordict import TensorDict

from dlmrl_kit.likelihoods.draft_log_prob import DraftLogProb
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.low_confidence import LowConfidence

LENGTH = 6
DRAFT = ("step", "draft_ids")
POLICY = tiny_policy(characters="abcd", initializer_range=0.25).to(torch.float64)


def selected(sampler: Sampler, rows: int = 10) -> TensorDict:
    """A rollout with drafts of which two steps are selected, one entry empty."""
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=rows), seed=1)
    steps = data["step", "valid"].sum(-1)
    step = torch.stack([torch.zeros_like(steps), steps - 1], -1)
    weight = torch.ones(rows, 2, dtype=torch.float64)
    weight[3, 1] = weight[5] = 0
    data["selected"] = TensorDict({"step": step, "end": step + 1, "weight": weight}, [rows])
    return data.set("seed", torch.arange(rows))


@pytest.mark.parametrize("after_eos", [False, True])
@pytest.mark.parametrize("tempered", [False, True])
def test_draft_log_prob_equals_the_loop(after_eos: bool, tempered: bool) -> None:
    sampler = LowConfidence(LENGTH, 2, 4, temperature=1.4, top_k=3)
    data = selected(sampler)
    likelihood = DraftLogProb(tempered, after_eos)
    keys = likelihood.optional_keys
    likelihood.prepare(data, sampler=sampler, policy=POLICY, keys=keys)
    found = likelihood(data, policy=POLICY, sampler=sampler, keys=keys)["selected"]
    cut = 0
    for b in range(10):
        for k in range(2):
            if data["selected", "weight"][b, k] == 0:
                assert not found["log_prob"][b, k].any()
                assert not found["token_mask"][b, k].any()
                continue
            t = int(data["selected", "step"][b, k])
            before, draft, logits = state(data, b, t), data[DRAFT][b, t].tolist(), logits_of(data, b, t).tolist()
            total = 0.0
            for i in range(LENGTH):
                behind = POLICY.eos_id in draft[:i] and not after_eos
                cut += behind and before[i] == POLICY.mask_id
                scored = before[i] == POLICY.mask_id and not behind
                assert found["token_mask"][b, k, i].item() == scored
                filters: dict[str, Any] = {"temperature": 1.4, "top_k": 3} if tempered else {}
                p = loop_probs(logits[i], forbidden=POLICY.forbidden_ids, **filters)[draft[i]] if scored else 1.0
                assert found["token_log_prob"][b, k, i].item() == pytest.approx(math.log(p), abs=1e-9)
                total += math.log(p)
            assert found["log_prob"][b, k].item() == pytest.approx(total, abs=1e-9)
    assert (cut > 0) is not after_eos
