"""DiffusionGemma: logits and decoding are transformers' own, and the renoising sampler has exact log-probabilities."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from block_checkpoints import CANVAS, diffusion_gemma_checkpoint, padded_batch
from safetensors.torch import load_file
from tensordict import TensorDict
from test_sdar import TINY, train
from tiny import chi_square, chi_square_limit
from torch import Tensor

from dlmrl_kit.advantages.monte_carlo import MonteCarlo
from dlmrl_kit.audit.audit import audit_algorithm
from dlmrl_kit.audit.bank import true_gradient
from dlmrl_kit.audit.enumeration import check_draws, enumerate_trajectories
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.audit.variants import exact_algorithm
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.trajectory import progress, states
from dlmrl_kit.likelihoods.step_log_prob import StepLogProb
from dlmrl_kit.likelihoods.step_token_log_prob import StepTokenLogProb
from dlmrl_kit.policies.adapter import lora_config
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.policies.families.diffusion_gemma import DiffusionGemmaPolicy
from dlmrl_kit.rollout.environment import DenoisingEnv, SamplerPolicy
from dlmrl_kit.rollout.services import Services
from dlmrl_kit.samplers.entropy_bound_renoising import EntropyBoundRenoising
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.tasks.sudoku import Sudoku4x4

LENGTHS = (9, 3, 5, 1, 7)  # prompts longer and shorter than the sliding window of 6
LENGTH = 2 * CANVAS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("diffusion-gemma")
    return folder, diffusion_gemma_checkpoint(folder)


@pytest.fixture(scope="module")
def policy(checkpoint: tuple[Path, Any]) -> Any:
    return Policy.from_pretrained(checkpoint[0])


def batch() -> tuple[Tensor, Tensor]:
    return padded_batch(16, LENGTHS, LENGTH)


def prompts() -> TensorDict:
    ids, mask = batch()
    width = max(LENGTHS)
    return TensorDict({"prompt_ids": ids[:, :width], "prompt_mask": mask[:, :width]}, [len(LENGTHS)])


def reference(model: Any, row: Tensor, canvas: int) -> Tensor:
    """Transformers' own forward on one unpadded row: [CANVAS, V]."""
    start = len(row) - LENGTH + canvas * CANVAS
    given = {"input_ids": row[None, :start], "decoder_input_ids": row[None, start : start + CANVAS]}
    logits: Tensor = model(**given).logits[0]
    return logits


