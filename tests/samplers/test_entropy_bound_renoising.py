"""The renoising sampler decodes as transformers does and has exact log-probabilities."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from support.block_checkpoints import CANVAS, diffusion_gemma_checkpoint
from support.diffusion_gemma import LENGTH, LENGTHS, prompts
from support.exact_gradients import check_audit, check_gradient
from support.seeds import seeded
from support.statistics import chi_square, chi_square_limit
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.advantages.monte_carlo import MonteCarlo
from dlmrl_kit.audit.enumeration import check_draws, enumerate_trajectories
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.core.keys import Key
from dlmrl_kit.core.trajectory import canvas_state, states
from dlmrl_kit.likelihoods.steps import StepLogProb, StepTokenLogProb
from dlmrl_kit.policies.families.diffusion_gemma import DiffusionGemmaPolicy
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.rollout.services import UpdateServices
from dlmrl_kit.samplers.entropy_bound_renoising import EntropyBoundRenoising


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("diffusion-gemma")
    return folder, diffusion_gemma_checkpoint(folder)


@pytest.fixture(scope="module")
def policy(checkpoint: tuple[Path, Any]) -> Any:
    return load_policy(checkpoint[0])


def test_acceptance_and_temperature_are_those_of_transformers() -> None:
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
        EntropyBoundSampler,
        EntropyBoundSamplerConfig,
        LinearTemperatureScheduleLogitsProcessor,
    )

    torch.manual_seed(0)
    sampler = EntropyBoundRenoising(6, steps=7, entropy_bound=0.9)
    theirs = EntropyBoundSampler(EntropyBoundSamplerConfig(0.9), 6, 5, 7)
    schedule = LinearTemperatureScheduleLogitsProcessor(0.4, 0.8, 7)
    accepted = set()
    for step in range(7):
        raw = 3 * torch.randn(40, 6, 5, dtype=torch.float64)
        logits = schedule(None, raw, cur_step=7 - step)
        temperature = sampler.temperature_at(torch.full((40,), step))
        torch.testing.assert_close(raw / temperature[:, None, None], logits)
        ids = torch.zeros(40, 6, dtype=torch.int64)
        theirs.accept_canvas(ids, ids, logits, 7 - step)
        entropies = torch.distributions.Categorical(logits=logits).entropy()
        found = sampler.accepted(entropies)
        assert torch.equal(found, theirs.accepted_token_mask)
        accepted |= set(found.sum(-1).tolist())
    assert accepted == {1, 2, 3, 4, 5, 6}


class Exact(DiffusionGemmaPolicy):
    """Gives its logits to the sampler in float64, so that probabilities sum to 1 to the audit's precision."""

    def head(self, hidden: Tensor) -> Tensor:
        return super().head(hidden).double()


@pytest.mark.thorough
@pytest.mark.parametrize("threshold", [1e-9, 0.55])
def test_generations_have_the_frequencies_of_transformers_generate(tmp_path: Path, threshold: float) -> None:
    """Without the self-conditioning signal, transformers' ``generate`` draws what the listed trajectories say."""
    model = diffusion_gemma_checkpoint(tmp_path, canvas=2)
    torch.nn.init.zeros_(model.model.decoder.self_conditioning.down_proj.weight)
    policy = Exact(model, load_policy(tmp_path).tokenizer)
    kept = (3, 4, 5)  # the tokens that may be drawn in both
    policy.forbidden_ids = tuple(i for i in range(policy.vocab_size) if i not in kept)
    policy.eos_ids = ()
    sampler = EntropyBoundRenoising(2, steps=3, entropy_bound=0.5, confidence_threshold=threshold)
    ids = torch.tensor([[2, 7, 9]])
    given = {"prompt_ids": ids, "prompt_mask": torch.ones_like(ids, dtype=torch.bool), "group": torch.zeros(1)}
    listed = enumerate_trajectories(sampler, policy, TensorDict({**given, "example": torch.zeros(1)}, [1]))
    assert listed["probability"].sum().item() == pytest.approx(1)
    expected: dict[tuple[int, ...], float] = Counter()
    for text, probability in zip(listed["completion_ids"].tolist(), listed["probability"].tolist(), strict=True):
        expected[tuple(text)] += probability

    draws = 3000
    found = generated(model, ids, kept, draws, threshold)
    texts = sorted(expected)
    assert set(found) <= set(texts)
    statistic, degrees = chi_square([found[t] for t in texts], [expected[t] for t in texts])
    assert statistic < chi_square_limit(degrees)


