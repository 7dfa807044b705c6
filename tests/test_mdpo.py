"""MDPO: drafts, their rewards, advantages of all steps, the choice of steps, likelihood and loss, against loops."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from core import SAMPLERS, TabularPolicy, make, no_prompt, prompts, roll_out, tiny_policy
from tensordict import TensorDict
from tiny import chi_square, chi_square_limit, log_odds, loop_probs
from torch import Tensor
from training_helpers import build, new_run

from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.advantages.group_z_score import GroupZScore
from dlmrl_kit.advantages.intermediate_reward import IntermediateReward
from dlmrl_kit.advantages.selected import SelectedAdvantage
from dlmrl_kit.audit import Problem, audit_algorithm
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.likelihoods.draft_log_prob import DraftLogProb
from dlmrl_kit.losses.token_ppo import ConfidenceTokenPPO, TokenPPO
from dlmrl_kit.normalisers.means import PerStep
from dlmrl_kit.rollout.rewards import StepReward
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.selectors.top_k import TopAbsoluteAdvantage
from dlmrl_kit.training.loop import Run

LENGTH = 6
DRAFT = ("step", "draft_ids")
POLICY = tiny_policy(characters="abcd", initializer_range=0.25).to(torch.float64)
every = pytest.mark.parametrize("cls", SAMPLERS, ids=lambda c: c.__name__)


def state(data: TensorDict, row: int, t: int) -> list[int]:
    """x_t of a row."""
    commit, final = data["commit_step"][row].tolist(), data["completion_ids"][row].tolist()
    return [POLICY.mask_id if c >= t else v for c, v in zip(commit, final, strict=True)]


def logits_of(data: TensorDict, row: int, t: int) -> Tensor:
    """The model's logits at all positions of x_t: float64 [L, V]."""
    ids = torch.cat([data["prompt_ids"][row][data["prompt_mask"][row]], torch.tensor(state(data, row, t))])[None]
    with torch.no_grad():
        return POLICY.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -LENGTH:]


# ------------------------------------------------------------------------------------------------ drafts


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
    plain, asked = LowConfidence(LENGTH, 2), LowConfidence(LENGTH, 2)
    asked.ask_for([DRAFT])
    found = [s(batch.clone(), policy=POLICY, generator=torch.Generator().manual_seed(3)) for s in (plain, asked)]
    for key in ("completion_ids", "commit_step", ("step", "log_prob")):
        assert torch.equal(found[0][key], found[1][key])
    assert DRAFT not in found[0].keys(True, True)


@pytest.mark.parametrize("sampler", [LowConfidence(2, 1, 1, temperature=0.7), RandomOrder(2, temperature=0.7)], ids=str)
def test_drafts_follow_the_behaviour_distribution(sampler: Sampler) -> None:
    """In x_0 all positions are masked; each is drawn by itself, whether it may be committed or not."""
    policy, rows = TabularPolicy(3, 2, seed=4), 4000
    sampler.ask_for([DRAFT])
    data = sampler(no_prompt(rows), policy=policy, generator=torch.Generator().manual_seed(0))
    first = data[DRAFT][:, 0].tolist()
    logits = policy.table[3 + 4 * 3].tolist()
    p = [loop_probs(row, temperature=0.7, forbidden=[3]) for row in logits]
    cells = [(v, w) for v in range(3) for w in range(3)]
    statistic, degrees = chi_square([first.count(list(c)) for c in cells], [p[0][v] * p[1][w] for v, w in cells])
    assert statistic < chi_square_limit(degrees)


# ------------------------------------------------------------------------------------------------ rewards, advantages


def test_step_rewards_score_the_drafts() -> None:
    generator = torch.Generator().manual_seed(0)
    drafts = torch.randint(0, 9, (5, 4, 3), generator=generator).int()
    valid = torch.arange(4) < torch.tensor([4, 1, 3, 2, 4])[:, None]
    example = torch.tensor([3, 1, 4, 1, 5])
    data = TensorDict({DRAFT: drafts, ("step", "valid"): valid, "example": example}, [5])
    asked: list[int] = []

    def score(ids: Tensor, index: Tensor) -> Tensor:
        asked.append(len(ids))
        assert ids.dtype == torch.int64
        return ids.double() @ torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64) + 1000 * index

    found = StepReward()(data, score=score)["step", "reward"]
    assert asked == [int(valid.sum())]
    for b in range(5):
        for t in range(4):
            a, b_, c = drafts[b, t].tolist()
            wanted = a + 10 * b_ + 100 * c + 1000 * example[b].item() if valid[b, t] else 0
            assert found[b, t].item() == wanted


