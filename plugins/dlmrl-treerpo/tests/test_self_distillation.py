"""Self-distillation of trees against nested loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from dlmrl_kit.likelihoods.step_merge import StepMerge
from dlmrl_kit.schedules.curves import Constant, Exponential
from tensordict import TensorDict
from torch import Tensor
from trees import FULL, LENGTH, MIXED, POLICY, grow, selection

from dlmrl_treerpo.nodes import TREE_NODE
from dlmrl_treerpo.self_distillation import SelfDistillation
from dlmrl_treerpo.sibling_leave_one_out import SiblingLeaveOneOut
from dlmrl_treerpo.tree import Tree


def distilled(seed: int = 0, groups: list[int] = FULL) -> TensorDict:
    """Transitions with random advantages and log-probabilities in float64; garbage where nothing counts."""
    sampler = Tree(LENGTH, 1, temperature=0.8, height=2, branching=4)
    data = selection(grow(sampler, groups, seed))
    likelihood = StepMerge(after_eos=True)  # otherwise the end of a leaf's text decides what counts above it
    likelihood.prepare(data, sampler=sampler, policy=POLICY, keys=likelihood.optional_keys)
    generator = torch.Generator().manual_seed(seed)
    data["reward"] = torch.rand(len(groups), generator=generator).double()
    SiblingLeaveOneOut()(data)
    mask = data["selected", "token_mask"] & (data["selected", "weight"] > 0)[..., None]
    # the same transition has the same log-probabilities in each of its leaves
    table = -torch.rand(99, 2, 20, LENGTH, generator=generator).double()
    level = torch.arange(2)[: mask.shape[1]]
    values = table[data["group"][:, None], level, data[TREE_NODE][:, : len(level)]]
    data["selected", "token_log_prob"] = values.masked_fill(~mask, math.nan).requires_grad_()
    return data


def slow_distillation(data: TensorDict, tau: float) -> tuple[Tensor, int]:
    """The release's nested loops: parents, positions, children; sum of the KLs and their number."""
    total, number = torch.zeros((), dtype=torch.float64), 0
    weight, log_prob = data["selected", "weight"], data["selected", "token_log_prob"]
    parents: dict[Any, dict[int, int]] = {}
    for b, k in (weight > 0).nonzero().tolist():
        above = int(data[TREE_NODE][b, k - 1]) if k > 0 else -1
        parents.setdefault((int(data["group"][b]), k, above), {}).setdefault(int(data[TREE_NODE][b, k]), b)
    for (_, k, _), children in parents.items():
        good = [b for b in children.values() if data["selected", "advantage"][b, k] > 0]
        if len(children) < 2 or not good:
            continue
        mass = [math.exp(data["selected", "advantage"][b, k].item() / tau) for b in good]
        w = dict(zip(good, [m / sum(mass) for m in mass], strict=True))
        for i in range(LENGTH):
            here = [b for b in good if data["selected", "token_mask"][b, k, i]]
            if not here:
                continue
            q: dict[int, float] = {}
            where: dict[int, int] = {}
            for b in here:
                token = int(data["completion_ids"][b, i])
                q[token] = q.get(token, 0.0) + w[b] / sum(w[c] for c in here)
                where[token] = b
            # children that agree on a token have its log-probability in common: mean over them, for the gradient
            for token, share in q.items():
                same = [b for b in here if int(data["completion_ids"][b, i]) == token]
                norm = sum(w[b] for b in same)
                mean = sum((w[b] / norm * log_prob[b, k, i] for b in same), torch.zeros((), dtype=torch.float64))
                total = total + share * (math.log(share) - mean)
            number += 1
    return total, number


@pytest.mark.parametrize("groups", [[3] * 16, [3] * 16 + [1] * 16, MIXED], ids=["one", "two", "mixed"])
@pytest.mark.parametrize("seed", range(3))
def test_self_distillation_equals_the_loops(groups: list[int], seed: int) -> None:
    data = distilled(seed, groups)
    total, number = slow_distillation(data, 0.4)
    term = SelfDistillation(0.03, 0.4)
    found = term(data)
    assert number > 5
    assert term.count(data).item() == number
    assert found["self_distillation"].item() == pytest.approx(total.item() / number, abs=1e-9)
    assert found["loss_self_distillation"].item() == pytest.approx(0.03 * total.item() / number, abs=1e-9)
    new = data["selected", "token_log_prob"]
    own = torch.autograd.grad(found["loss_self_distillation"], new)[0]
    wanted = torch.autograd.grad(0.03 * total / number, new)[0]
    parent = (
        data["group"][:, None] * 100 + torch.arange(new.shape[1]) * 50 + data[TREE_NODE][:, : new.shape[1]]
    ).flatten()
    for values in (own, wanted):
        assert values.isfinite().all()
    # a child's gradient is spread over its leaves in one, given to its first leaf in the other
    sums = [torch.zeros(10_000, LENGTH).double().index_add(0, parent, v.flatten(0, 1)) for v in (own, wanted)]
    assert torch.allclose(sums[0], sums[1], atol=1e-12)
    assert sums[0].any()


def test_it_is_zero_where_the_parent_predicts_the_target() -> None:
    """One good child whose tokens the parent is sure of."""
    data = distilled(0, [3] * 16)
    data["selected", "token_log_prob"] = torch.zeros_like(data["selected", "token_log_prob"])
    data["selected", "advantage"] = torch.where(data[TREE_NODE] == 0, 1.0, -1.0)
    assert SelfDistillation()(data)["self_distillation"].item() == 0


def test_parts_of_a_batch_add_up() -> None:
    data = distilled(1, [3] * 16 + [1] * 16)
    term = SelfDistillation(1.0, 0.4)
    whole, parts = term(data)["self_distillation"], [data[:16], data[16:]]
    added = sum(term(part)["self_distillation"] * term.count(part) for part in parts) / term.count(data)
    assert whole.item() == pytest.approx(added.item())
    assert term.needs_groups


def test_schedules_follow_the_progress_of_the_run() -> None:
    data = distilled(0, [3] * 16)
    scheduled = SelfDistillation()  # the paper's schedules
    for progress in (0.0, 0.25, 0.9):
        data["progress"] = torch.full((16,), progress, dtype=torch.float64)
        lam = 3e-3 * (math.exp(2 * progress) - 1) / (math.exp(2) - 1)
        tau = 2 * (1 - progress) ** 0.7
        found, plain = scheduled(data), SelfDistillation(lam, tau)(data)
        assert found["loss_self_distillation"].item() == pytest.approx(plain["loss_self_distillation"].item())
    data["progress"] = torch.ones(16, dtype=torch.float64)  # tau 0: the best child alone
    best = SelfDistillation(1.0, 1e-6)(data)["self_distillation"].item()
    assert scheduled(data)["self_distillation"].item() == best > 0
    assert isinstance(SelfDistillation(0.1).coefficient, Constant)


def test_refuses_tokens_that_are_not_by_position() -> None:
    data = distilled(0, [3] * 16)
    data["selected", "token_mask"] = data["selected", "token_mask"][..., :2]
    with pytest.raises(ValueError, match=r"needs a likelihood that scores positions, such as StepMerge"):
        SelfDistillation().count(data)
    for name in ("coefficient", "tau"):
        with pytest.raises(ValueError, match=rf"SelfDistillation\.{name} must be at least 0 at all times"):
            SelfDistillation(**{name: Exponential(0.1, -0.1)})
        with pytest.raises(ValueError, match=rf"SelfDistillation\.{name} must be a number or a schedule"):
            SelfDistillation(**{name: math.nan})