def test_logits_are_those_of_transformers(checkpoint: tuple[Path, Any], policy: Any) -> None:
    assert isinstance(policy, DiffusionGemmaPolicy)
    assert (policy.block_size, policy.noise) == (CANVAS, "uniform")
    tokens = policy.tokenizer.convert_tokens_to_ids
    assert policy.eos_id == tokens("<turn|>")
    assert policy.prefix_ids == (tokens("<bos>"),)
    assert {policy.mask_id, policy.vocab_size - 1} <= set(policy.forbidden_ids)
    ids, mask = batch()
    width = max(LENGTHS)
    with torch.no_grad():
        rows = [[reference(checkpoint[1], row[real], c) for c in (0, 1)] for row, real in zip(ids, mask, strict=True)]
        for canvas in (0, 1):
            asked = torch.zeros_like(mask)
            asked[:, width + canvas * CANVAS : width + (canvas + 1) * CANVAS] = True
            expected = torch.cat([row[canvas] for row in rows])
            torch.testing.assert_close(policy(ids, mask, asked), expected, atol=1e-5, rtol=0)
        mixed = torch.zeros_like(mask)  # rows at different canvases, one at both, one at none
        mixed[0, width:] = True
        mixed[1, width + 5] = True
        mixed[2, width + 1 : width + 3] = True
        mixed[4, width + 3 : width + 6] = True
        places = [(i, j - width) for i, j in mixed.nonzero().tolist()]
        expected = torch.stack([rows[i][j // CANVAS][j % CANVAS] for i, j in places])
        torch.testing.assert_close(policy(ids, mask, mixed), expected, atol=1e-5, rtol=0)
        index = torch.tensor([[width + 7, width, width + 2]] * len(LENGTHS))
        expected = torch.stack([torch.stack([row[1][3], row[0][0], row[0][2]]) for row in rows])
        torch.testing.assert_close(policy(ids, mask, index), expected, atol=1e-5, rtol=0)
        assert policy(ids, mask, torch.zeros_like(mask)).shape == (0, policy.vocab_size)


def test_logits_depend_exactly_on_the_canvas_and_what_is_before_it(policy: Any) -> None:
    ids, mask = padded_batch(16, (5,), LENGTH)
    asked = torch.zeros_like(mask)
    asked[:, 5 : 5 + CANVAS] = True
    with torch.no_grad():
        before = policy(ids, mask, asked)
        for changed in range(ids.shape[1]):
            other = ids.clone()
            other[0, changed] = (ids[0, changed] + 1) % 16
            moved = (policy(other, mask, asked) - before).abs().amax(-1) > 0
            assert bool((moved == (changed < 5 + CANVAS)).all())


def test_masks_and_broken_canvases_are_refused(policy: Any) -> None:
    ids, mask = batch()
    asked = torch.zeros_like(mask)
    asked[:, -1] = True
    masked = ids.index_fill(1, torch.tensor([ids.shape[1] - 2]), policy.mask_id)
    with pytest.raises(UserError, match="no mask"):
        policy(masked, mask, asked)
    asked = torch.zeros_like(mask)
    asked[:, 0] = True
    with pytest.raises(UserError, match="whole canvases of 4"):
        policy(ids, mask, asked)
    with pytest.raises(UserError, match="take a sampler that does, such as EntropyBoundRenoising"):
        LowConfidence(LENGTH, 1, CANVAS)(prompts(), policy=policy)
    with pytest.raises(UserError, match=r"set EntropyBoundRenoising\.block_length = 4"):
        EntropyBoundRenoising(LENGTH, 3)(prompts(), policy=policy)
    with pytest.raises(UserError, match="fills masks"):
        DenoisingEnv(Sudoku4x4(num_train=4), policy, LENGTH, batch_size=2)
    with pytest.raises(ValueError, match="one that fills masks"):
        SamplerPolicy(EntropyBoundRenoising(LENGTH), policy)


def test_saved_and_read_again_it_is_the_same(checkpoint: tuple[Path, Any], policy: Any, tmp_path: Path) -> None:
    original = load_file(checkpoint[0] / "model.safetensors")
    policy.save_pretrained(tmp_path / "saved")
    policy.save_own_layout(tmp_path / "own")
    assert (tmp_path / "own" / "config.json").read_bytes() == (checkpoint[0] / "config.json").read_bytes()
    for name in ("saved", "own"):
        tensors = load_file(tmp_path / name / "model.safetensors")
        assert tensors.keys() == original.keys()
        assert all(torch.equal(tensors[key], original[key]) for key in original)
        again = Policy.from_pretrained(tmp_path / name)
        assert (again.block_size, again.eos_id, again.mask_id) == (CANVAS, policy.eos_id, policy.mask_id)


def test_encoder_and_decoder_share_the_adapter(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    policy: Any = Policy.from_pretrained(checkpoint[0])
    base = {name: p.clone() for name, p in policy.model.named_parameters()}
    policy.add_adapter(lora_config(policy.model, 4, 8))
    assert all(".lora_" in name for name, _ in policy.trainable())
    modules = {name.partition(".lora_")[0].split(".")[-1] for name, _ in policy.trainable()}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    ids, mask = batch()
    asked = torch.zeros_like(mask)
    asked[:, -CANVAS:] = True
    with torch.no_grad():
        tuned = policy(ids, mask, asked)
        with policy.reference():
            plain = policy(ids, mask, asked)
        with policy.merged():
            torch.testing.assert_close(policy(ids, mask, asked), tuned, atol=1e-5, rtol=0)
        assert torch.equal(policy(ids, mask, asked), tuned)
        assert (plain - tuned).abs().max() > 0.05
        policy.save_pretrained(tmp_path / "merged")
        policy.save_adapter(tmp_path / "adapter")
        for name in ("merged", "adapter"):
            again: Any = Policy.from_pretrained(tmp_path / name)
            torch.testing.assert_close(again(ids, mask, asked), tuned, atol=1e-5, rtol=0)
            layer = again.model.model.decoder.layers[0].self_attn.q_proj.weight
            assert layer is again.model.model.encoder.language_model.layers[0].self_attn.q_proj.weight
    now = dict(policy.model.named_parameters())
    assert all(torch.equal(p, now[n if n in now else _inside(n)]) for n, p in base.items())


def _inside(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{module}.base_layer.{leaf}"


class Seen(DiffusionGemmaPolicy):
    """Keeps how many prefixes each forward encoded, and compares every forward with one without the cache."""

    def __init__(self, policy: Any) -> None:
        super().__init__(policy.model, policy.tokenizer)
        self.eos_id = policy.eos_id
        self.encoded: list[int] = []

    def _encode(self, ids: Tensor, mask: Tensor) -> Any:
        self.encoded.append(len(ids))
        return super()._encode(ids, mask)

    def hidden_at(self, *given: Tensor) -> Tensor:
        found = super().hidden_at(*given)
        count = len(self.encoded)
        self._caching = False
        torch.testing.assert_close(found, super().hidden_at(*given), atol=1e-5, rtol=0)
        self._caching, self.encoded = True, self.encoded[:count]
        return found


def test_prefixes_are_encoded_once(policy: Any) -> None:
    seen = Seen(policy)
    sampler = EntropyBoundRenoising(LENGTH, CANVAS, steps=5, confidence_threshold=0, stop_at_eos=False)
    sampler(prompts(), policy=seen, generator=torch.Generator().manual_seed(0))
    assert seen.encoded == [len(LENGTHS)] * 2
    seen.encoded = []
    early = EntropyBoundRenoising(LENGTH, CANVAS, steps=5, confidence_threshold=2.0)  # rows part ways
    found = early(prompts(), policy=seen, generator=torch.Generator().manual_seed(0))
    assert len(found["step", "valid"].sum(-1).unique()) > 1
    assert len(seen.encoded) < int(found["step", "valid"].any(0).sum())


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


@pytest.mark.parametrize("threshold", [1e-9, 0.55])
def test_generations_have_the_frequencies_of_transformers_generate(tmp_path: Path, threshold: float) -> None:
    """Without the self-conditioning signal, transformers' ``generate`` draws what the listed trajectories say."""
    model = diffusion_gemma_checkpoint(tmp_path, canvas=2)
    torch.nn.init.zeros_(model.model.decoder.self_conditioning.down_proj.weight)
    policy = Exact(model, Policy.from_pretrained(tmp_path).tokenizer)
    kept = (3, 4, 5)  # the tokens that may be drawn in both
    policy.forbidden_ids = tuple(i for i in range(policy.vocab_size) if i not in kept)
    policy.eos_id = None
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
    """Against differences of the expected reward, which know nothing of log-probabilities."""
    problem = Problem(vocab=2, length=2, seed=8)

    def value() -> float:
        _, listed = listing(problem, steps=3)
        rewards = problem.score(listed["completion_ids"], listed["example"])
        return float((listed["probability"] * rewards).sum())

    sampler, listed = listing(problem, steps=3)
    listed.set("reward", problem.score(listed["completion_ids"], listed["example"]))
    gradient = true_gradient(listed, problem.denoiser, sampler, 1)
    flat, size = [], 1e-5
    with torch.no_grad():
        for parameter in problem.denoiser.parameters_list():
            for i in range(parameter.numel()):
                parameter.view(-1)[i] += size
                up = value()
                parameter.view(-1)[i] -= 2 * size
                flat.append((up - value()) / (2 * size))
                parameter.view(-1)[i] += size
    assert gradient.norm() > 1e-3
    torch.testing.assert_close(gradient, torch.tensor(flat, dtype=torch.float64), atol=1e-8, rtol=1e-5)


def test_the_audit_accepts_it() -> None:
    algorithm = exact_algorithm(EntropyBoundRenoising(16, steps=2, entropy_bound=0.6))
    problems = [Problem(vocab=2, length=3, seed=5), Problem(vocab=2, length=2, policy="network", seed=6, spread=4.0)]
    report = audit_algorithm(algorithm, problems=problems, attribution=False)
    assert report.exact
    assert report.unbiased
    assert all(measured.gradient_norm > 1e-3 for measured in report.measured)
    tokens = exact_algorithm(EntropyBoundRenoising(16, steps=2, entropy_bound=0.6), likelihood=StepTokenLogProb())
    assert audit_algorithm(tokens, problems=problems[:1], attribution=False).unbiased


def rolled(policy: Any, sampler: EntropyBoundRenoising, seed: int = 0) -> TensorDict:
    return sampler(prompts(), policy=policy, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("likelihood", [StepLogProb, StepTokenLogProb])
def test_recorded_log_probabilities_are_recomputed(policy: Any, likelihood: Any) -> None:
    sampler = EntropyBoundRenoising(LENGTH, CANVAS, steps=5, entropy_bound=0.8, confidence_threshold=1.5)
    sampler.ask_for(sampler.optional_keys)
    trajectory = rolled(policy, sampler)
    valid = trajectory["step", "valid"]
    step = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    trajectory["selected"] = TensorDict({"step": step, "weight": valid.float()}, [len(LENGTHS)])
    part = likelihood()
    part.ask_for([("selected", "entropy")])
    found = part(trajectory, policy=policy, sampler=sampler)["selected"]
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
        rest = {key: value.squeeze(1) for key, value in progress(trajectory, at).items()}
        assert rest["steps_in_block"].tolist() == [step % 4] * len(LENGTHS)
        given = prompts().update(rest)
        again = sampler.resume(given, states(trajectory, at, policy.mask_id).squeeze(1), policy=policy)
        kept = trajectory["commit_step"] < step
        assert torch.equal(again["completion_ids"][kept], trajectory["completion_ids"][kept])
        assert bool((again["commit_step"][kept] == -1).all())
        assert again["step", "valid"].sum(-1).tolist() == [8 - step] * len(LENGTHS)
    slots = torch.ones(len(LENGTHS), 1)
    trajectory["selected"] = TensorDict({"step": torch.full_like(slots, 3).long(), "weight": slots}, [len(LENGTHS)])
    seen: list[Tensor] = []
    services = Services(policy, sampler, lambda ids, _: seen.append(ids) or ids[:, 0].float(), 0, 0, 100)
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
    services = Services(policy, sampler, lambda ids, _: (ids % 2).float().mean(-1), 0, 0, 100)
    found = services.call(MonteCarlo(), trajectory)
    assert bool(found["selected", "advantage"].isfinite().all())


def test_ends_of_text_stop_the_canvases_behind(policy: Any) -> None:
    ended = copy.copy(policy)
    ended.eos_id = None
    sampler = EntropyBoundRenoising(LENGTH, CANVAS, steps=2)
    texts = rolled(ended, sampler)["completion_ids"]
    ended.eos_id = int(texts[0, 1])
    found = rolled(ended, sampler)
    assert int(found["step", "valid"][0].sum()) == 2
    assert found["commit_step"][0, CANVAS:].tolist() == [sampler.max_steps] * CANVAS
    assert found["completion_ids"][0, CANVAS:].tolist() == [ended.eos_id] * CANVAS


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


def test_it_trains_from_the_command_line(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    """On digits alone, so that some of the cells are right; LoRA changes only the adapted layers."""
    others = tuple(i for i in range(22) if not 1 <= i <= 4)
    own = (f"Pretrained.path='{checkpoint[0]}'", f"Pretrained.forbidden_ids={others}", "Pretrained.lora_rank=4")
    steps = ("Sampler.block_length=4", "EntropyBoundRenoising.steps=3", "EntropyBoundRenoising.entropy_bound=1.0")
    result = train(tmp_path / "run", "egspo_sa", *TINY, *own, *steps, uses=("sampler=EntropyBoundRenoising",))
    assert "old and new log-probabilities agree before the first update" in result.output
    before = load_file(checkpoint[0] / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    adapted = re.compile(r"model\.decoder\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
    assert moved == {name for name in before if adapted.fullmatch(name)}