def step_data(seed: int = 0, rows: int = 9, steps: int = 5) -> TensorDict:
    """Rewards of steps in float64, rows that end early, NaN past their end; three groups of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    number = torch.randint(1, steps + 1, (rows,), generator=generator)
    number[0] = steps
    valid = torch.arange(steps) < number[:, None]
    rewards = torch.randint(0, 5, (rows, steps), generator=generator).double() / 4
    return TensorDict(
        {
            "reward": torch.randint(0, 5, (rows,), generator=generator).double() / 4,
            "group": torch.tensor([5, 2, 5, 5, 2, 7, 5, 2, 7])[:rows],
            ("step", "valid"): valid,
            ("step", "reward"): rewards.masked_fill(~valid, math.nan),
        },
        [rows],
    )


def slow_returns(rewards: list[float], steps: int, final: float) -> list[float]:
    """MDPO's formula: r_t - r_{t-1} (r_{-1} = 0) plus the mean of the later rewards, or r_{T-1} where there is none."""
    r = rewards + [final] * (steps - len(rewards))
    found = []
    for t in range(steps):
        later = [r[s] for s in range(t + 1, steps)] or [r[steps - 1]]
        found.append(r[t] - (r[t - 1] if t > 0 else 0.0) + sum(later) / len(later))
    return found


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_intermediate_reward_equals_the_loop(correction: int, seed: int) -> None:
    data = step_data(seed)
    valid, steps = data["step", "valid"], data["step", "valid"].shape[1]
    returns = [
        slow_returns(data["step", "reward"][b][valid[b]].tolist(), steps, data["reward"][b].item()) for b in range(9)
    ]
    found = IntermediateReward(GroupZScore(correction=correction))(data)["step", "advantage"]
    assert found.dtype == torch.float64
    for b in range(9):
        members = [c for c in range(9) if data["group"][c] == data["group"][b]]
        for t in range(steps):
            own = [returns[c][t] for c in members]
            std = statistics.stdev(own) if correction else statistics.pstdev(own)
            # the released code adds 1 to every return: no difference
            wanted = (returns[b][t] + 1 - (statistics.fmean(own) + 1)) / (std + 1e-4) if valid[b, t] else 0.0
            assert found[b, t].item() == pytest.approx(wanted, abs=1e-9)


def test_the_baseline_may_be_another() -> None:
    data = step_data()
    found = IntermediateReward(GroupMean())(data)["step", "advantage"]
    steps = data["step", "valid"].shape[1]
    first = [
        slow_returns(data["step", "reward"][b][data["step", "valid"][b]].tolist(), steps, data["reward"][b].item())[0]
        for b in (5, 8)
    ]
    assert found[5, 0].item() == pytest.approx((first[0] - first[1]) / 2)
    with pytest.raises(ValueError, match=r"IntermediateReward\.baseline must be a group advantage, got 3"):
        IntermediateReward(3)  # type: ignore[arg-type]


def test_the_last_draft_is_the_completion() -> None:
    """So the last step's reward is the final one, as the formula takes it to be past the end of a row."""
    sampler = LowConfidence(LENGTH, 2, stop_at_eos=False)
    data = roll_out(sampler, POLICY, prompts(POLICY, rows=8))
    assert torch.equal(data[DRAFT][:, -1].long(), data["completion_ids"])


# ------------------------------------------------------------------------------------------------ selection


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_top_absolute_advantage_equals_the_sort(k: int) -> None:
    data = IntermediateReward()(step_data(3))
    advantage, valid = data["step", "advantage"], data["step", "valid"]
    data["step", "advantage"] = advantage.masked_fill(~valid, math.nan)
    found = SelectedAdvantage()(TopAbsoluteAdvantage(k)(data))
    assert found["selected", "weight"].dtype == torch.float64
    for b in range(9):
        n = int(valid[b].sum())
        best = sorted(sorted(range(n), key=lambda t: (-abs(advantage[b, t].item()), t))[:k])
        width = min(k, valid.shape[1])
        pad = width - len(best)
        assert found["selected", "step"][b].tolist() == best + [0] * pad
        assert found["selected", "weight"][b].tolist() == [1.0] * len(best) + [0.0] * pad
        assert found["selected", "advantage"][b].tolist() == [advantage[b, t].item() for t in best] + [0.0] * pad
    for part in data[:4], data[4:]:  # however the batch is cut
        again = TopAbsoluteAdvantage(k)(part.select("step"))["selected", "step"]
        rows = slice(0, 4) if len(part) == 4 else slice(4, 9)
        assert torch.equal(again, found["selected", "step"][rows])


# ------------------------------------------------------------------------------------------------ likelihood and loss


def selected(sampler: Sampler, rows: int = 10) -> TensorDict:
    """A rollout with drafts of which two steps are selected, one slot empty."""
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
    likelihood.ask_for(likelihood.optional_keys)
    likelihood.prepare(data, sampler=sampler, policy=POLICY)
    found = likelihood(data, policy=POLICY, sampler=sampler)["selected"]
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


