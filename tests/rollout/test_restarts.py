"""Restarts from the states of a trajectory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.number_task import Numbers
from support.shipped_runs import tiny_run
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import STEP_GREEDY_IDS, Key
from dlmrl_kit.core.trajectory import state_at
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.rollout.rewards import Score, Scorer
from dlmrl_kit.rollout.services import SamplingServices, UpdateServices, prompt_batch, restart_seeds
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.tasks.base import Example


@pytest.fixture(scope="module")
def digits() -> TransformersPolicy:
    torch.manual_seed(0)
    return CharacterLlama("0123456789", hidden_size=16, num_layers=1, num_heads=2).load()


class Remembering(LowConfidence):
    """Remembers what it made when it went on from a state."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.resumed: list[dict[Key, Tensor]] = []

    def resume(self, prompt: TensorDictBase, ids: Tensor, **services: Any) -> dict[Key, Tensor]:
        self.resumed.append(super().resume(prompt, ids, **services))
        return self.resumed[-1]


class Given(SamplingServices):
    """Scores with a function that is given."""

    def __init__(self, score: Score, policy: TransformersPolicy, sampler: LowConfidence, chunk: int) -> None:
        super().__init__(policy, sampler, chunk)
        self.given = score

    def score(self, ids: Tensor, example: Tensor) -> Tensor:
        return self.given(ids, example)

    def examples(self, example: Tensor) -> list[Example]:
        return [Numbers().example("train", index) for index in example.tolist()]


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_restarts_go_on_from_the_state_and_score_every_state(digits: TransformersPolicy, chunk: int) -> None:
    sampler = Remembering()
    prompt = prompt_batch(Numbers(), "train", [0, 1, 2], digits)
    trajectory = sampler(prompt, policy=digits, keys=[STEP_GREEDY_IDS])
    trajectory["selected", "weight"] = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    step = torch.tensor([[0, 1, 2], [1, 2, 0], [0, 0, 0]])
    scored: list[tuple[list[int], int]] = []

    def score(ids: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
        scored.extend(zip(ids.tolist(), example.tolist(), strict=True))
        return torch.arange(len(scored) - len(ids), len(scored)).float() + 1

    services = Given(score, digits, sampler, chunk)
    found = services.restart(trajectory, step, 2)
    order = [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]
    expected = torch.zeros(3, 3, 2)
    for number, place in enumerate(order):
        expected[place] = torch.tensor([2.0 * number + 1, 2 * number + 2])
    assert torch.equal(found, expected)
    start = state_at(trajectory["completion_ids"], trajectory["commit_step"], step, digits.mask_id)
    for number, (row, column) in enumerate(order):
        for ids, example in scored[2 * number : 2 * number + 2]:
            assert example == row
            pairs = zip(ids, start[row, column].tolist(), strict=True)
            assert all(old in (new, digits.mask_id) for new, old in pairs)
    assert scored[2][0] == scored[3][0] == trajectory["completion_ids"][0].tolist()  # a finished state
    first = [ids for ids, _ in scored[:2]]
    assert first[0] != first[1]  # fresh noise for each
    assert services.restart(trajectory, step, 2) is not None
    assert [ids for ids, _ in scored[10:12]] != first  # and for each call
    for made in sampler.resumed:
        assert set(made) == set(sampler.out_keys)  # a restart records nothing on demand


def test_every_restart_has_noise_of_its_own_whatever_the_pieces_and_the_batch(digits: TransformersPolicy) -> None:
    """A row's completions are the same in any batch; equal states, further ones and later calls draw otherwise."""
    sampler = LowConfidence(4, 2, temperature=3.0)
    trajectory = sampler(prompt_batch(Numbers(), "train", [0, 1, 2], digits), policy=digits)
    trajectory["selected", "weight"] = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    step = torch.tensor([[0, 0, 1], [0, 0, 1], [0, 1, 1]])

    def drawn(rows: list[int], chunk: int) -> list[Tensor]:
        seen: list[Tensor] = []

        def score(ids: Tensor, example: Tensor) -> Tensor:
            seen.append(ids)
            return torch.zeros(len(ids))

        services = Given(score, digits, sampler, chunk)
        for _ in range(2):
            services.restart(trajectory[rows], step[rows], 5)
        return list(torch.cat(seen).split(5))

    whole = drawn([0, 1, 2], 100)
    assert len(whole) == 14  # 7 entries in each of two calls
    assert all(map(torch.equal, whole, drawn([0, 1, 2], 3)))
    other = drawn([2, 0], 4)  # rows 2 and 0, whose entries are 5, 6 and 0, 1, 2 of a call of 7
    assert all(map(torch.equal, other, [whole[i] for i in (5, 6, 0, 1, 2, 12, 13, 7, 8, 9)]))
    assert len({tuple(row) for completions in whole[:2] for row in completions.tolist()}) > 5  # the same state twice
    assert not torch.equal(whole[0], whole[7])
    seeds = restart_seeds(torch.arange(3), step, trajectory["selected", "weight"] > 0, 5)
    assert len(seeds) == len(seeds.unique()) == 35


def test_restarts_of_nothing_are_nothing(digits: TransformersPolicy) -> None:
    sampler = LowConfidence(4, 2)
    trajectory = sampler(prompt_batch(Numbers(), "train", [0, 1], digits), policy=digits)
    trajectory["selected", "weight"] = torch.zeros(2, 3)
    services = UpdateServices(digits, sampler, Scorer(Numbers(), "train", digits), chunk=3)
    assert torch.equal(services.restart(trajectory, torch.zeros(2, 3, dtype=torch.int64), 2), torch.zeros(2, 3, 2))


def test_monte_carlo_restarts_from_finished_states_give_the_reward(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, uses=["advantage=MonteCarlo"])
    seen: list[tuple[Tensor, Tensor]] = []
    original = SamplingServices.restart

    def spy(self: SamplingServices, tensordict: TensorDict, step: Tensor, n: int) -> Tensor:
        found = original(self, tensordict, step, n)
        seen.append((step, found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SamplingServices, "restart", spy)
        trajectory = run.update.roll_out(0).kept
    used = trajectory["selected", "weight"] > 0
    step, rewards = seen[0]
    finished = used & (step >= trajectory["step", "valid"].sum(-1)[:, None])
    assert bool(finished.any())
    expected = trajectory["reward"][:, None, None].expand_as(rewards)
    assert torch.equal(rewards[finished], expected[finished])
    assert bool(((rewards >= 0) & (rewards <= 1)).all())
