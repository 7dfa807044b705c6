"""Seeds, files, prompts, scoring, pass@k, the dataflow plan and pre-training."""

from __future__ import annotations

import importlib
import inspect
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from core import tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tiny_runs import tiny_recipe, tiny_run
from torch import Tensor

from dlmrl_kit import seeding
from dlmrl_kit.component import Component
from dlmrl_kit.dataflow import plan
from dlmrl_kit.demonstrators.mixed_sudoku_solvers import MixedSudokuSolvers, hasty
from dlmrl_kit.errors import CheckpointError, RecipeError
from dlmrl_kit.files import atomic_folder, write_atomic
from dlmrl_kit.policies.characters import CharacterLlama, character_tokenizer
from dlmrl_kit.pretrainers.masked_diffusion import MaskedDiffusion
from dlmrl_kit.pretraining import encode_demonstrations, pretrain
from dlmrl_kit.prompts import encode, prompt_batch, training_indices
from dlmrl_kit.recipe import load_recipe
from dlmrl_kit.scoring import Scorer, completion_texts
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.training.evaluation import pass_at_k
from dlmrl_kit.training.services import Services


def test_seeds_are_stable_and_independent() -> None:
    assert seeding.derive_seed(0, 3, "a") == seeding.derive_seed(0, 3, "a")
    seeds = {seeding.derive_seed(s, u, p) for s in range(3) for u in range(20) for p in ("a", "b")}
    assert len(seeds) == 120
    assert all(0 <= seed < 2**63 for seed in seeds)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 12), per_update=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_pass_over_the_data_takes_each_puzzle_once(size: int, per_update: int, seed: int) -> None:
    drawn = [i for update in range(3 * size) for i in training_indices(size, per_update, update, seed)]
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[start : start + size]) == list(range(size))


def test_files_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two"
    folder = tmp_path / "folder"
    with atomic_folder(folder) as temporary:
        (temporary / "a").write_text("whole")

    def fail() -> None:
        with atomic_folder(folder) as temporary:
            (temporary / "a").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (folder / "a").read_text() == "whole"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.txt", "folder"]


@pytest.mark.parametrize(("samples", "solved", "k"), [(4, 1, 2), (5, 3, 2), (6, 0, 3), (3, 3, 1), (5, 2, 5)])
def test_pass_at_k_counts_subsets(samples: int, solved: int, k: int) -> None:
    subsets = list(itertools.combinations(range(samples), k))
    expected = sum(any(i < solved for i in s) for s in subsets) / len(subsets)
    assert pass_at_k(solved, samples, k) == pytest.approx(expected)


def test_prompts_are_left_padded_and_repeated() -> None:
    policy, task = tiny_policy(characters="0123456789 =:"), _Numbers()
    batch = prompt_batch(task, "train", [2, 0], policy, group_size=3)
    assert batch["group"].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch["example"].tolist() == [2, 2, 2, 0, 0, 0]
    assert batch["prompt_mask"].tolist() == [[True, True, True]] * 3 + [[False, False, True]] * 3
    assert batch["prompt_ids"][3, :2].tolist() == [policy.pad_id] * 2
    assert policy.tokenizer.decode(batch["prompt_ids"][0]) == "222"
    assert encode(policy, ["12"])["prompt_ids"].shape == (1, 2)


class _Numbers:
    """Example i is the digit i, i + 1 times; a completion is right if it repeats it; counts how often it is asked."""

    calls = 0

    def example(self, split: str, index: int) -> Example:
        return Example(str(index) * (index + 1), str(index))

    def score(self, completion: str, example: Example) -> dict[str, float]:
        self.calls += 1
        solved = float(completion == example.answer)
        return {"reward": solved, "solved": solved}


