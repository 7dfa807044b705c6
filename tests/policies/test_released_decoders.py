"""Decoders that were released as diffusion models under names of their own, and those that are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import dream_checkpoint
from support.family_cases import a2d, diffcoder, fast_dllm
from support.seeds import seeded
from tensordict import TensorDict

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.likelihoods.block_replay import BlockReplay
from dlmrl_kit.policies.families.refused import REFUSED
from dlmrl_kit.policies.loading import family_of, load_policy
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "wedlm", "architectures": ["WeDLMForCausalLM"]}, "WeDLM attends causally"),
        ({"model_type": "qwen3", "architectures": ["WeDLMForCausalLM"], "auto_map": {"AutoModel": "x.Y"}}, "WeDLM"),
        ({"model_type": "nemotron_labs_diffusion"}, "Nemotron-Labs-Diffusion decodes in three modes"),
        ({"architectures": ["NemotronLabsDiffusionModel"]}, "Nemotron-Labs-Diffusion"),
    ],
)
def test_known_models_are_refused_with_the_reason(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=rf"^{reason}.*: it is not supported \(docs/real-models\.md\)$"):
        family_of(config)


def test_the_page_has_every_reason() -> None:
    page = (Path(__file__).parents[2] / "docs" / "real-models.md").read_text()
    assert len(REFUSED) >= 2
    for reason in REFUSED.values():
        assert reason.split(" ")[0] in page


def test_block_sizes_of_the_release_where_the_configuration_names_none(tmp_path: Path) -> None:
    fast_dllm(tmp_path / "fast")
    path = tmp_path / "fast" / "config.json"
    config = json.loads(path.read_text())
    del config["bd_size"]
    path.write_text(json.dumps(config))
    assert load_policy(tmp_path / "fast").block_size == 32
    diffcoder(tmp_path / "coder")
    assert load_policy(tmp_path / "coder").block_size == 4
    assert load_policy(tmp_path / "coder", block_size=8).block_size == 8


def test_blocks_of_a2d_models_are_refused(tmp_path: Path) -> None:
    a2d(tmp_path)
    with pytest.raises(UserError, match=r"A2D model with block_size \(BD3-LM\): its blocks are counted from the end"):
        load_policy(tmp_path, block_size=4)


def test_replay_of_blocks_with_shifted_logits_is_refused(tmp_path: Path) -> None:
    fast_dllm(tmp_path)
    policy = load_policy(tmp_path)
    prompt = seeded(TensorDict({"prompt_ids": torch.tensor([[1, 2, 3]]), "prompt_mask": torch.ones(1, 3).bool()}, [1]))
    sampler = ConfidenceThreshold(8, 4)
    found = sampler(prompt, policy=policy)
    steps = torch.arange(found["step", "valid"].shape[1])[None]
    found["selected"] = TensorDict({"step": steps, "weight": torch.ones(steps.shape)}, [1])
    with pytest.raises(UserError, match="BlockReplay is not for models whose logits are shifted by one"):
        BlockReplay()(found, policy=policy, sampler=sampler)


def test_dreamons_token_for_more_masks_is_never_written(tmp_path: Path) -> None:
    dream_checkpoint(tmp_path)
    assert 259 not in load_policy(tmp_path).forbidden_ids
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace("<|fim_pad|>", "<|expand|>"))
    assert 259 in load_policy(tmp_path).forbidden_ids
