"""Runs on prompts of different lengths: pieces as wide as they need to be, in an order that changes nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import collect, new_run, old_difference, prepared, rollout, sgd, weights
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.tasks.base import BaseTask, Example
from dlmrl_kit.training.evaluation import evaluate
from dlmrl_kit.training.loop import Run


class Sums(BaseTask):
    """``1+1+...=``: examples of very different lengths; the reward counts right characters."""

    LENGTHS = (1, 7, 2, 5, 1, 3)

    def size(self, split: str) -> int:
        return len(self.LENGTHS)

    def example(self, split: str, index: Any) -> Example:
        return Example("1" * self.LENGTHS[int(index)], "12", {"index": int(index)})

    def score(self, completion: str, example: Example) -> dict[str, float]:
        right = completion.count("1234"[example.meta["index"] % 4]) / max(len(completion), 1)
        return {"reward": right, "solved": float(right == 1)}


def run_of(folder: Path, swaps: Swaps | None = None, **settings: Any) -> Run:
    sets = [f"Trainer.{name} = {value}" for name, value in {"prompts_per_update": 6, **settings}.items()]
    sets.append("Trainer.minibatches = 1")
    run = new_run(folder, "egspo_sa", uses=["regulariser=KLK3"], sets=sets, swaps=swaps, task=Sums())
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
    data, seen = widths_of(run, lambda: collect(run).kept)
    order = [columns for _, columns in dict.fromkeys(seen)]
    lengths = data["prompt_mask"].sum(-1).tolist()
    expected = sorted(lengths, reverse=True)
    assert {*order} <= {*expected}
    assert order == sorted(order, reverse=True)
    assert {*expected[::6]} <= {*order}
    assert data["group"].tolist() == [g for g in range(6) for _ in range(3)]
    whole = collect(run_of(tmp_path, rollout_batch_size=18)).kept
    for key in ("prompt_ids", "prompt_mask", "group", "example", "seed"):
        assert torch.equal(data[key], whole[key]), key
    texts = data["completion_ids"]
    assert torch.equal(data["reward"], run.update.scorer(texts, data["example"]).to(data["reward"]))
    prepared(run.update, data)
    assert old_difference(run.update, data) < 1e-5  # every row has its own recorded log-probabilities


def test_likelihoods_and_gradients_do_not_depend_on_the_order(tmp_path: Path) -> None:
    found = []
    for size in (4, 18):
        run = run_of(tmp_path, micro_batch_size=size)
        data = rollout(run)
        update = sgd(run, 0.1)
        _, seen = widths_of(run, functools.partial(prepared, update, data))
        lengths = data["prompt_mask"].sum(-1).sort(descending=True).values
        assert [columns for _, columns in seen] == lengths[::size].tolist()
        metrics = update.learn(data, 0)
        found.append((data["selected", "ref_log_prob"], weights(run.policy), metrics["loss"]))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", [2, 6])
def test_evaluation_is_in_the_order_of_the_examples(size: int, tmp_path: Path) -> None:
    run = run_of(tmp_path)
    result = evaluate(run.policy, run.algorithm.sampler, Sums(), size=6, batch_size=size)
    alone = [evaluate(run.policy, run.algorithm.sampler, Shifted(index), size=1).samples[0] for index in range(6)]
    assert result.samples == alone
    several = evaluate(run.policy, run.algorithm.sampler, Sums(), size=6, temperature=1, samples_per_prompt=3)
    assert set(several.pass_at_k) == {1, 2, 3}
    with pytest.raises(UserError):
        evaluate(run.policy, run.algorithm.sampler, Sums(), split="nowhere")


class Shifted(Sums):
    """One example of ``Sums`` alone."""

    def __init__(self, index: int) -> None:
        self.index = index

    def example(self, split: str, index: Any) -> Example:
        return super().example(split, self.index)