def test_completions_end_at_the_first_end_of_text_and_are_scored_once() -> None:
    policy = tiny_policy(characters="0123456789")
    one, two, eos = policy.tokenizer.convert_tokens_to_ids(["1", "2", "<eos>"])
    ids = torch.tensor([[one, eos, two], [one, eos, eos], [one, two, eos], [one, one, one]])
    assert completion_texts(policy, ids) == ["1", "1", "12", "111"]
    task = _Numbers()
    scorer = Scorer(task, "train", policy)
    assert scorer(ids, torch.tensor([1, 1, 1, 1])).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert task.calls == 3


def test_character_tokenizer_round_trips() -> None:
    tokenizer = character_tokenizer("ab (")
    assert tokenizer.decode(tokenizer("b (a")["input_ids"]) == "b (a"
    assert tokenizer("a?b")["input_ids"][1] == tokenizer.unk_token_id
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_on_demand_keys_are_asked_for_only_where_they_are_read() -> None:
    stepwise: Any = tiny_recipe("egspo_sa").build()
    assert ("step", "greedy_ids") in stepwise.sampler.asked
    plain: Any = tiny_recipe("egspo").build()
    assert plain.sampler.asked == (("step", "model_log_prob"),)
    exact: Any = tiny_recipe("reinforce_exact").build()
    assert exact.sampler.asked == ()
    assert not exact.plan.needs_reference
    kl: Any = tiny_recipe("egspo", uses=["regulariser=KLExact"]).build()
    assert kl.plan.live_reference == (("selected", "distribution"),)
    assert kl.plan.reference == ()


def test_a_component_may_not_write_what_another_wrote() -> None:
    class Overwrites(Component):
        def __init__(self) -> None:
            super().__init__()
            self.in_keys = ["reward", ("step", "valid")]
            self.out_keys = [("selected", "step"), ("selected", "weight"), "commit_step"]

    algorithm: Any = tiny_recipe("egspo").build()
    algorithm.selector = Overwrites()
    with pytest.raises(RecipeError, match="Overwrites writes 'commit_step', which a component before it"):
        plan(algorithm)


def test_a_selector_may_read_the_reward() -> None:
    class ByReward(Component):
        def __init__(self) -> None:
            super().__init__()
            self.in_keys = ["reward", ("step", "valid")]
            self.out_keys = [("selected", "step"), ("selected", "weight")]

    algorithm: Any = tiny_recipe("egspo").build()
    algorithm.selector = ByReward()
    order = [type(part).__name__ for part in plan(algorithm).rollout]
    assert order.index("FinalReward") < order.index("ByReward")


def test_hasty_solutions_have_right_rows_and_often_wrong_columns() -> None:
    task = Sudoku4x4(4, 8, num_train=200)
    examples = [task.example("train", i) for i in range(200)]
    for example in examples:
        text = hasty(example.prompt)
        assert all(sorted(text[i : i + 4]) == list("1234") for i in (0, 4, 8, 12))
        assert all(given in ("_", cell) for given, cell in zip(example.prompt, text, strict=False))
    share = sum(task.score(hasty(e.prompt), e)["solved"] for e in examples) / 200
    assert 0.1 < share < 0.35
    both = MixedSudokuSolvers(0.4).demonstrations(examples[0])
    assert both == [(examples[0].answer, 0.4), (hasty(examples[0].prompt), 0.6)]


