"""Evaluation: pass@k, greedy and sampled decoding, runs and models on disk."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.pretraining import tiny
from support.rollouts import OF_ANOTHER, members
from support.runs import build, model_path, new_run, recipe

from dlmrl_kit.core.checksums import CHECKSUMS
from dlmrl_kit.core.component import rebuilt
from dlmrl_kit.core.errors import CheckpointError, RecipeError, UserError
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.core.seeding import derive_seed
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.pretraining.run import pretrain
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.rollout.services import prompt_batch
from dlmrl_kit.samplers.bernoulli_order import BernoulliOrder
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.training import evaluate_path, opening, train
from dlmrl_kit.training.evaluation import evaluate, pass_at_k


def test_pass_at_k_counts_subsets() -> None:
    for samples in range(1, 7):
        for solved, k in itertools.product(range(samples + 1), range(1, samples + 1)):
            subsets = list(itertools.combinations(range(samples), k))
            expected = sum(any(i < solved for i in subset) for subset in subsets) / len(subsets)
            assert pass_at_k(solved, samples, k) == pytest.approx(expected, abs=1e-12)


OTHERS = ("PreferencePairs", *OF_ANOTHER)  # decode with another sampler: tests/samplers has their tests
SAMPLERS = [c.name for c in components("sampler") if c.package == "dlmrl_kit" and c.name not in OTHERS]


@pytest.mark.parametrize("sampler", members(SAMPLERS))
def test_greedy_evaluation_is_deterministic_and_leaves_the_sampler_alone(sampler: str) -> None:
    algorithm, policy = build(uses=[f"sampler={sampler}"], sets=["Sampler.top_p = 0.8"]), tiny_policy()
    part = algorithm.sampler
    before = vars(part).copy()
    torch.manual_seed(1)
    first = evaluate(policy, part, algorithm.task, size=5)
    assert vars(part) == before
    torch.manual_seed(2)
    assert evaluate(policy, part, algorithm.task, size=5) == first
    assert (first.decoding["temperature"], first.decoding["top_p"], first.decoding["sampler"]) == (0, 1, sampler)
    assert first.pass_at_k == {1: first.accuracy}
    prompts = prompt_batch(algorithm.task, "heldout", list(range(5)), policy, seed=derive_seed(0, "evaluate"))
    greedy = rebuilt(part, temperature=0.0, top_k=0, top_p=1.0)
    if isinstance(greedy, BernoulliOrder):
        greedy.greedy_order = True
    greedy.attach(policy)
    expected = greedy.decode(prompts, policy=policy)
    assert [sample["completion"] for sample in first.samples] == policy.completion_texts(expected["completion_ids"])


def tiny_policy() -> TransformersPolicy:
    return load_policy(model_path())


def test_evaluations_in_training_are_sampled_where_asked(tmp_path: Path) -> None:
    sets = ["Trainer.updates = 1", "Trainer.eval_size = 12", "Trainer.eval_temperature = 1.5", "Trainer.seed = 3"]
    sets.append("Trainer.traced_examples = 2")
    train(recipe("egspo_sa", sets), tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    model = str(tmp_path / "run/model")
    sampled = evaluate_path(model, size=12, temperature=1.5, seed=3)
    assert EvalResult.from_json(result["after"]) == sampled
    assert sampled != evaluate_path(model, size=12)
    shown = json.loads((tmp_path / "run/trajectories.json").read_text())["1"]
    assert [trace["samples"][0]["text"] for trace in shown] == [s["completion"] for s in sampled.samples[: len(shown)]]


def test_an_example_is_answered_the_same_whatever_else_is_evaluated() -> None:
    """Sampled completions by example: more examples, more samples of each, other pieces change none of them."""
    algorithm, policy = build(), tiny_policy()
    given = {"temperature": 1.5, "seed": 3}
    few = evaluate(policy, algorithm.sampler, algorithm.task, size=3, **given)
    more = evaluate(policy, algorithm.sampler, algorithm.task, size=7, samples_per_prompt=3, batch_size=2, **given)
    answers = [[sample["completion"] for sample in result.samples] for result in (few, more)]
    assert answers[0] == answers[1][:3]
    assert len(set(answers[1])) > 1


def test_sampled_evaluation_counts_completions_and_examples() -> None:
    algorithm, policy = build(), tiny_policy()
    task: Any = algorithm.task
    score: Callable[..., dict[str, float]] = task.score

    def easier(completion: str, example: Example) -> dict[str, float]:
        return {**score(completion, example), "solved": float(completion[:1] == example.answer[0])}

    task.score = easier
    result = evaluate(policy, algorithm.sampler, task, size=5, temperature=1.0, samples_per_prompt=6, batch_size=7)
    first = [task.example("heldout", index) for index in range(5)]
    prompts = prompt_batch(task, "heldout", list(range(5)), policy, 6, seed=derive_seed(0, "evaluate"))
    texts = []
    decoder = rebuilt(algorithm.sampler, temperature=1.0, top_k=0, top_p=1.0)
    for piece in prompts.split(7):
        texts += policy.completion_texts(decoder(piece, policy=policy)["completion_ids"])
    solved = [[float(text[:1] == e.answer[0]) for text in texts[6 * i : 6 * i + 6]] for i, e in enumerate(first)]
    assert 0 < sum(map(sum, solved)) < 30
    assert result.accuracy == pytest.approx(sum(map(sum, solved)) / 30)
    assert set(result.pass_at_k) == {1, 2, 4, 6}
    assert result.pass_at_k[1] == pytest.approx(result.accuracy)
    assert result.pass_at_k[6] == sum(any(row) for row in solved) / 5
    pairs = [any(pair) for row in solved for pair in itertools.combinations(row, 2)]
    assert result.pass_at_k[2] == pytest.approx(sum(pairs) / len(pairs))
    assert (result.split, result.size) == ("heldout", 5)
    assert [sample["prompt"] for sample in result.samples] == [e.prompt for e in first]
    assert [sample["completion"] for sample in result.samples] == texts[::6]
    assert [sample["solved"] for sample in result.samples] == [row[0] for row in solved]
    assert EvalResult.from_json(result.to_json()) == result


def test_filters_hold_where_completions_are_sampled() -> None:
    algorithm = build(sets=["Sampler.top_p = 0.5", "Sampler.top_k = 2"])
    given = {"policy": tiny_policy(), "sampler": algorithm.sampler, "task": algorithm.task, "size": 2}
    assert evaluate(**given, temperature=0.7).decoding.items() >= {"top_p": 0.5, "top_k": 2, "temperature": 0.7}.items()
    assert evaluate(**given).decoding.items() >= {"top_p": 1.0, "top_k": 0, "temperature": 0.0}.items()


Seen = list[tuple[int, torch.dtype]]
"""Rows and dtype of each call of a model's first feed-forward layer."""