def generated(model: Any, ids: Tensor, kept: tuple[int, ...], draws: int, threshold: float) -> Counter[tuple[int, ...]]:
    """Completions of transformers' ``generate``, with noise and predictions restricted to the tokens ``kept``."""
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as generation

    def initialize(self: Any, batch_size: int, device: Any) -> Tensor:
        return torch.tensor(kept)[torch.randint(len(kept), (batch_size, self.canvas_length))]

    def restrict(input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        keep = torch.zeros(scores.shape[-1], dtype=torch.bool)
        keep[list(kept)] = True
        return scores.masked_fill(~keep, -1e30)

    original = generation.EntropyBoundSampler.initialize_canvas
    generation.EntropyBoundSampler.initialize_canvas = initialize
    try:
        torch.manual_seed(0)
        output = model.generate(
            ids.expand(draws, -1),
            max_new_tokens=2,
            max_denoising_steps=3,
            sampler_config=generation.EntropyBoundSamplerConfig(entropy_bound=0.5),
            confidence_threshold=threshold,
            eos_token_id=None,
            logits_processor=_processors(restrict),
        )
    finally:
        generation.EntropyBoundSampler.initialize_canvas = original
    return Counter(map(tuple, output.sequences[:, ids.shape[1] :].tolist()))


def _processors(function: Any) -> Any:
    from transformers import LogitsProcessor, LogitsProcessorList

    class Restrict(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor, cur_step: Any = None) -> Tensor:
            return function(input_ids, scores)

    return LogitsProcessorList([Restrict()])


PROBLEMS = [
    (Problem(vocab=2, length=3, seed=1), {"steps": 3}),
    (Problem(vocab=3, length=2, prompts=2, policy="network", seed=2), {"steps": 3, "temperature": 0.7}),
    (Problem(vocab=2, length=4, block_length=2, seed=3), {"steps": 2}),
    (Problem(vocab=2, length=4, block_length=2, eos=True, seed=4), {"steps": 2, "top_p": 0.8}),
]


def listing(problem: Problem, **settings: Any) -> tuple[EntropyBoundRenoising, Any]:
    options = {"entropy_bound": 0.6, "confidence_threshold": 0.5, **settings}
    sampler = EntropyBoundRenoising(problem.length, problem.block_length, **options)
    return sampler, enumerate_trajectories(sampler, problem.denoiser, problem.batch())


@pytest.mark.parametrize(("problem", "settings"), PROBLEMS, ids=lambda p: "")
def test_probabilities_are_exact_on_a_tiny_vocabulary(problem: Problem, settings: dict[str, Any]) -> None:
    sampler, listed = listing(problem, **settings)
    sums = torch.zeros(problem.prompts, dtype=torch.float64).index_add(0, listed["group"], listed["probability"])
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-12)
    accepted = listed["step", "num_committed"][listed["step", "valid"]]
    assert {1, problem.length if problem.block_length is None else 2} <= set(accepted.tolist())
    check_draws(sampler, problem.denoiser, problem.batch(), listed, 2000)
    assert check_by_hand(problem, sampler, listed) > 0


