"""VRPO: preference pairs as trajectories, from demonstrators and from a file, and how recipes train on them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policies import tiny_policy
from support.rollouts import prompts
from support.runs import build, new_run
from support.seeds import seeded
from support.statistics import chi_square, chi_square_limit
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.audit import audit_algorithm
from dlmrl_kit.audit.enumeration import AuditError
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.demonstrators.answers import Answers
from dlmrl_kit.demonstrators.base import Demonstrator
from dlmrl_kit.demonstrators.chosen import Chosen
from dlmrl_kit.demonstrators.mixed_sudoku_solvers import hasty
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.preference_pairs import PreferencePairs
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.tasks.json_lines import JsonLines
from dlmrl_kit.training.evaluation import evaluate

LENGTH = 6
POLICY = tiny_policy(characters="abcd")
GROUP = [4, 2, 4, 2, 9]


class Fixed(Demonstrator):
    """The same texts for every example."""

    def __init__(self, **shares: float) -> None:
        self.shares = shares

    def demonstrations(self, example: Example) -> list[tuple[str, float]]:
        return list(self.shares.items())


def pairs(sampler: PreferencePairs, group: list[int] | None = None, seed: int = 0) -> TensorDict:
    """Pairs for examples that say which row asked for them."""
    group = GROUP if group is None else group
    rows = prompts(POLICY, rows=len(group))
    rows.set("group", torch.tensor(group)).set("example", torch.arange(len(group)))

    def examples(index: Tensor) -> list[Example]:
        return [Example("p", "abcd"[i % 4] * 2, {"chosen": "ab"[: 1 + i % 2], "rejected": "dddd"}) for i in index]

    return sampler(seeded(rows, seed), policy=POLICY, examples=examples)


def texts(data: TensorDict) -> list[str]:
    return [POLICY.tokenizer.decode(row, skip_special_tokens=True) for row in data["completion_ids"].tolist()]


def test_members_are_chosen_and_rejected_in_turn() -> None:
    data = pairs(PreferencePairs(LENGTH, 2))
    assert texts(data) == ["a", "ab", "dddd", "dddd", "a"]  # rows 0, 1 and 4 are the first of their groups
    assert data["reward"].tolist() == [1, 1, 0, 0, 0]  # the last one has no partner: no preference
    assert data["reward"].dtype == torch.float32
    for row, text in zip(data["completion_ids"].tolist(), texts(data), strict=True):
        assert row[len(text) :] == [POLICY.eos_id] * (LENGTH - len(text))
    assert not data["commit_step"].any()
    assert data["commit_step"].dtype == torch.int16
    assert data["step", "valid"].tolist() == [[True, False, False]] * 5
    assert data["step", "num_committed"].tolist() == [[LENGTH, 0, 0]] * 5
    assert not any(name in data["step"].keys() for name in ("log_prob", "entropy"))  # noqa: SIM118


def test_the_same_text_is_no_preference() -> None:
    sampler = PreferencePairs(LENGTH, chosen=Fixed(ab=1.0), rejected=Fixed(ab=0.5, ba=0.5))
    data = pairs(sampler, [0] * 40)
    found, same = texts(data), 0
    for first in range(0, 40, 2):
        equal = found[first] == found[first + 1]
        assert data["reward"][first : first + 2].tolist() == ([0, 0] if equal else [1, 0])
        same += equal
    assert 2 < same < 18


def test_demonstrations_are_drawn_by_their_probabilities() -> None:
    shares = {"a": 0.2, "b": 0.0, "c": 0.5, "d": 0.3}
    sampler = PreferencePairs(2, chosen=Fixed(**shares), rejected=Answers())
    found = texts(pairs(sampler, [i // 2 for i in range(4000)]))
    counts = [found[::2].count(text) for text in shares]
    statistic, degrees = chi_square(counts, list(shares.values()))
    assert statistic < chi_square_limit(degrees)
    assert found[1::2] == ["abcd"[i % 4] * 2 for i in range(1, 4000, 2)]


def test_without_an_end_of_text_padding_is_never_committed() -> None:
    policy = tiny_policy(characters="abcd")
    policy.eos_ids = ()
    sampler = PreferencePairs(LENGTH, 2, chosen=Fixed(abc=1.0), rejected=Fixed(d=1.0))
    rows = prompts(policy, rows=2).set("group", torch.zeros(2).long()).set("example", torch.zeros(2).long())
    data = sampler(seeded(rows), policy=policy, examples=lambda index: [Example("p", "a")] * len(index))
    assert data["commit_step"].tolist() == [[0, 0, 0, 3, 3, 3], [0, 3, 3, 3, 3, 3]]
    assert data["step", "num_committed"][:, 0].tolist() == [3, 1]
    assert (data["completion_ids"] == policy.pad_id).sum(-1).tolist() == [3, 5]


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (PreferencePairs(3), r"a demonstration has 4 tokens, more than the sampler's completion_length = 3"),
        (PreferencePairs(3, rejected=Fixed(ax=1.0)), r"no tokens for 'x', in 'ax'"),
    ],
)
def test_refuses_completions(sampler: PreferencePairs, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        pairs(sampler)


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"PreferencePairs\.rejected must be a demonstrator, got 'no'"):
        PreferencePairs(4, rejected="no")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"no text 'chosen' \(prompt 'p'\); it has 'rejected'"):
        Chosen().demonstrations(Example("p", "a", {"rejected": "b"}))
    with pytest.raises(RecipeError, match=r"no text 'chosen'.*it has nothing"):
        Chosen().demonstrations(Example("p", "a"))
    with pytest.raises(RecipeError, match=r"PreferencePairs makes 2 samples.*set Trainer\.group_size = 2"):
        build("vrpo", ["Trainer.group_size = 4"])


def test_pairs_have_no_log_probability() -> None:
    """What needs one is refused when the recipe is read, or with a reason."""
    with pytest.raises(RecipeError, match=r"StepTokenLogProb reads \('step', 'model_log_prob'\)"):
        build("egspo", ["Trainer.group_size = 2"], ["sampler=PreferencePairs", "selector=AllSteps"])
    with pytest.raises(RecipeError, match=r"no log-probability of an action.*such as Elbo"):
        PreferencePairs(4).action_log_prob(None, None)  # type: ignore[arg-type]
    with pytest.raises(AuditError, match="PreferencePairs does not sample from the policy"):
        audit_algorithm(build("vrpo", ["Trainer.group_size = 2"]))


def test_evaluation_decodes_with_the_policy() -> None:
    algorithm = build("vrpo", ["Trainer.group_size = 2"])
    policy, task = algorithm.policy.load(), algorithm.task
    plain = LowConfidence(16, 4)
    found, wanted = (
        evaluate(policy, s, task, size=5, temperature=0.7, samples_per_prompt=2) for s in (algorithm.sampler, plain)
    )
    assert [s["completion"] for s in found.samples] == [s["completion"] for s in wanted.samples]
    assert found.reward == wanted.reward


def lines(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    rows = [
        {"prompt": f"{i}", "chosen": "1" * (1 + i % 3), "rejected": "23", "split": split}
        for i, split in enumerate(["train"] * 4 + ["heldout"] * 2)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_pairs_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prefer.py").write_text("def ones(completion, example):\n    return completion.count('1') / 16\n")
    monkeypatch.chdir(tmp_path)
    sets = [f"JsonLines.path = {str(lines(tmp_path))!r}", "JsonLines.reward = 'prefer:ones'"]
    sets += ["PreferencePairs.chosen = None", "PreferencePairs.rejected = None", "Trainer.group_size = 2"]
    sets += ["CharacterLlama.hidden_size = 16", "CharacterLlama.num_layers = 1", "CharacterLlama.num_heads = 2"]
    sets += ["CharacterLlama.characters = '0123456789'"]
    run = new_run(tmp_path / "run", "vrpo", sets, ["task=JsonLines", "policy=CharacterLlama"])
    assert isinstance(run.algorithm.task, JsonLines)
    data = run.update.roll_out(0).everything
    decoded = run.policy.tokenizer.batch_decode(data["completion_ids"], skip_special_tokens=True)
    wanted = [run.algorithm.task.example("train", int(i)).meta for i in data["example"]]
    keys = ["chosen", "rejected"] * 2
    assert decoded == [meta[key] for meta, key in zip(wanted, keys, strict=True)]
    assert data["reward"].tolist() == [1, 0, 1, 0]  # the preference, whatever the reward function says


def test_the_recipe_trains(tmp_path: Path) -> None:
    run = new_run(tmp_path, "vrpo", ["Trainer.group_size = 2", "Trainer.minibatches = 1"])
    kinds = [stage.name for stage in run.update.plan.rollout]
    assert kinds == ["PreferencePairs", "WholeSequence", "GroupMean"]
    before = [p.detach().clone() for _, p in run.policy.trainable()]
    losses: list[Any] = []
    for update in range(2):
        rollout = run.update.roll_out(update)
        answers = [run.algorithm.task.example("train", int(i)) for i in rollout.kept["example"]]
        decoded = run.policy.tokenizer.batch_decode(rollout.kept["completion_ids"], skip_special_tokens=True)
        for place, (example, text) in enumerate(zip(answers, decoded, strict=True)):
            assert text == (hasty(example.prompt) if place % 2 else example.answer)
        metrics = run.update.rollout_metrics(rollout)
        assert "entropy" not in metrics
        assert metrics["steps"] == 1
        run.update.prepare(rollout)
        losses.append(run.update.learn(rollout.kept, update))
    assert losses[0]["loss"] == pytest.approx(math.log(2))  # policy and reference, the same masks
    assert losses[0]["preference_margin"] == pytest.approx(0)
    assert all(metrics["skipped"] == 0 and math.isfinite(metrics["loss"]) for metrics in losses)
    assert any(not torch.equal(a, b) for a, (_, b) in zip(before, run.policy.trainable(), strict=True))