def watched(policy: TransformersPolicy, seen: Seen) -> TransformersPolicy:
    def saw(module: torch.nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        seen.append((len(out), out.dtype))

    policy.model.model.layers[0].mlp.register_forward_hook(saw)
    return policy


def rows_and_dtypes(seen: Seen) -> tuple[int, set[torch.dtype]]:
    return max(rows for rows, _ in seen), {dtype for _, dtype in seen}


@pytest.mark.parametrize("sampler", members(SAMPLERS))
@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_and_batch_size_hold_for_every_sampler(sampler: str, precision: str, dtype: torch.dtype) -> None:
    algorithm, seen = build(uses=[f"sampler={sampler}"]), Seen()
    policy = watched(tiny_policy(), seen)
    evaluate(policy, algorithm.sampler, algorithm.task, size=5, batch_size=2, precision=precision)
    assert rows_and_dtypes(seen) == (2, {dtype})


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(("rows", "expected"), [("None", 4), ("3", 3), ("1", 1)])
def test_a_run_evaluates_as_it_rolls_out(tmp_path: Path, rank: int, rows: str, expected: int) -> None:
    sets = ["Trainer.precision = 'bfloat16'", f"Trainer.rollout_batch_size = {rows}", f"Pretrained.lora_rank = {rank}"]
    run, seen = new_run(tmp_path, sets=sets, uses=["logger=none"]), Seen()
    watched(run.policy, seen)
    run._evaluate(0)
    assert rows_and_dtypes(seen) == (expected, {torch.bfloat16})


def test_a_model_on_disk_is_evaluated_as_its_recipe_trains(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()
    monkeypatch.setattr(opening, "load_policy", lambda *given, **told: watched(load_policy(*given, **told), seen))
    sets = ["Trainer.precision = 'bfloat16'", "Trainer.rollout_batch_size = 2"]
    for sets_, given, expected in (
        ([], {}, (4, {torch.float32})),
        (sets, {}, (2, {torch.bfloat16})),
        (sets, {"batch_size": 3, "precision": "float32"}, (3, {torch.float32})),
    ):
        seen.clear()
        evaluate_path(str(run), size=4, sets=sets_, **given)
        assert rows_and_dtypes(seen) == expected
    seen.clear()
    evaluate_path(str(run / "model"), recipe="pretrain_sudoku4x4", size=4, sets=["MaskedDiffusion.eval_batch_size = 3"])
    assert rows_and_dtypes(seen) == (3, {torch.float32})


def test_evaluations_that_make_no_sense_are_refused() -> None:
    algorithm = build(sets=["Sudoku4x4.num_pretrain = 0"])
    given = {"policy": tiny_policy(), "sampler": algorithm.sampler, "task": algorithm.task}
    with pytest.raises(RecipeError, match="several samples per example at temperature 0 would all be the same"):
        evaluate(**given, samples_per_prompt=2)
    with pytest.raises(RecipeError, match="unknown split 'test'; available: pretrain, train, heldout"):
        evaluate(**given, split="test")
    with pytest.raises(RecipeError, match="unknown precision 'float8'; available: float32, bfloat16"):
        evaluate(**given, precision="float8")
    with pytest.raises(RecipeError, match="Sudoku4x4: the pretrain split is empty"):
        evaluate(**given, split="pretrain")
    assert evaluate(**given, size=1000).size == 5  # all there are


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(recipe(sets=["Trainer.updates = 1", "Pretrained.lora_rank = 2"]), folder)
    return folder


def test_runs_and_models_are_evaluated(run: Path) -> None:
    stored = EvalResult.from_json(load_json(run / "evaluations.json")["1"])
    found = evaluate_path(str(run), size=4)  # the adapter is merged into the stored model
    assert found == stored
    assert evaluate_path(str(run / "model"), recipe=str(run / "recipe.gin"), size=4) == found
    assert evaluate_path(str(run / "model"), size=4) == found  # the folder remembers the run's recipe
    assert evaluate_path(str(run / "adapter"), size=4).task == found.task == "Sudoku4x4"
    bare = evaluate_path(str(run / "model"), size=2, sets=["Sampler.tokens_per_step = 8"])
    assert (bare.size, bare.decoding["tokens_per_step"]) == (2, 8)
    swapped = {"uses": ["sampler=EntropyOrder"], "sets": ["EntropyOrder.completion_length = 16"]}
    assert evaluate_path(str(run), size=2, **swapped).decoding["sampler"] == "EntropyOrder"
    assert evaluate_path("shipped:sudoku4x4", size=2).size == 2


def test_a_model_folder_remembers_its_task(tmp_path: Path) -> None:
    sets = ["Countdown.num_train = 4", "Countdown.num_heldout = 3", "Sampler.completion_length = 8"]
    sets += ["CharacterLlama.hidden_size = 16", "CharacterLlama.num_layers = 1", "Trainer.updates = 1"]
    train(recipe(uses=["task=Countdown", "policy=CharacterLlama"], sets=sets), tmp_path / "run")
    (tmp_path / "run" / "model").rename(tmp_path / "moved")
    found = evaluate_path(str(tmp_path / "moved"))
    assert (found.task, found.size, found.decoding["completion_length"]) == ("Countdown", 3, 8)
    assert evaluate_path(str(tmp_path / "moved"), recipe="egspo", size=2).task == "Sudoku4x4"


def test_a_model_folder_runs_no_code_of_its_own(run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    (model / "reward_inside.py").write_text(
        "def score(completion, example):\n    return {'solved': 1.0, 'reward': 1.0}\n"
    )
    (model / "data.jsonl").write_text(
        "".join(json.dumps({"prompt": f"1_{i}:", "answer": "1"}) + "\n" for i in range(9))
    )
    sets = [f"JsonLines.path = '{model / 'data.jsonl'}'", "JsonLines.reward = 'reward_inside:score'"]
    sets += [f"JsonLines.reward_folder = '{model}'"]
    stored = recipe(uses=["task=JsonLines"], sets=sets).text()
    (model / "trained_with.gin").write_text(stored)
    (model / CHECKSUMS).unlink()  # as after any change on purpose
    with pytest.raises(RecipeError, match=r"runs .*reward_inside\.py, code in the model's own folder; .* --recipe "):
        evaluate_path(str(model), size=2)
    found = evaluate_path(str(model), size=2, recipe=str(model / "trained_with.gin"))
    assert (found.task, found.accuracy) == ("data", 1.0)


def test_a_pretrained_model_remembers_its_task(tmp_path: Path) -> None:
    result = pretrain(tiny("LowConfidence.tokens_per_step = 4", "Sudoku4x4.max_empty = 5"), tmp_path / "run")
    found = evaluate_path(str(result.model))
    assert (found.task, found.size, found.decoding["tokens_per_step"]) == (result.task, 4, 4)
    assert found.accuracy == result.accuracy
    assert sum(sample["prompt"].count("_") for sample in found.samples) <= 4 * 5


def load_json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_paths_that_hold_nothing_to_evaluate_are_named(run: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "recipe.gin").write_text((run / "recipe.gin").read_text())
    with pytest.raises(CheckpointError, match=f"{unfinished} has no finished model yet; finish it with: dlmrl train"):
        evaluate_path(str(unfinished))
    with pytest.raises(CheckpointError, match="no run or model folder at /nowhere/at/all"):
        evaluate_path("/nowhere/at/all")
    with pytest.raises(UserError, match=r"no checkpoint 'shipped:nothing' ships with dlmrl_kit; available: sudoku4x4"):
        evaluate_path("shipped:nothing")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        evaluate_path(str(tmp_path))
    with pytest.raises(RecipeError, match="no recipe named 'egspoo'"):
        evaluate_path(str(run), recipe="egspoo")


def test_a_pretraining_recipe_gives_task_and_sampler_too(run: Path) -> None:
    sets = ["Sudoku4x4.num_heldout = 3", "LowConfidence.tokens_per_step = 4"]
    found = evaluate_path(str(run / "model"), recipe="pretrain_sudoku4x4", sets=sets)
    assert (found.size, found.decoding["tokens_per_step"]) == (3, 4)
    assert load_recipe("pretrain_sudoku4x4").root == "Pretraining"
