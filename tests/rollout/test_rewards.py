"""Texts of completions, their scores, and rewards of final and one-step completions."""

from __future__ import annotations

import pytest
import torch
from support.number_task import Numbers
from tensordict import TensorDict

from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.rollout.rewards import FinalReward, Scorer, SelectedReward


@pytest.fixture(scope="module")
def digits() -> TransformersPolicy:
    torch.manual_seed(0)
    return CharacterLlama("0123456789", hidden_size=16, num_layers=1, num_heads=2).load()


def test_completions_end_at_the_first_end_of_text_and_are_scored_once(digits: TransformersPolicy) -> None:
    one, two, eos, pad = digits.tokenizer.convert_tokens_to_ids(["1", "2", "<eos>", "<pad>"])
    ids = torch.tensor([[one, eos, two], [one, eos, eos], [one, two, eos], [eos, one, one], [one, pad, two]])
    assert digits.completion_texts(ids) == ["1", "1", "12", "", "12"]
    assert ids[0].tolist() == [one, eos, two]  # not changed
    task = Numbers()
    scorer = Scorer(task, "train", digits)
    found = scorer(ids, torch.tensor([1, 1, 1, 1, 1]))
    assert found.tolist() == [0.75, 0.75, 0.25, 0.25, 0.25]
    assert found.dtype == torch.float32
    assert task.calls == 3
    scorer(ids[:1].expand(2, -1), torch.tensor([1, 2]))  # the same text for another example is another question
    assert task.calls == 4
    scorer.forget()
    assert scorer(ids[:1], torch.tensor([1])).tolist() == [0.75]
    assert task.calls == 5
    assert scorer(ids[:0], torch.tensor([], dtype=torch.int64)).tolist() == []


def table_score(ids: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    return (ids.double().sum(-1) + 100 * example).float()


def test_rewards_of_the_final_and_of_the_one_step_completions() -> None:
    generator = torch.Generator().manual_seed(0)
    completion = torch.randint(4, 9, (3, 4), generator=generator)
    greedy = torch.randint(4, 9, (3, 5, 4), generator=generator, dtype=torch.int32)
    step = torch.tensor([[4, 0], [2, 2], [1, 0]])
    weight = torch.tensor([[1.0, 0.5], [2.0, 1.0], [1.0, 0.0]])
    given = TensorDict(
        {
            "completion_ids": completion,
            "example": torch.tensor([5, 0, 7]),
            "step": {"greedy_ids": greedy},
            "selected": {"step": step, "weight": weight},
        },
        [3],
    )
    found = SelectedReward()(FinalReward()(given, score=table_score), score=table_score)
    assert found["reward"].tolist() == [completion[i].sum() + 100 * e for i, e in enumerate((5, 0, 7))]
    expected = [
        [float(greedy[i, step[i, k]].sum()) + 100 * e if weight[i, k] else 0.0 for k in range(2)]
        for i, e in enumerate((5, 0, 7))
    ]
    assert found["selected", "reward"].tolist() == expected
    unknown = given.clone()
    unknown["step", "greedy_ids"][1, 2] = -1  # as rollouts leave what the selector cannot choose
    with pytest.raises(RuntimeError, match="nested"):
        SelectedReward()(unknown, score=table_score)
    nothing = given.exclude("reward").set(("selected", "weight"), torch.zeros(3, 2))
    assert SelectedReward()(nothing, score=table_score)["selected", "reward"].tolist() == [[0.0, 0.0]] * 3