def check_by_hand(problem: Problem, sampler: EntropyBoundRenoising, listed: Any) -> int:
    """Recomputes every probability with plain loops from the stored states; returns how many steps were drawn."""
    noise, drawn = problem.vocab, 0
    probability = []
    for row in listed:
        total = 1.0
        for block in {position // sampler.block_length for position in range(problem.length)}:
            start, end = block * sampler.block_length, (block + 1) * sampler.block_length
            last = int(row["commit_step"][start])
            if last == sampler.max_steps:
                continue  # not begun: the text ended
            total *= noise ** -float(end - start)
            first = 0 if block == 0 else int(row["commit_step"][start - 1]) + 1
            for step in range(first, last):
                state = row["step", "state_ids"][step][None].long()
                after = row["step", "state_ids"][step + 1]
                ids = torch.cat([row["prompt_ids"][None], state], 1)
                logits = problem.denoiser.model(ids, torch.ones_like(ids).bool()).detach()
                kept = row["step", "accepted"][step].tolist()
                left = (sampler.steps - (step - first)) / sampler.steps
                for position in range(start, end):
                    if not kept[position]:
                        total /= noise
                        continue
                    scaled = logits[0, 1 + position, :noise] / (0.4 + 0.4 * left) / sampler.behaviour.temperature
                    probs = scaled.double().softmax(-1)
                    if sampler.behaviour.top_p < 1:
                        probs = _nucleus(probs, sampler.behaviour.top_p)
                    total *= float(probs[after[position]])
                    drawn += 1
        probability.append(total)
    torch.testing.assert_close(torch.tensor(probability).double(), listed["probability"], atol=1e-7, rtol=1e-5)
    return drawn


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    order = sorted(range(len(probs)), key=lambda v: -float(probs[v]))
    kept, mass = [], 0.0
    for v in order:
        if mass >= top_p:
            break
        kept.append(v)
        mass += float(probs[v])
    return torch.stack([probs[v] if v in kept else torch.zeros_like(probs[v]) for v in range(len(probs))]) / mass


def test_the_gradient_is_that_of_the_expected_reward() -> None:
    problem = Problem(vocab=2, length=2, seed=8)
    check_gradient(problem, lambda: listing(problem, steps=3))


def test_the_audit_accepts_it() -> None:
    check_audit(EntropyBoundRenoising(16, steps=2, entropy_bound=0.6))


def rolled(policy: Any, sampler: EntropyBoundRenoising, keys: Collection[Key] = ()) -> TensorDict:
    return sampler(seeded(prompts()), policy=policy, keys=keys)


@pytest.mark.parametrize("likelihood", [StepLogProb, StepTokenLogProb])
def test_recorded_log_probabilities_are_recomputed(policy: Any, likelihood: Any) -> None:
    sampler = EntropyBoundRenoising(LENGTH, CANVAS, steps=5, entropy_bound=0.8, confidence_threshold=1.5)
    trajectory = rolled(policy, sampler, sampler.optional_keys)
    valid = trajectory["step", "valid"]
    step = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    trajectory["selected"] = TensorDict({"step": step, "weight": valid.float()}, [len(LENGTHS)])
    found = likelihood()(trajectory, policy=policy, sampler=sampler, keys=[("selected", "entropy")])["selected"]
    for key in ("log_prob", "entropy"):
        torch.testing.assert_close(found[key].detach(), trajectory["step", key], atol=1e-4, rtol=0)
    final = (trajectory["commit_step"][:, None, :] == step[:, :, None]).any(-1)
    assert torch.equal(trajectory["step", "log_prob"][final], torch.zeros(int(final.sum())))
    assert (trajectory["step", "log_prob"][valid & ~final] < 0).all()
    committed = trajectory["step", "num_committed"]
    assert torch.equal(committed, trajectory["step", "accepted"].sum(-1))
    last = trajectory["step", "greedy_ids"][final]  # the last step of a block writes its best guess
    rows = final.nonzero()[:, 0]
    done = trajectory["commit_step"][rows] == final.nonzero()[:, 1:]
    assert torch.equal(last[done].long(), trajectory["completion_ids"][rows][done])


def test_states_are_stored_and_a_restart_goes_on_from_them(policy: Any) -> None:
    sampler = EntropyBoundRenoising(LENGTH, CANVAS, steps=4, confidence_threshold=0, stop_at_eos=False)
    trajectory = rolled(policy, sampler)
    trajectory["example"] = torch.arange(len(LENGTHS))
    assert trajectory["step", "valid"].sum(-1).tolist() == [8] * len(LENGTHS)
    for step in (0, 1, 3, 4, 6):
        at = torch.full((len(LENGTHS), 1), step)
        rest = {key: value.squeeze(1) for key, value in canvas_state(trajectory, at).items()}
        assert rest["steps_in_block"].tolist() == [step % 4] * len(LENGTHS)
        given = seeded(prompts()).update(rest)
        again = sampler.resume(given, states(trajectory, at, policy.mask_id).squeeze(1), policy=policy)
        kept = trajectory["commit_step"] < step
        assert torch.equal(again["completion_ids"][kept], trajectory["completion_ids"][kept])
        assert bool((again["commit_step"][kept] == -1).all())
        assert again["step", "valid"].sum(-1).tolist() == [8 - step] * len(LENGTHS)
    ones = torch.ones(len(LENGTHS), 1)
    trajectory["selected"] = TensorDict({"step": torch.full_like(ones, 3).long(), "weight": ones}, [len(LENGTHS)])
    seen: list[Tensor] = []
    services = UpdateServices(policy, sampler, lambda ids, _: seen.append(ids) or ids[:, 0].float(), 100)
    rewards = services.restart(trajectory, trajectory["selected", "step"], 2)
    assert rewards.shape == (len(LENGTHS), 1, 2)
    first = trajectory["completion_ids"][:, :CANVAS].repeat_interleave(2, 0)
    assert torch.equal(seen[0][:, :CANVAS], first)  # only the greedy last step of the first block was left


def test_monte_carlo_advantages_run(policy: Any) -> None:
    sampler = EntropyBoundRenoising(LENGTH, CANVAS, steps=3, confidence_threshold=0)
    trajectory = rolled(policy, sampler)
    rows = len(LENGTHS)
    trajectory.update({"example": torch.arange(rows), "group": torch.zeros(rows).long(), "reward": torch.ones(rows)})
    trajectory["selected"] = TensorDict({"step": torch.tensor([[0, 2]] * rows), "weight": torch.ones(rows, 2)}, [rows])
    services = UpdateServices(policy, sampler, lambda ids, _: (ids % 2).float().mean(-1), 100)
    found = services.call(MonteCarlo(), trajectory)
    assert bool(found["selected", "advantage"].isfinite().all())


def test_ends_of_text_stop_the_canvases_behind(policy: Any) -> None:
    ended = copy.copy(policy)
    ended.eos_ids = ()
    sampler = EntropyBoundRenoising(LENGTH, CANVAS, steps=2)
    texts = rolled(ended, sampler)["completion_ids"]
    first, second = int(texts[0, 1]), int(texts[1, 2])
    assert first != second
    ended.eos_ids = (first, second)
    found = rolled(ended, sampler)
    for row in (0, 1):
        assert int(found["step", "valid"][row].sum()) == 2
        assert found["commit_step"][row, CANVAS:].tolist() == [sampler.max_steps] * CANVAS
        assert found["completion_ids"][row, CANVAS:].tolist() == [first] * CANVAS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"entropy_bound": 0.0}, "entropy_bound"),
        ({"first_temperature": 0.0}, "first_temperature"),
        ({"last_temperature": math.inf}, "last_temperature"),
        ({"confidence_threshold": -1.0}, "confidence_threshold"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EntropyBoundRenoising(8, **settings)