def test_the_pretraining_loss_is_the_weighted_cross_entropy_of_masked_tokens() -> None:
    policy = tiny_policy(characters="1234_:")
    completion = torch.randint(4, 8, (5, 6), generator=torch.Generator().manual_seed(0))
    prompt = torch.randint(4, 8, (5, 3), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(prompt, dtype=torch.bool)
    found = MaskedDiffusion(min_mask=0.1).objective(policy, prompt, mask, completion, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    shift = torch.rand(1, generator=generator).item()
    noise = torch.rand(5, 6, generator=generator)
    expected = 0.0
    for row in range(5):
        t = max((shift + row / 5) % 1, 0.1)
        hidden = noise[row] < t
        ids = torch.cat([prompt[row], completion[row].masked_fill(hidden, policy.mask_id)])[None]
        full = torch.ones_like(ids, dtype=torch.bool)
        log_probs = policy(ids, full, full).log_softmax(-1)[3:]
        for position in hidden.nonzero().squeeze(-1).tolist():
            expected -= log_probs[position, completion[row, position]].item() / t
    assert found.item() == pytest.approx(expected / 30, rel=1e-5)


def test_monte_carlo_restarts_from_finished_states_give_the_reward(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, uses=["advantage=MonteCarlo"])
    seen: list[tuple[Tensor, Tensor]] = []
    original = Services.restart

    def spy(self: Services, tensordict: TensorDict, step: Tensor, n: int) -> Tensor:
        found = original(self, tensordict, step, n)
        seen.append((step, found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Services, "restart", spy)
        trajectory = run.collect(0)
    used = trajectory["selected", "weight"] > 0
    step, rewards = seen[0]
    finished = used & (step >= trajectory["step", "valid"].sum(-1)[:, None])
    assert bool(finished.any())
    expected = trajectory["reward"][:, None, None].expand_as(rewards)
    assert torch.equal(rewards[finished], expected[finished])
    assert bool(((rewards >= 0) & (rewards <= 1)).all())


TINY_PRETRAINING = [
    "CharacterLlama.hidden_size = 16",
    "CharacterLlama.num_layers = 1",
    "CharacterLlama.num_heads = 2",
    "Sudoku4x4.num_pretrain = 32",
    "MaskedDiffusion.steps = 8",
    "MaskedDiffusion.batch_size = 16",
    "MaskedDiffusion.checkpoint_every = 3",
    "MaskedDiffusion.eval_size = 4",
    "MaskedDiffusion.warmup_steps = 2",
]


def test_pretraining_learns_resumes_and_is_reproducible(tmp_path: Path) -> None:
    recipe = load_recipe("pretrain_sudoku4x4", sets=TINY_PRETRAINING)
    first = pretrain(recipe, tmp_path / "a")
    model = (tmp_path / "a/model/model.safetensors").read_bytes()

    class Stop(Exception):
        pass

    from dlmrl_kit.pretraining import PretrainRun

    original = PretrainRun._step

    def stopping(self: PretrainRun, data: Any, step: int) -> float:
        if step == 5:
            raise Stop
        return original(self, data, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainRun, "_step", stopping)
        with pytest.raises(Stop):
            pretrain(recipe, tmp_path / "b")
    assert not (tmp_path / "b/model").exists()
    second = pretrain(recipe, tmp_path / "b")
    assert (tmp_path / "b/model/model.safetensors").read_bytes() == model
    assert pretrain(recipe, tmp_path / "a").accuracy == first.accuracy == second.accuracy
    with pytest.raises(CheckpointError, match="another recipe"):
        pretrain(
            load_recipe("pretrain_sudoku4x4", sets=[*TINY_PRETRAINING, "MaskedDiffusion.seed = 1"]), tmp_path / "a"
        )


def test_pretraining_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="dlmrl train egspo"):
        pretrain(load_recipe("egspo"), tmp_path / "a")
    policy = CharacterLlama(hidden_size=16, num_layers=1, num_heads=2).load()
    task = Sudoku4x4(4, 8, num_pretrain=4)
    with pytest.raises(RecipeError, match="16 tokens, more than the sampler's completion_length = 12"):
        encode_demonstrations(task, MixedSudokuSolvers(), policy, 12)
    data = encode_demonstrations(task, MixedSudokuSolvers(), policy, 18)
    assert data.completion_ids.shape == (4, 2, 18)
    assert (data.completion_ids[..., 16:] == policy.eos_id).all()


def test_the_public_names_of_training_are_functions() -> None:
    from dlmrl_kit import training

    importlib.import_module("dlmrl_kit.training.loop")
    assert all(inspect.isfunction(getattr(training, name)) for name in training.__all__)
