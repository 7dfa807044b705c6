"""Traces say what happened: log-probabilities, entropies, rewards and the update's choice, each against another way."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from support import runs
from support.traces import long_trace

from dlmrl_kit.rollout.rewards import Scorer
from dlmrl_kit.training.start import start_training
from dlmrl_kit.training.trace import Trace, trace_examples, trace_group
from dlmrl_kit.training.trace_page import page
from dlmrl_kit.training.trajectories import write_trajectories


def group(name: str = "egspo_sa", uses: tuple[str, ...] = (), sets: tuple[str, ...] = (), **how: Any) -> Trace:
    algorithm = runs.build(name, sets, uses)
    return trace_group(algorithm, start_training(algorithm).policy, **how)


@pytest.mark.parametrize("sampler", ["EntropyOrder", "LeftToRight", "MarginOrder"])
def test_probabilities_are_those_of_the_actions(sampler: str) -> None:
    trace = group(uses=(f"sampler={sampler}",), sets=("Sampler.temperature = 0.7", "Sampler.top_k = 3"))
    assert len(trace.samples) == 3
    for sample in trace.samples:
        assert len(sample.tokens) == 16
        for t, step in enumerate(sample.steps):
            committed = [token for token in sample.tokens if token.step == t]
            assert len(committed) == step.committed == 4
            assert step.log_prob == pytest.approx(
                sum(math.log(token.probability or 0) for token in committed), abs=1e-4
            )
            assert step.entropy == pytest.approx(sum(token.entropy or 0 for token in committed) / 4, abs=1e-5)
        for token in sample.tokens:
            likely = [p for _, p in token.others]
            assert likely == sorted(likely, reverse=True)
            assert len(likely) <= 2  # top-k leaves two others
            assert sum(likely) + (token.probability or 0) == pytest.approx(1, abs=1e-5)
            assert token.text not in [text for text, _ in token.others]


def test_it_says_what_the_update_trains() -> None:
    sets = ("Selector.k = 2", "Sampler.temperature = 1.0")
    trace = group("egspo", sets=sets, uses=("advantage=LeaveOneOut",), index=1)
    rewards = [sample.reward or 0.0 for sample in trace.samples]
    assert len(set(rewards)) > 1
    for i, sample in enumerate(trace.samples):
        others = [reward for j, reward in enumerate(rewards) if j != i]
        trained = [step for step in sample.steps if step.weight]
        assert len(trained) == 2
        assert {step.entropy for step in trained} == set(sorted((s.entropy for s in sample.steps), reverse=True)[:2])
        for step in sample.steps:
            if step.weight:
                assert step.advantage == pytest.approx(rewards[i] - sum(others) / len(others), abs=1e-6)
            else:
                assert step.advantage is None
            assert 0 <= (step.reward or 0) <= 1


def test_segments_and_filtered_groups() -> None:
    whole = group("d1", sets=("Sampler.temperature = 3.0",))
    assert all(step.weight == 1 and step.advantage is not None for sample in whole.samples for step in sample.steps)
    alike = group(uses=("filter=DropEqualRewards",), sets=("Sampler.temperature = 0",))
    assert all(not step.weight and step.advantage is None for sample in alike.samples for step in sample.steps)


def test_a_greedy_trace_shows_what_an_evaluation_decodes() -> None:
    algorithm = runs.build()
    policy = start_training(algorithm).policy
    decoder = algorithm.sampler.at_temperature(0.0)
    (first, second) = trace_examples(policy, decoder, algorithm.task, 2, name="now")
    assert (first.prompt, first.answer) == tuple(vars(algorithm.task.example("heldout", 0)).values())[:2]
    with torch.no_grad():
        scorer = Scorer(algorithm.task, "heldout", policy)
        (sample,) = second.samples
        ids = policy.encode([sample.text])["prompt_ids"]
        assert scorer(ids, torch.tensor([1])).item() == pytest.approx(sample.reward)
    assert all((token.probability or 0) <= 1 and (token.entropy or 0) > 0 for token in sample.tokens)
    assert Trace.from_json(json.loads(json.dumps(second.to_json()))) == second


def test_renoised_states_are_shown_as_they_were(tmp_path: Any) -> None:
    uses = ("sampler=EntropyBoundRenoising",)
    trace = group(uses=uses)
    for sample in trace.samples:
        assert sample.canvases is not None
        assert len(sample.canvases) == len(sample.steps) + 1
        assert sample.canvases[-1] == tuple(token.text for token in sample.tokens)
        assert len(set(sample.canvases)) > 1


def test_the_page_of_a_long_text_is_small_and_whole() -> None:
    text = page("title", [long_trace("before"), long_trace("after")])
    assert len(text.encode()) < 3_000_000
    assert text.count("</script>") == 2  # no text of a model ends the data
    data = json.loads(text.split('id="data">', 1)[1].split("</script>", 1)[0])
    (example,) = data["examples"]
    assert example["prompt"] == "a </script><!-- prompt"
    assert [policy["name"] for policy in example["policies"]] == ["before", "after"]
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_run_keeps_the_first_and_the_latest(tmp_path: Any) -> None:
    for done in (0, 2, 4):
        write_trajectories(tmp_path, "egspo", done, [long_trace(f"after {done}", 1, 8)])
    stored = json.loads((tmp_path / "trajectories.json").read_text())
    assert list(stored) == ["0", "4"]
    assert "after 0" in (tmp_path / "trajectories.html").read_text()


def test_a_run_writes_the_page(tmp_path: Any) -> None:
    run = runs.new_run(tmp_path, sets=("Trainer.traced_examples = 2", "Trainer.updates = 1"))
    run.run()
    stored = json.loads((tmp_path / "trajectories.json").read_text())
    assert {update: [trace["name"] for trace in found] for update, found in stored.items()} == {
        "0": ["before training"] * 2,
        "1": ["after 1 update"] * 2,
    }
    assert (tmp_path / "trajectories.html").is_file()
