"""The attention kernel that a GPU would take, per family and phase, on the stand-in for one (docs/on-a-gpu.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.attention_kernels import attention_calls, kernel
from support.family_cases import CASES
from support.other_device import other_device
from support.rollouts import prompts
from support.seeds import seeded
from tensordict import TensorDict

from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.caches.prefix_cache import PrefixCache
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK
from dlmrl_kit.core.policy import completion_logits
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.low_confidence import LowConfidence

BOTH_WAYS = {"update, one length": "flash", "update, padded": "efficient"}
BOTH_WAYS |= {"rollout, one length": "flash", "rollout, padded": "efficient"}
CACHED = {f"{cache}, one length": "flash" for cache in ("DualCache", "PrefixCache")}
CACHED |= {f"{cache}, padded": "efficient" for cache in ("DualCache", "PrefixCache")}
BLOCKS = dict.fromkeys(BOTH_WAYS, "efficient")
"""A block-causal mask is always given."""
EXPECTED: dict[str, dict[str, str]] = {
    **dict.fromkeys(("llada grouped", "dream"), BOTH_WAYS | CACHED),
    **dict.fromkeys(("llada_moe", "bert", "eurobert"), BOTH_WAYS),
    **dict.fromkeys(("llada2", "sdar", "fast_dllm"), BLOCKS),
}
USUAL = ("llada grouped",)


def rows(policy: TransformersPolicy, padded: bool) -> TensorDict:
    """Prompts of one length or of several."""
    prompt = prompts(policy, 4, width=8)
    if not padded:
        prompt[PROMPT_MASK] = torch.ones_like(prompt[PROMPT_MASK])
        prompt[PROMPT_IDS] = prompt[PROMPT_IDS].flip(0).clamp(min=3)
    return seeded(prompt, 0)


def kernels(policy: TransformersPolicy, phase: str, block: int) -> set[str]:
    """Those that a phase would take."""
    what, which = phase.split(", ")
    prompt = rows(policy, which == "padded")
    with other_device() as device, attention_calls() as found:
        policy.to(device)
        policy.model.tie_weights()
        prompt = prompt.to(device)
        if what == "update":
            ids = torch.full((4, 8), policy.mask_id, device=device)
            completion_logits(policy, prompt[PROMPT_IDS], prompt[PROMPT_MASK], ids, ids > 0).float().sum().backward()
        else:
            cache: Any = {"DualCache": DualCache, "PrefixCache": PrefixCache}.get(what, lambda: None)()
            LowConfidence(8, 2, block)(prompt, policy=policy, cache=cache)
    assert len(found) >= 2
    return {kernel(call) for call in found}


@pytest.mark.parametrize("name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.thorough) for n in EXPECTED])
def test_no_phase_keeps_all_scores_in_memory(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    policy = case.load(dtype="bfloat16")
    assert {phase: kernels(policy, phase, case.block_size or 4) for phase in EXPECTED[name]} == {
        phase: {expected} for phase, expected in EXPECTED[name].items()
    }
