"""Seeds, files, prompts, scoring, rewards and evaluation."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from training_helpers import build, model_path, recipe

from dlmrl_kit.core import seeding
from dlmrl_kit.core.errors import CheckpointError, RecipeError, UserError
from dlmrl_kit.core.files import atomic_folder, write_atomic
from dlmrl_kit.core.registry import components
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.core.trajectory import state_at
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.policies.characters import CharacterLlama, character_tokenizer
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.rollout.services import encode, prompt_batch, require_examples, training_indices
from dlmrl_kit.rollout.rewards import FinalReward, Scorer, SelectedReward, completion_texts
from dlmrl_kit.rollout.services import Services, plain
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.tasks.base import Example, Task
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.training import evaluate_path, train
from dlmrl_kit.training.evaluation import evaluate, pass_at_k

# ------------------------------------------------------------------------------------------- seeds


def test_seeds_are_the_same_in_every_version() -> None:
    """A change here changes every run that anyone has ever seeded."""
    assert seeding.derive_seed(0, 3, "restart") == 6580138378567896450
    assert seeding.derive_seed(1) == 3874038210105081456


def test_seeds_differ_where_their_names_do() -> None:
    parts = [(seed, update, name) for seed in range(4) for update in range(25) for name in ("a", "b")]
    seeds = {seeding.derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeding.derive_seed(1, 23) != seeding.derive_seed(12, 3)
    draws = [torch.rand(3, generator=seeding.generator("cpu", 0, name)) for name in ("a", "a", "b")]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# ------------------------------------------------------------------------------------------- files


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_atomic(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert listing(path.parent) == ["file.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_stays_as_it_was(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    monkeypatch.setattr(os if call == "fsync" else Path, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["file.txt"]


def write_folder(path: Path, text: str, fail: bool = False) -> None:
    with atomic_folder(path) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "file").write_text(text)
        assert not path.exists() or (path / "deep" / "file").read_text() == "old"
        if fail:
            raise ZeroDivisionError


@pytest.mark.parametrize("name", ["folder", "with [brackets]*"])
def test_a_folder_appears_whole_or_not_at_all(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / name
    with pytest.raises(ZeroDivisionError):
        write_folder(path, "half", fail=True)
    assert listing(path.parent) == []
    write_folder(path, "old")
    (path / "another").write_text("gone after the next one")
    with pytest.raises(ZeroDivisionError):
        write_folder(path, "half", fail=True)
    assert listing(path) == ["another", "deep"]
    write_folder(path, "new")
    assert (path / "deep" / "file").read_text() == "new"
    assert listing(path) == ["deep"]
    assert listing(path.parent) == [name]


def test_a_folder_is_never_half_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed while it removes what it replaced leaves the new folder, or none, under the final name."""
    path = tmp_path / "folder"
    write_folder(path, "old")
    remove, seen = shutil.rmtree, []

    def rmtree(victim: Path, **options: Any) -> None:
        seen.append(Path(victim).name)
        assert Path(victim) != path
        remove(victim, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    write_folder(path, "new")
    assert seen == [f".folder.old{os.getpid()}"]


def test_a_folder_is_flushed_to_disk_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    write_folder(tmp_path / "folder", "text")
    assert [Path(name).name for name in flushed] == ["file"]
    assert all(".folder.tmp" in name for name in flushed)


# ------------------------------------------------------------------------------------------- prompts


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 12), per_update=st.integers(1, 15), seed=st.integers(0, 5))
def test_every_pass_over_the_puzzles_takes_each_once(size: int, per_update: int, seed: int) -> None:
    updates = [training_indices(size, per_update, update, seed) for update in range(3 * size)]
    assert all(len(indices) == per_update for indices in updates)
    drawn = list(itertools.chain(*updates))
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[start : start + size]) == list(range(size))
    assert updates[-1] == training_indices(size, per_update, 3 * size - 1, seed)  # whatever was drawn before


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(training_indices(30, 30, update, seed)) for update in range(5) for seed in range(5)}
    assert len(orders) == 25


class Numbers(Task):
    """Example i is the digit i, i + 1 times; a completion that repeats the digit is right. Counts its scorings."""

    def __init__(self, size: int = 10) -> None:
        super().__init__(0, size, 0)
        self.calls = 0

    def candidate(self, number: int) -> Example | None:
        raise NotImplementedError

    def example(self, split: str, index: Any) -> Example:
        return Example(str(index) * (index + 1), str(index), {"split": split})

    def score(self, completion: str, example: Example) -> dict[str, float]:
        self.calls += 1
        solved = float(completion == example.answer)
        return {"reward": 0.25 + 0.5 * solved, "solved": solved}


