"""Each family's published generator, named by its settings, gives the tokens of an independent loop, step for step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.block_checkpoints import BLOCK, block_causal_logits, sdar_checkpoint
from support.families import make_dream, make_llada
from support.published_generators import Draw, Generation, Logits, best, dream, llada, sdar
from support.seeds import seeded
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.samplers import base
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.dynamic_low_confidence import DynamicLowConfidence
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.tempered import TemperedEntropyOrder, TemperedLowConfidence, TemperedMarginOrder
from dlmrl_kit.step_schedules.even_steps import EvenSteps
from dlmrl_kit.step_schedules.linear_time_steps import LinearTimeSteps

PROMPTS = ([3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7])
SIZES = ((9, 4), (7, 12), (10, 3), (16, 16), (16, 9))
"""Lengths and steps of Dream beside those of the default run."""
ALGORITHMS = {
    "maskgit_plus": TemperedLowConfidence,
    "topk_margin": TemperedMarginOrder,
    "entropy": TemperedEntropyOrder,
}


class Family:
    """A policy, and the independent model of its checkpoint."""

    def __init__(self, folder: Path, logits: Logits) -> None:
        self.policy, self.logits = load_policy(folder), logits
        self.known = (self.policy.mask_id, self.policy.forbidden_ids)


@pytest.fixture(scope="module")
def llada_family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("llada")
    return Family(folder, make_llada(folder))


@pytest.fixture(scope="module")
def dream_family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("dream")
    return Family(folder, make_dream(folder))


@pytest.fixture(scope="module")
def sdar_family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("sdar")
    model = sdar_checkpoint(folder)
    return Family(folder, lambda ids: block_causal_logits(model, ids))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What the kit draws in each step, in the order of the positions: the same draws go into the loop."""
    found: list[list[int]] = []
    real = base.draw

    def recorded(*args: Any) -> Tensor:
        tokens = real(*args)
        found.append(tokens.tolist())
        return tokens

    monkeypatch.setattr(base, "draw", recorded)
    return found


def generate(family: Family, sampler: Sampler, prompt: list[int]) -> Any:
    batch = TensorDict(
        {"prompt_ids": torch.tensor([prompt]), "prompt_mask": torch.ones(1, len(prompt), dtype=torch.bool)}, [1]
    )
    return sampler(seeded(batch, len(prompt)), policy=family.policy)[0]


def same_draws(drawn: list[list[int]], temperature: float) -> Draw:
    """The kit's draws, step by step."""
    steps = iter(drawn)

    def draw(probs: dict[int, list[float]]) -> dict[int, int]:
        tokens = next(steps) if probs else []
        assert all(probs[i][v] > 0 for i, v in zip(probs, tokens, strict=True))
        return dict(zip(probs, tokens, strict=True))

    return draw if temperature else best


