"""Prompts of different lengths: no column of shared padding is computed, and samples of like length run together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from block_checkpoints import BLOCK, CANVAS, diffusion_gemma_checkpoint, sdar_checkpoint
from checkpoints import MASKED, dream_checkpoint, llada_checkpoint, llada_moe_checkpoint, masked_checkpoint
from core import tiny_policy
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor
from training_helpers import new_run, rollout, sgd, weights

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.trajectory import cut, length_order, micro_batches, restored
from dlmrl_kit.likelihoods.block_replay import BlockReplay
from dlmrl_kit.likelihoods.step_log_prob import StepLogProb
from dlmrl_kit.policies import base, block_causal
from dlmrl_kit.policies.base import Policy, completion_logits, unpadded
from dlmrl_kit.rollout.services import Services, roll_out
from dlmrl_kit.samplers.entropy_bound_renoising import EntropyBoundRenoising
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.tree import Tree
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.training.evaluation import evaluate
from dlmrl_kit.training.loop import Run

LENGTHS = (5, 2, 6, 1)
EXTRA = 3
LENGTH = 2 * CANVAS

FAMILIES: dict[str, Callable[[Path], Any]] = {
    "llama": lambda folder: None,
    "llada": llada_checkpoint,
    "llada_moe": llada_moe_checkpoint,
    "dream": dream_checkpoint,
    "sdar": sdar_checkpoint,
    "diffusion_gemma": diffusion_gemma_checkpoint,
    **{kind: functools.partial(masked_checkpoint, kind=kind) for kind in MASKED},
}


def load(family: str, folder: Path) -> Policy:
    if family == "llama":
        return tiny_policy().double()
    FAMILIES[family](folder)
    policy = Policy.from_pretrained(folder).double()
    if hasattr(policy.model, "set_experts_implementation"):
        policy.model.set_experts_implementation("eager")  # grouped products have no double precision
    return policy


def sampler_for(policy: Policy) -> Any:
    if policy.noise == "uniform":
        return EntropyBoundRenoising(LENGTH, steps=3, block_length=CANVAS, stop_at_eos=False)
    return LowConfidence(LENGTH, 2, policy.block_size, temperature=0.8, stop_at_eos=False)


def prompts(policy: Policy, extra: int = 0, lengths: tuple[int, ...] = LENGTHS) -> TensorDict:
    """Left-padded prompts with ``extra`` columns that are padding in every row; what is in them must not matter."""
    width = max(lengths)
    allowed = [i for i in range(len(policy.tokenizer)) if i not in policy.forbidden_ids]
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor(allowed)[torch.randint(len(allowed), (len(lengths), width + EXTRA), generator=generator)]
    ids = torch.cat([ids[:, width : width + extra], ids[:, :width]], dim=1)
    mask = torch.arange(width + extra) >= width + extra - torch.tensor(lengths)[:, None]
    return TensorDict({"prompt_ids": ids, "prompt_mask": mask}, [len(lengths)])


def computed(policy: Policy, sampler: Any, prompt: TensorDict, likelihoods: list[Any]) -> list[Tensor]:
    """A rollout, the log-probabilities of its steps, and the gradient of each likelihood."""
    found = sampler(prompt.clone(), policy=policy, generator=torch.Generator().manual_seed(1))
    valid = found["step", "valid"]
    found["selected", "step"] = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    found["selected", "weight"] = valid.double()
    out = [found["completion_ids"], found["commit_step"], found["step", "log_prob"], found["step", "entropy"]]
    for likelihood in likelihoods:
        log_prob = likelihood(found.copy(), policy=policy, sampler=sampler)["selected", "log_prob"]
        coefficient = torch.linspace(-1, 1, log_prob.numel(), dtype=torch.float64).view_as(log_prob)
        policy.zero_grad()
        (coefficient * log_prob).sum().backward()
        out += [log_prob.detach(), *(p.grad.clone() for _, p in policy.trainable() if p.grad is not None)]
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_padding_changes_nothing_and_is_not_computed(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(family, tmp_path)
    sampler = sampler_for(policy)
    likelihoods = [StepLogProb(), *([BlockReplay()] if family == "sdar" else [])]
    widths: list[int] = []
    original = policy.features

    def seen(input_ids: Tensor, *given: Any) -> Tensor:
        widths.append(input_ids.shape[1])
        return original(input_ids, *given)

    monkeypatch.setattr(policy, "features", seen)
    expected = computed(policy, sampler, prompts(policy), likelihoods)
    assert max(widths) == max(LENGTHS) + LENGTH  # less where the longest row is finished
    assert expected[2].std() > 1e-3
    found = computed(policy, sampler, prompts(policy, EXTRA), likelihoods)
    assert max(widths) == max(LENGTHS) + LENGTH
    assert widths[: len(widths) // 2] == widths[len(widths) // 2 :]
    for module in (base, block_causal):
        monkeypatch.setattr(module, "unpadded", lambda *prompt: prompt)
    everything = computed(policy, sampler, prompts(policy, EXTRA), likelihoods)
    assert max(widths) == max(LENGTHS) + EXTRA + LENGTH
    for other in (found, everything):
        assert len(other) == len(expected)
        for one, two in zip(other, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_replay_computes_no_shared_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy: Any = load("sdar", tmp_path)
    prompt = prompts(policy, EXTRA)
    completion = torch.full((len(LENGTHS), LENGTH), 7)
    widths: list[int] = []
    original = policy.attend

    def attend(ids: Tensor, *given: Any) -> Tensor:
        widths.append(ids.shape[1])
        found: Tensor = original(ids, *given)
        return found

    monkeypatch.setattr(policy, "attend", attend)
    with torch.no_grad():
        policy.replayed(*prompt.values(), completion, completion, torch.ones_like(completion, dtype=torch.bool))
    assert widths == [max(LENGTHS) + LENGTH + BLOCK - 1 + LENGTH]


@pytest.mark.parametrize("real", [0, 1, 4])
def test_rows_that_go_on_are_as_wide_as_the_longest_of_them(real: int) -> None:
    ids, mask = torch.arange(12).view(2, 6), torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 6 - real :] = True
    mask[1, 6 - real // 2 :] = True
    short, still = unpadded(ids, mask)
    assert torch.equal(short, ids[:, 6 - real :])
    assert torch.equal(still, mask[:, 6 - real :])
    whole = torch.ones_like(mask)
    assert unpadded(ids, whole)[0] is ids  # nothing is copied where there is nothing to leave out
    hole = mask.clone()
    hole[0, 0] = True  # only what no row needs on the left goes
    assert unpadded(ids, hole)[0] is ids
    assert unpadded(ids[:, :0], mask[:, :0])[0].shape == (2, 0)


def test_prompts_without_a_token_are_left_out_whole() -> None:
    policy = tiny_policy().double()
    completion = torch.tensor([[4, 1, 6], [1, 1, 5]])
    asked = completion == policy.mask_id
    empty = torch.zeros(2, 4, dtype=torch.int64)
    none = torch.zeros(2, 4, dtype=torch.bool)
    found = completion_logits(policy, empty, none, completion, asked)
    torch.testing.assert_close(found, policy(completion, torch.ones_like(asked), asked), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------- pieces


def batch(lengths: list[int], group: list[int]) -> TensorDict:
    width, size = max(lengths), len(lengths)
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return TensorDict({"row": torch.arange(size), "group": torch.tensor(group), "prompt_mask": mask}, [size])


groups = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=8)
"""Length of the prompt and number of samples of each group."""


def of_groups(sizes: list[tuple[int, int]]) -> TensorDict:
    lengths = [length for length, count in sizes for _ in range(count)]
    return batch(lengths, [number for number, (_, count) in enumerate(sizes) for _ in range(count)])


@given(groups, st.integers(1, 12))
def test_the_order_is_a_stable_sort_that_is_undone(sizes: list[tuple[int, int]], size: int) -> None:
    data = of_groups(sizes)
    lengths = data["prompt_mask"].sum(-1).tolist()
    order = length_order(data, size)
    if len(data) <= size or len({*lengths}) == 1:
        assert order is None
    else:
        assert order is not None
        assert order.tolist() == sorted(range(len(data)), key=lambda row: -lengths[row])  # Python's sort is stable
    cuts = list(cut(data, size, order))
    assert all(torch.equal(piece["row"], rows) for rows, piece in cuts)
    assert [len(rows) for rows, _ in cuts] == [min(size, len(data) - first) for first in range(0, len(data), size)]
    rows, pieces = [list(part) for part in zip(*cuts, strict=True)]
    assert restored(pieces, rows)["row"].tolist() == list(range(len(data)))
    assert restored([piece["row"] for piece in pieces], rows).tolist() == list(range(len(data)))
    group = torch.cat([piece["group"] for piece in pieces])
    assert len(torch.unique_consecutive(group)) == len(sizes)  # the samples of a group stay together


@given(groups, st.integers(1, 12), st.booleans())
def test_micro_batches_hold_prompts_of_like_length(sizes: list[tuple[int, int]], size: int, whole: bool) -> None:
    data = of_groups(sizes)
    found = list(micro_batches(data, size, whole))
    assert all(torch.equal(micro["row"], rows) for rows, micro in found)
    assert sorted(torch.cat([rows for rows, _ in found]).tolist()) == list(range(len(data)))
    for _, micro in found:
        assert len(micro) <= size or (whole and len({*micro["group"].tolist()}) == 1)
        if whole:
            assert all(sizes[g][1] == micro["group"].tolist().count(g) for g in {*micro["group"].tolist()})
    if len(data) > size:
        longest = [int(micro["prompt_mask"].sum(-1).max()) for _, micro in found]
        shortest = [int(micro["prompt_mask"].sum(-1).min()) for _, micro in found]
        assert all(above >= below for above, below in zip(shortest, longest[1:], strict=False))


# ------------------------------------------------------------------------------------------- runs


class Sums:
    """``1+1+...=``: puzzles of very different lengths; the reward counts right characters."""

    SPLITS = ("pretrain", "train", "heldout")
    LENGTHS = (1, 7, 2, 5, 1, 3)

    def size(self, split: str) -> int:
        return len(self.LENGTHS)

    def example(self, split: str, index: Any) -> Example:
        return Example("1" * self.LENGTHS[int(index)], "12", {"index": int(index)})

    def score(self, completion: str, example: Example) -> dict[str, float]:
        right = completion.count("1234"[example.meta["index"] % 4]) / max(len(completion), 1)
        return {"reward": right, "solved": float(right == 1)}


def run_of(folder: Path, **settings: Any) -> Run:
    sets = [f"Trainer.{name} = {value}" for name, value in {"prompts_per_update": 6, **settings}.items()]
    run = new_run(folder, "egspo_sa", uses=["regulariser=KLK3"], sets=[*sets, "Trainer.minibatches = 1"])
    run.algorithm.task = run.scorer.task = Sums()
    run.policy.double()
    return run


def widths_of(run: Run, call: Callable[[], Any]) -> tuple[Any, list[tuple[int, int]]]:
    """What a call returns, and rows and prompt columns of each forward in it."""
    seen: list[tuple[int, int]] = []
    original = run.policy.features
    length = run.algorithm.sampler.completion_length

    def features(input_ids: Tensor, *given: Any) -> Tensor:
        seen.append((len(input_ids), input_ids.shape[1] - length))
        return original(input_ids, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.policy, "features", features)
        return call(), seen


def test_a_rollout_in_pieces_is_as_wide_as_each_piece_and_in_its_own_order(tmp_path: Path) -> None:
    run = run_of(tmp_path, rollout_batch_size=6)
    data, seen = widths_of(run, lambda: run.collect(0).kept)
    order = [columns for _, columns in dict.fromkeys(seen)]
    lengths = data["prompt_mask"].sum(-1).tolist()
    expected = sorted(lengths, reverse=True)
    assert {*order} <= {*expected}
    assert order == sorted(order, reverse=True)
    assert {*expected[::6]} <= {*order}
    assert data["group"].tolist() == [g for g in range(6) for _ in range(3)]
    whole = run_of(tmp_path, rollout_batch_size=18).collect(0).kept
    for key in ("prompt_ids", "prompt_mask", "group", "example", "seed"):
        assert torch.equal(data[key], whole[key]), key
    texts = data["completion_ids"]
    assert torch.equal(data["reward"], run.scorer(texts, data["example"]).to(data["reward"]))
    run.updater.prepare(data)
    assert run.updater.check_old(data) < 1e-5  # every row has its own recorded log-probabilities


def test_likelihoods_and_gradients_do_not_depend_on_the_order(tmp_path: Path) -> None:
    found = []
    for size in (4, 18):
        run = run_of(tmp_path, micro_batch_size=size)
        data = rollout(run)
        updater = sgd(run, 0.1)
        _, seen = widths_of(run, functools.partial(updater.prepare, data))
        lengths = data["prompt_mask"].sum(-1).sort(descending=True).values
        assert [columns for _, columns in seen] == lengths[::size].tolist()
        metrics = updater.update(data, 0)
        found.append((data["selected", "ref_log_prob"], weights(run.policy), metrics["loss"]))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)


def test_trees_stay_whole(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    sampler = Tree(run.algorithm.sampler.completion_length, 4, height=2, branching=2)
    prompt = TensorDict({"prompt_ids": torch.full((6, 7), 4), "group": torch.arange(6)}, [6])
    prompt["prompt_mask"] = torch.arange(7) >= 7 - torch.tensor(Sums.LENGTHS)[:, None]
    prompt = prompt[torch.arange(6).repeat_interleave(4)]
    run.algorithm.sampler = sampler
    plan = type(run.algorithm.plan)((sampler,))
    found = roll_out(plan, prompt, Services(run.policy, sampler, run.scorer, 0, 0, 8)).kept
    assert torch.equal(found["group"], prompt["group"])
    assert found["tree", "node"].tolist() == [[0, 0], [0, 1], [1, 2], [1, 3]] * 6
    half = sampler.max_steps // 2
    early = (found["commit_step"] < half) * (found["completion_ids"] + 1)
    assert torch.equal(early[0::4], early[1::4])  # siblings share their first steps
    assert torch.equal(early[2::4], early[3::4])
    assert not torch.equal(early[0::4], early[2::4])


@pytest.mark.parametrize("size", [2, 6])
def test_evaluation_is_in_the_order_of_the_puzzles(size: int, tmp_path: Path) -> None:
    run = run_of(tmp_path)
    result = evaluate(run.policy, run.algorithm.sampler, Sums(), size=6, batch_size=size)
    alone = [evaluate(run.policy, run.algorithm.sampler, Shifted(index), size=1).samples[0] for index in range(6)]
    assert result.samples == alone
    several = evaluate(run.policy, run.algorithm.sampler, Sums(), size=6, temperature=1, samples_per_prompt=3)
    assert set(several.pass_at_k) == {1, 2, 3}
    with pytest.raises(UserError):
        evaluate(run.policy, run.algorithm.sampler, Sums(), split="nowhere")


class Shifted(Sums):
    """One puzzle of ``Sums`` alone."""

    def __init__(self, index: int) -> None:
        self.index = index

    def example(self, split: str, index: Any) -> Example:
        return super().example(split, self.index)