def loss_data(seed: int = 0) -> TensorDict:
    """Random log-probabilities in float64 with gradient, masks, weights; garbage where nothing counts."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, 3, 5, generator=generator) < 0.6
    weight = torch.rand(4, 3, generator=generator).double() + 0.5
    weight[1, 2] = weight[3] = 0
    old = -torch.rand(4, 3, 5, generator=generator).double() * 2
    new = old + 0.4 * torch.randn(4, 3, 5, generator=generator).double()
    dirty = ~(mask & (weight != 0)[..., None])
    return TensorDict(
        {
            ("selected", "token_log_prob"): new.masked_fill(dirty, math.nan).requires_grad_(),
            ("selected", "old_token_log_prob"): old.masked_fill(dirty, math.inf),
            ("selected", "token_mask"): mask,
            ("selected", "advantage"): torch.randn(4, 3, generator=generator).double(),
            ("selected", "weight"): weight,
        },
        [4],
    )


@pytest.mark.parametrize("seed", range(3))
def test_confidence_token_ppo_equals_the_loop(seed: int) -> None:
    """lambda_t c s summed over masked tokens, with lambda_t = L / masked, over L times the weight of the steps."""
    data, length = loss_data(seed), 5
    loss = ConfidenceTokenPPO(0.2, 0.3, PerStep())
    new = data["selected", "token_log_prob"]
    total, steps = torch.zeros((), dtype=torch.float64), 0.0
    for b in range(4):
        for k in range(3):
            weight, here = data["selected", "weight"][b, k].item(), data["selected", "token_mask"][b, k]
            if weight == 0 or not here.any():
                continue
            steps += weight
            lam = length / int(here.sum())
            for i in here.nonzero().flatten().tolist():
                old, advantage = data["selected", "old_token_log_prob"][b, k, i], data["selected", "advantage"][b, k]
                ratio = (new[b, k, i] - old).exp()
                surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage)
                total = total - weight * lam * old.exp() * surrogate
    wanted = total / (length * steps)
    found = loss(data)["loss_objective"]
    assert found.item() == pytest.approx(wanted.item(), abs=1e-9)
    gradients = [torch.autograd.grad(value, new, retain_graph=True)[0] for value in (found, wanted)]
    assert torch.allclose(gradients[0], gradients[1], atol=1e-9)
    assert gradients[0].any()


def test_with_full_confidence_it_is_token_ppo() -> None:
    data = loss_data()
    data["selected", "old_token_log_prob"] = torch.zeros_like(data["selected", "old_token_log_prob"])
    found, plain = (cls(normaliser=PerStep())(data)["loss_objective"] for cls in (ConfidenceTokenPPO, TokenPPO))
    assert found.item() == plain.item() != 0


# ------------------------------------------------------------------------------------------------ the recipe


def test_the_recipe_trains(tmp_path: Path) -> None:
    run: Run = new_run(tmp_path, "mdpo", ["Trainer.minibatches = 1", "Selector.k = 2"])
    kinds = [type(part).__name__ for part in run.algorithm.plan.rollout]
    order = ["LowConfidence", "FinalReward", "StepReward", "IntermediateReward", "TopAbsoluteAdvantage"]
    assert kinds == [*order, "SelectedAdvantage"]
    for update in range(2):
        trajectory = run.updater.prepare(run.collect(update).kept)
        assert (trajectory["selected", "weight"] > 0).sum(-1).tolist() == [2] * 6
        metrics = run.updater.update(trajectory, update)
        assert metrics["skipped"] == 0
        assert metrics["ratio"] == pytest.approx(1)  # on-policy: one optimiser step per rollout
        assert math.isfinite(metrics["loss"])


def test_nothing_is_added_where_it_is_not_read() -> None:
    algorithm = build("egspo")
    kinds = {type(part).__name__ for part in algorithm.plan.rollout}
    assert not kinds & {"StepReward", "SelectedAdvantage"}
    assert DRAFT not in algorithm.sampler.written_keys()


def test_the_selector_needs_an_advantage_of_all_steps() -> None:
    with pytest.raises(RecipeError, match=r"TopAbsoluteAdvantage reads \('step', 'advantage'\).*IntermediateReward"):
        build("egspo", uses=["selector=TopAbsoluteAdvantage"])


def test_its_audit_is_sampled() -> None:
    """Draws that are thrown away are no part of a listed trajectory."""
    report = audit_algorithm(build("mdpo"), problems=[Problem()], attribution=False, batches=20)
    assert not report.exact
    assert any("draft_ids" in note for note in report.notes)