@pytest.fixture(scope="module")
def digits() -> Policy:
    torch.manual_seed(0)
    return CharacterLlama("0123456789", hidden_size=16, num_layers=1, num_heads=2).load()


def test_prompts_are_left_padded_and_repeated(digits: Policy) -> None:
    batch = prompt_batch(Numbers(), "train", [3, 0, 1], digits, group_size=2)
    assert batch.shape == (6,)
    assert batch["group"].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch["example"].tolist() == [3, 3, 0, 0, 1, 1]
    assert batch["prompt_mask"].sum(-1).tolist() == [4, 4, 1, 1, 2, 2]
    for row, mask, index in zip(batch["prompt_ids"], batch["prompt_mask"], batch["example"].tolist(), strict=True):
        assert (mask[1:] >= mask[:-1]).all()  # padding first
        assert (row[~mask] == digits.pad_id).all()
        assert digits.tokenizer.decode(row[mask]) == str(index) * (index + 1)
    assert (batch["prompt_ids"].dtype, batch["prompt_mask"].dtype) == (torch.int64, torch.bool)
    assert encode(digits, ["12"])["prompt_ids"].shape == (1, 2)


def test_splits_without_enough_puzzles_are_refused() -> None:
    with pytest.raises(RecipeError, match="Numbers: the heldout split is empty; set num_heldout"):
        require_examples(Numbers(), "train", "heldout")
    task = Sudoku4x4(1, 1, num_train=10**6)
    task.max_misses = 3  # type: ignore[misc]
    with pytest.raises(RecipeError, match="num_train is 1000000, but only"):
        puzzles(task, "train", range(10**6))


def test_character_tokenizer_round_trips() -> None:
    tokenizer = character_tokenizer("ab (")
    assert tokenizer.decode(tokenizer("b (a")["input_ids"]) == "b (a"
    assert tokenizer("a?b")["input_ids"] == [4, tokenizer.unk_token_id, 5]
    ids = (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"characters": "aa"}, "characters must be distinct characters"),
        ({"characters": ""}, "characters must be distinct characters"),
        ({"hidden_size": 20, "num_heads": 4}, r"hidden_size must be a multiple of 2 \* num_heads, got 20"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
    ],
)
def test_small_denoisers_refuse_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"CharacterLlama.{message}"):
        CharacterLlama(**options)


# ------------------------------------------------------------------------------------------- scores and rewards