def check(found: Any, expected: Generation) -> None:
    assert found["completion_ids"].tolist() == expected.completion
    assert found["commit_step"].tolist() == expected.commit_step()
    numbers = [len(chosen) for chosen in expected.steps if chosen]
    assert found["step", "num_committed"][found["step", "valid"]].tolist() == numbers


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    ("length", "block", "steps"), [(8, 8, 8), (8, 8, 3), (8, 4, 6), (12, 6, 8), (10, 5, 4), (6, 3, 8)]
)
def test_llada(
    llada_family: Family, drawn: list[list[int]], length: int, block: int, steps: int, temperature: float
) -> None:
    per_block = EvenSteps(steps * block // length)
    sampler = LowConfidence(length, per_block, block, temperature, stop_at_eos=False)
    for prompt in PROMPTS[:2]:
        drawn.clear()
        found = generate(llada_family, sampler, prompt)
        settings = {"length": length, "block": block, "steps": steps, "temperature": temperature}
        draw = same_draws(drawn, temperature)
        check(found, llada(llada_family.logits, prompt, *llada_family.known, draw, **settings))


@pytest.mark.parametrize(
    "behaviour", [{"temperature": 0.6}, {"temperature": 1.3, "top_k": 4}, {"temperature": 1.2, "top_p": 0.7}], ids=str
)
@pytest.mark.parametrize("steps", [2, 3, *(pytest.param(steps, marks=pytest.mark.thorough) for steps in (1, 4, 6))])
def test_sdar(sdar_family: Family, drawn: list[list[int]], steps: int, behaviour: dict[str, Any]) -> None:
    """Prompts of 5, 2 and 7 tokens, so that first blocks have 3, 2 and 1 open positions."""
    for prompt in PROMPTS:
        length = 2 * BLOCK - len(prompt) % BLOCK
        sampler = TemperedLowConfidence(length, EvenSteps(steps), BLOCK, **behaviour, stop_at_eos=False)
        drawn.clear()
        found = generate(sdar_family, sampler, prompt)
        settings: dict[str, Any] = {"length": length, "block": BLOCK, "steps": steps, "behaviour": behaviour}
        draw = same_draws(drawn, 1.0)
        check(found, sdar(sdar_family.logits, prompt, *sdar_family.known, draw, **settings))


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize(
    "behaviour", [{"temperature": 0.0}, {"temperature": 0.5}, {"temperature": 1.4, "top_p": 0.8}], ids=str
)
@pytest.mark.parametrize(
    ("length", "steps"), [(8, 8), *(pytest.param(*sizes, marks=pytest.mark.thorough) for sizes in SIZES)]
)
def test_dream(
    dream_family: Family, drawn: list[list[int]], length: int, steps: int, alg: str, behaviour: dict[str, Any]
) -> None:
    sampler = ALGORITHMS[alg](length, LinearTimeSteps(steps), **behaviour, stop_at_eos=False)
    prompt = PROMPTS[0]
    found = generate(dream_family, sampler, prompt)
    temperature = behaviour["temperature"]
    settings: dict[str, Any] = {"length": length, "steps": steps, "alg": alg, "behaviour": behaviour}
    draw = same_draws(drawn, temperature)
    check(found, dream(dream_family.logits, prompt, *dream_family.known, draw, **settings))


@pytest.mark.parametrize("behaviour", [{"temperature": 0.1}, {"temperature": 0.3, "top_k": 2}], ids=str)
@pytest.mark.parametrize(("steps", "threshold"), [(4, 0.85), (4, 0.6), (2, 0.5)])
def test_sdar_dynamic(
    sdar_family: Family, drawn: list[list[int]], steps: int, threshold: float, behaviour: dict[str, Any]
) -> None:
    """The release's default. Where steps divide the block the least number that a step commits is a constant."""
    more = 0
    for prompt in PROMPTS:
        length = 3 * BLOCK - len(prompt) % BLOCK
        options = {"block_length": BLOCK, **behaviour, "threshold": threshold, "stop_at_eos": False}
        sampler = DynamicLowConfidence(length, BLOCK // steps, **options)
        drawn.clear()
        found = generate(sdar_family, sampler, prompt)
        settings = {"length": length, "block": BLOCK, "steps": steps, "behaviour": behaviour, "threshold": threshold}
        expected = sdar(sdar_family.logits, prompt, *sdar_family.known, same_draws(drawn, 1.0), **settings)
        check(found, expected)
        more += sum(len(chosen) > BLOCK // steps for chosen in expected.steps)
    assert more > 0


def test_rows_of_a_batch_follow_the_schedule_from_their_own_blocks(sdar_family: Family) -> None:
    """First blocks have 3, 2 and 1 open positions; of 3 steps of a block the first commits 2."""
    sampler = TemperedLowConfidence(8, EvenSteps(3), BLOCK, temperature=0.0, stop_at_eos=False)
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    real = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in PROMPTS])
    batch = TensorDict({"prompt_ids": ids, "prompt_mask": real}, [len(PROMPTS)])
    found = sampler(seeded(batch), policy=sdar_family.policy)
    for row, numbers in enumerate(([2, 1, 2, 1, 1, 1], [2, 2, 1, 1, 2], [1, 2, 1, 1, 2, 1])):
        assert found["step", "num_committed"][row][found["step", "valid"][row]].tolist() == numbers
        alone = generate(sdar_family, sampler, PROMPTS[row])
        assert found["completion_ids"][row].tolist() == alone["completion_ids"].tolist()
        assert found["commit_step"][row].tolist() == alone["commit_step"].tolist()


def test_with_an_end_of_text_the_text_is_that_of_the_loop(
    llada_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaDA's release goes on behind the end, the kit does not; two tokens that come up are made ends."""
    settings = {"length": 12, "block": 6, "steps": 8, "temperature": 0.0}
    whole = [llada(llada_family.logits, prompt, *llada_family.known, best, **settings).completion for prompt in PROMPTS]
    ends = (whole[1][6], whole[2][9])
    monkeypatch.setattr(llada_family.policy, "eos_ids", ends)
    lengths = set()
    for prompt, tokens in zip(PROMPTS, whole, strict=True):
        found = generate(llada_family, LowConfidence(12, EvenSteps(4), 6, temperature=0.0), prompt)
        text = tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens)) + 1]
        assert found["completion_ids"][: len(text)].tolist() == text
        lengths.add(len(text))
    assert len(lengths) > 1
