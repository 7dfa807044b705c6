"""EBPO's block-wise bound: a plain loop, its two limits, and the bound itself by enumeration of every mask."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from dlmrl_kit.core.keys import SELECTED_TOKEN_LOG_PROB
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.likelihoods.autoregressive_order import AutoregressiveOrder
from dlmrl_kit.likelihoods.elbo import Elbo
from dlmrl_kit.likelihoods.segments import SegmentLikelihood
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.selectors.whole_sequence import WholeSequence
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.runs import resume, train
from support import segment_loops as loops
from support.policies import tiny_policy
from support.rollouts import prompts
from support.runs import outcome, recipe
from support.seeds import seeded
from tensordict import TensorDict

from dlmrl_ebpo.block_elbo import BlockElbo

LENGTH = 7
POLICY = tiny_policy(hidden=16, layers=1, characters="abc", initializer_range=0.6).double()


def rolled_out(draws: int, rows: int = 8) -> tuple[Sampler, TensorDict]:
    """Completions, some of which end early, with every segment the whole of them."""
    sampler = RandomOrder(LENGTH, 2, temperature=1.3, stop_at_eos=False)
    data = sampler(seeded(prompts(POLICY, rows), 1), policy=POLICY)
    data["seed"] = sample_seeds(rows, "cpu", 3)
    data["iteration"] = torch.ones(rows, dtype=torch.int64)
    return sampler, WholeSequence(draws)(data, keys=[("selected", "end")])


def run(likelihood: SegmentLikelihood, sampler: Sampler, data: TensorDict) -> TensorDict:
    keys = likelihood.optional_keys
    data = likelihood.prepare(data.clone(), sampler=sampler, policy=POLICY, keys=keys)
    with torch.no_grad():
        return likelihood(data, policy=POLICY, sampler=sampler, keys=keys)


def loop(s: loops.Segment) -> loops.Values:
    """The tokens' parts of one segment."""
    size = s.likelihood.block_length
    number = math.ceil(LENGTH / size)
    found = []
    for b in range(number):
        inside = [i for i in s.targets if i // size == b]
        level = (loops.uniform(s.seed, "count", 0) + (s.k * number + b) / (s.draws * number)) % 1
        count = min(1 + math.floor(level * len(inside)), len(inside))
        chosen = s.smallest(count, inside, lambda i, b=b: s.own("order", i * number + b))  # type: ignore[misc]
        hidden = [i for i in s.open if i in chosen or i // size > b or i not in s.targets]
        if chosen:
            found.append(loops.scaled(s.score(hidden, chosen), len(inside) / count))
    return loops.added(*found)


@pytest.mark.parametrize("likelihood", [BlockElbo(block_length=3), BlockElbo(False, True, True, 2)], ids=["3", "2"])
def test_every_segment_against_a_loop(likelihood: BlockElbo) -> None:
    sampler, data = rolled_out(draws=3)
    found = run(likelihood, sampler, data)
    assert likelihood.forwards(LENGTH) == math.ceil(LENGTH / likelihood.block_length)
    for b, k in itertools.product(range(len(data)), range(3)):
        values = loop(loops.Segment(likelihood, POLICY, sampler, data, b, k))
        row = found[SELECTED_TOKEN_LOG_PROB][b, k].tolist()
        assert row == pytest.approx([values.get(i, 0.0) for i in range(LENGTH)], abs=1e-6)
        assert found["selected", "log_prob"][b, k].item() == pytest.approx(sum(values.values()), abs=1e-6)
    ends = (data["completion_ids"] == POLICY.eos_id).any(-1)
    assert ends.any()
    assert not ends.all()


@pytest.mark.parametrize(("block_length", "limit"), [(LENGTH, Elbo()), (1, AutoregressiveOrder())], ids=["Elbo", "AR"])
def test_one_block_is_elbo_and_blocks_of_one_position_are_left_to_right(
    block_length: int, limit: SegmentLikelihood
) -> None:
    sampler, data = rolled_out(draws=3)
    found, expected = run(BlockElbo(block_length=block_length), sampler, data), run(limit, sampler, data)
    for key in (("selected", "log_prob"), SELECTED_TOKEN_LOG_PROB, ("selected", "token_mask")):
        assert torch.allclose(found[key].double(), expected[key].double(), atol=1e-12, rtol=0)


def test_the_mean_over_draws_is_the_bound() -> None:
    """All orders within blocks, by enumeration: the bound is their mean log-probability."""
    sampler, data = rolled_out(draws=400, rows=1)
    likelihood = BlockElbo(block_length=3)
    segment = loops.Segment(likelihood, POLICY, sampler, data, 0, 0)
    bound = 0.0
    for first in range(0, LENGTH, 3):
        inside = [i for i in segment.targets if first <= i < first + 3]
        for size in range(1, len(inside) + 1):
            subsets = list(itertools.combinations(inside, size))
            for chosen in subsets:
                hidden = [i for i in segment.open if i in chosen or i >= first + 3 or i not in segment.targets]
                bound += sum(segment.score(hidden, chosen).values()) / size / len(subsets)
    log_prob = run(likelihood, sampler, data)["selected", "log_prob"][0]
    error = log_prob.std().item() / math.sqrt(len(log_prob))
    assert log_prob.std() > 0.05
    assert abs(log_prob.mean().item() - bound) < 4 * error


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ["Trainer.updates = 2", "WholeSequence.draws = 2", "Trainer.learning_rate = 0.001"]
    train(recipe("ebpo", sets), tmp_path / "whole")
    step = Run.step

    def killed(self: Run, number: int) -> None:
        if number == 1:
            raise KeyboardInterrupt
        step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe("ebpo", sets), tmp_path / "killed")
    resume(tmp_path / "killed")
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "killed")
