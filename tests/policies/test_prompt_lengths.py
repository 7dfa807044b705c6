"""Prompts of different lengths: no column of shared padding is computed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.block_checkpoints import BLOCK, CANVAS, diffusion_gemma_checkpoint, sdar_checkpoint
from support.checkpoints import MASKED, dream_checkpoint, llada_checkpoint, llada_moe_checkpoint, masked_checkpoint
from support.policies import tiny_policy
from support.seeds import seeded
from tensordict import TensorDict
from torch import Tensor

import dlmrl_kit.core.policy
from dlmrl_kit.core.policy import completion_logits
from dlmrl_kit.core.trajectory import unpadded
from dlmrl_kit.likelihoods.block_replay import BlockReplay
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.policies import block_causal
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.entropy_bound_renoising import EntropyBoundRenoising
from dlmrl_kit.samplers.low_confidence import LowConfidence

LENGTHS = (5, 2, 6, 1)
EXTRA = 3
LENGTH = 2 * CANVAS
FAMILIES: dict[str, Callable[[Path], Any]] = {
    "llama": lambda folder: None,
    "llada": llada_checkpoint,
    "llada_moe": llada_moe_checkpoint,
    "dream": dream_checkpoint,
    "sdar": sdar_checkpoint,
    "diffusion_gemma": diffusion_gemma_checkpoint,
    **{kind: functools.partial(masked_checkpoint, kind=kind) for kind in MASKED},
}


def load(family: str, folder: Path) -> TransformersPolicy:
    if family == "llama":
        return tiny_policy().double()
    FAMILIES[family](folder)
    policy = load_policy(folder).double()
    if hasattr(policy.model, "set_experts_implementation"):
        policy.model.set_experts_implementation("eager")  # grouped products have no double precision
    return policy


def sampler_for(policy: TransformersPolicy) -> Any:
    if policy.noise == "uniform":
        return EntropyBoundRenoising(LENGTH, steps=3, block_length=CANVAS, stop_at_eos=False)
    return LowConfidence(LENGTH, 2, policy.block_size, temperature=0.8, stop_at_eos=False)


def prompts(policy: TransformersPolicy, extra: int = 0, lengths: tuple[int, ...] = LENGTHS) -> TensorDict:
    """Left-padded prompts with ``extra`` columns that are padding in every row; what is in them must not matter."""
    width = max(lengths)
    allowed = [i for i in range(len(policy.tokenizer)) if i not in policy.forbidden_ids]
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor(allowed)[torch.randint(len(allowed), (len(lengths), width + EXTRA), generator=generator)]
    ids = torch.cat([ids[:, width : width + extra], ids[:, :width]], dim=1)
    mask = torch.arange(width + extra) >= width + extra - torch.tensor(lengths)[:, None]
    return TensorDict({"prompt_ids": ids, "prompt_mask": mask}, [len(lengths)])


def computed(policy: TransformersPolicy, sampler: Any, prompt: TensorDict, likelihoods: list[Any]) -> list[Tensor]:
    """A rollout, the log-probabilities of its steps, and the gradient of each likelihood."""
    found = sampler(seeded(prompt, 1), policy=policy)
    valid = found["step", "valid"]
    found["selected", "step"] = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    found["selected", "weight"] = valid.double()
    out = [found["completion_ids"], found["commit_step"], found["step", "log_prob"], found["step", "entropy"]]
    for likelihood in likelihoods:
        log_prob = likelihood(found.copy(), policy=policy, sampler=sampler)["selected", "log_prob"]
        coefficient = torch.linspace(-1, 1, log_prob.numel(), dtype=torch.float64).view_as(log_prob)
        policy.zero_grad()
        (coefficient * log_prob).sum().backward()
        out += [log_prob.detach(), *(p.grad.clone() for _, p in policy.trainable() if p.grad is not None)]
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_padding_changes_nothing_and_is_not_computed(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(family, tmp_path)
    sampler = sampler_for(policy)
    likelihoods = [StepLogProb(), *([BlockReplay()] if family == "sdar" else [])]
    widths: list[int] = []
    original = policy.features

    def seen(input_ids: Tensor, *given: Any) -> Tensor:
        widths.append(input_ids.shape[1])
        return original(input_ids, *given)

    monkeypatch.setattr(policy, "features", seen)
    expected = computed(policy, sampler, prompts(policy), likelihoods)
    assert max(widths) == max(LENGTHS) + LENGTH  # less where the longest row is finished
    assert expected[2].std() > 1e-3
    found = computed(policy, sampler, prompts(policy, EXTRA), likelihoods)
    assert max(widths) == max(LENGTHS) + LENGTH
    assert widths[: len(widths) // 2] == widths[len(widths) // 2 :]
    for module in (dlmrl_kit.core.policy, block_causal):
        monkeypatch.setattr(module, "unpadded", lambda *prompt: prompt)
    everything = computed(policy, sampler, prompts(policy, EXTRA), likelihoods)
    assert max(widths) == max(LENGTHS) + EXTRA + LENGTH
    for other in (found, everything):
        assert len(other) == len(expected)
        for one, two in zip(other, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_replay_computes_no_shared_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy: Any = load("sdar", tmp_path)
    prompt = prompts(policy, EXTRA)
    completion = torch.full((len(LENGTHS), LENGTH), 7)
    widths: list[int] = []
    original = policy.attend

    def attend(ids: Tensor, *given: Any) -> Tensor:
        widths.append(ids.shape[1])
        found: Tensor = original(ids, *given)
        return found

    monkeypatch.setattr(policy, "attend", attend)
    with torch.no_grad():
        policy.replayed(*prompt.values(), completion, completion, torch.ones_like(completion, dtype=torch.bool))
    assert widths == [max(LENGTHS) + LENGTH + BLOCK - 1 + LENGTH]


@pytest.mark.parametrize("real", [0, 1, 4])
def test_rows_that_go_on_are_as_wide_as_the_longest_of_them(real: int) -> None:
    ids, mask = torch.arange(12).view(2, 6), torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 6 - real :] = True
    mask[1, 6 - real // 2 :] = True
    short, still = unpadded(ids, mask)
    assert torch.equal(short, ids[:, 6 - real :])
    assert torch.equal(still, mask[:, 6 - real :])
    whole = torch.ones_like(mask)
    assert unpadded(ids, whole)[0] is ids  # nothing is copied where there is nothing to leave out
    hole = mask.clone()
    hole[0, 0] = True  # only what no row needs on the left goes
    assert unpadded(ids, hole)[0] is ids
    assert unpadded(ids[:, :0], mask[:, :0])[0].shape == (2, 0)


def test_prompts_without_a_token_are_left_out_whole() -> None:
    policy = tiny_policy().double()
    completion = torch.tensor([[4, 1, 6], [1, 1, 5]])
    asked = completion == policy.mask_id
    empty = torch.zeros(2, 4, dtype=torch.int64)
    none = torch.zeros(2, 4, dtype=torch.bool)
    found = completion_logits(policy, empty, none, completion, asked)
    torch.testing.assert_close(found, policy(completion, torch.ones_like(asked), asked), rtol=0, atol=0)