def test_completions_end_at_the_first_end_of_text_and_are_scored_once(digits: Policy) -> None:
    one, two, eos, pad = digits.tokenizer.convert_tokens_to_ids(["1", "2", "<eos>", "<pad>"])
    ids = torch.tensor([[one, eos, two], [one, eos, eos], [one, two, eos], [eos, one, one], [one, pad, two]])
    assert completion_texts(digits, ids) == ["1", "1", "12", "", "12"]
    assert ids[0].tolist() == [one, eos, two]  # not changed
    task = Numbers()
    scorer = Scorer(task, "train", digits)
    found = scorer(ids, torch.tensor([1, 1, 1, 1, 1]))
    assert found.tolist() == [0.75, 0.75, 0.25, 0.25, 0.25]
    assert found.dtype == torch.float32
    assert task.calls == 3
    scorer(ids[:1].expand(2, -1), torch.tensor([1, 2]))  # the same text for another puzzle is another question
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


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_restarts_go_on_from_the_state_and_score_every_slot(digits: Policy, chunk: int) -> None:
    sampler = LowConfidence(4, 2)
    prompt = prompt_batch(Numbers(), "train", [0, 1, 2], digits)
    trajectory = sampler(prompt, policy=digits, generator=torch.Generator().manual_seed(0))
    trajectory["selected", "weight"] = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    step = torch.tensor([[0, 1, 2], [1, 2, 0], [0, 0, 0]])
    scored: list[tuple[list[int], int]] = []

    def score(ids: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
        scored.extend(zip(ids.tolist(), example.tolist(), strict=True))
        return torch.arange(len(scored) - len(ids), len(scored)).float() + 1

    sampler.ask_for([("step", "greedy_ids")])
    services = Services(digits, sampler, score, seed=0, update=0, chunk=chunk)
    found = services.restart(trajectory, step, 2)
    order = [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]
    expected = torch.zeros(3, 3, 2)
    for number, slot in enumerate(order):
        expected[slot] = torch.tensor([2.0 * number + 1, 2 * number + 2])
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
    assert plain(sampler).asked == ()  # a restart records nothing on demand
    assert sampler.asked == (("step", "greedy_ids"),)


def test_restarts_of_nothing_are_nothing(digits: Policy) -> None:
    sampler = LowConfidence(4, 2)
    trajectory = sampler(prompt_batch(Numbers(), "train", [0, 1], digits), policy=digits)
    trajectory["selected", "weight"] = torch.zeros(2, 3)
    services = Services(digits, sampler, Scorer(Numbers(), "train", digits), seed=0, update=0, chunk=3)
    assert torch.equal(services.restart(trajectory, torch.zeros(2, 3, dtype=torch.int64), 2), torch.zeros(2, 3, 2))


# ------------------------------------------------------------------------------------------- evaluation


def test_pass_at_k_counts_subsets() -> None:
    for samples in range(1, 7):
        for solved, k in itertools.product(range(samples + 1), range(1, samples + 1)):
            subsets = list(itertools.combinations(range(samples), k))
            expected = sum(any(i < solved for i in subset) for subset in subsets) / len(subsets)
            assert pass_at_k(solved, samples, k) == pytest.approx(expected, abs=1e-12)


OFFLINE = "PreferencePairs"  # decodes with another sampler: tests/test_offline_pairs.py
SAMPLERS = [c.name for c in components("sampler") if c.package == "dlmrl_kit" and c.name != OFFLINE]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_greedy_evaluation_is_deterministic_and_leaves_the_sampler_alone(sampler: str) -> None:
    algorithm, policy = build(uses=[f"sampler={sampler}"], sets=["Sampler.top_p = 0.8"]), tiny_policy()
    part = algorithm.sampler
    before = (part.behaviour, part.asked, vars(part).copy())
    torch.manual_seed(1)
    first = evaluate(policy, part, algorithm.task, size=5)
    assert (part.behaviour, part.asked, vars(part)) == before
    torch.manual_seed(2)
    assert evaluate(policy, part, algorithm.task, size=5) == first
    assert (first.decoding["temperature"], first.decoding["top_p"], first.decoding["sampler"]) == (0, 1, sampler)
    assert first.pass_at_k == {1: first.accuracy}
    prompts = prompt_batch(algorithm.task, "heldout", list(range(5)), policy)
    expected = plain(part, behaviour=type(part.behaviour)(0.0, 0, 1.0))(
        prompts, policy=policy, generator=seeding.generator("cpu", 0, "evaluate")
    )
    assert [sample["completion"] for sample in first.samples] == completion_texts(policy, expected["completion_ids"])


def tiny_policy() -> Policy:
    return Policy.from_pretrained(model_path())


def test_sampled_evaluation_counts_completions_and_puzzles() -> None:
    algorithm, policy = build(), tiny_policy()
    task: Any = algorithm.task
    score: Callable[..., dict[str, float]] = task.score

    def easier(completion: str, example: Example) -> dict[str, float]:
        return {**score(completion, example), "solved": float(completion[:1] == example.answer[0])}

    task.score = easier
    result = evaluate(policy, algorithm.sampler, task, size=5, temperature=1.0, samples_per_prompt=6, batch_size=7)
    first = [task.example("heldout", index) for index in range(5)]
    prompts = prompt_batch(task, "heldout", list(range(5)), policy, 6)
    generator, texts = seeding.generator("cpu", 0, "evaluate"), []
    decoder = plain(algorithm.sampler, behaviour=type(algorithm.sampler.behaviour)(1.0, 0, 1.0))
    for piece in prompts.split(7):
        texts += completion_texts(policy, decoder(piece, policy=policy, generator=generator)["completion_ids"])
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


def test_evaluations_that_make_no_sense_are_refused() -> None:
    algorithm = build(sets=["Sudoku4x4.num_pretrain = 0"])
    given = {"policy": tiny_policy(), "sampler": algorithm.sampler, "task": algorithm.task}
    with pytest.raises(RecipeError, match="several samples per puzzle at temperature 0 would all be the same"):
        evaluate(**given, samples_per_prompt=2)
    with pytest.raises(RecipeError, match="unknown split 'test'; available: pretrain, train, heldout"):
        evaluate(**given, split="test")
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
    bare = evaluate_path(str(run / "model"), size=2, sets=["Sampler.tokens_per_step = 8"])
    assert (bare.size, bare.decoding["tokens_per_step"]) == (2, 8)
    swapped = {"uses": ["sampler=EntropyOrder"], "sets": ["EntropyOrder.completion_length = 16"]}
    assert evaluate_path(str(run), size=2, **swapped).decoding["sampler"] == "EntropyOrder"
    assert evaluate_path("shipped:sudoku4x4", size=2).size == 2


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
