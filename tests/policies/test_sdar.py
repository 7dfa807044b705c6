"""SDAR: published files load to block-causal logits, are saved as they were, and train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.block_checkpoints import BLOCK, block_causal_logits, padded_batch, sdar_checkpoint, sdar_config
from support.command_line import BINDINGS, train
from support.sdar import LENGTH, batch, rollout
from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.adapter import lora_config
from dlmrl_kit.policies.block_causal import attention_mask_for
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.saving import save_own_layout, save_transformers
from dlmrl_kit.samplers.low_confidence import LowConfidence

OTHERS = tuple(i for i in range(264) if not 16 <= i <= 19)  # all tokens but the digits 1 to 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("sdar")
    return folder, sdar_checkpoint(folder)


@pytest.fixture(scope="module")
def policy(checkpoint: tuple[Path, Any]) -> Any:
    return load_policy(checkpoint[0])


def reference(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return torch.cat([block_causal_logits(model, row[real]) for row, real in zip(ids, mask, strict=True)])


@pytest.mark.slow
def test_flex_attention_takes_the_same_mask(policy: Any) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    allowed = torch.rand(2, 5, 9) < 0.6
    allowed[..., 0] = True
    query, key, value = (torch.randn(2, 3, n, 8) for n in (5, 9, 9))
    mask = attention_mask_for("flex_attention", allowed, torch.float32)
    flexible = flex_attention(query, key, value, block_mask=mask)
    bias = attention_mask_for("eager", allowed, torch.float32)
    plain = ((query @ key.mT) * 8**-0.5 + bias).softmax(-1) @ value
    torch.testing.assert_close(flexible, plain, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_flex_attention_gives_the_same_logits_and_rollouts(checkpoint: tuple[Path, Any], policy: Any) -> None:
    flexible = load_policy(checkpoint[0], attention="flex_attention")
    ids, mask = batch()
    with torch.no_grad():
        torch.testing.assert_close(flexible(ids, mask, mask), policy(ids, mask, mask), atol=1e-5, rtol=0)
    sampler = LowConfidence(LENGTH, 2, BLOCK)
    assert torch.equal(rollout(flexible, sampler)["completion_ids"], rollout(policy, sampler)["completion_ids"])
    assert flexible.attention == "flex_attention"


def test_a_position_depends_exactly_on_its_own_and_earlier_blocks(policy: Any) -> None:
    ids, mask = padded_batch(256, (5,), 11)
    with torch.no_grad():
        before = policy(ids, mask, mask)
        for changed in range(16):
            other = ids.clone()
            other[0, changed] = (ids[0, changed] + 1) % 256
            moved = (policy(other, mask, mask) - before).abs().amax(-1) > 0
            expected = [position // BLOCK >= changed // BLOCK for position in range(16)]
            assert moved.tolist() == expected


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"block_size": "absent"}, {}, "give one with block_size"),
        ({}, {"block_size": 8}, "trained with 4"),
        ({"use_sliding_window": True}, {}, "use_sliding_window"),
        ({"hidden_act": "silu"}, {"attention": "flash_attention_2"}, "flash_attention_2"),
    ],
)
def test_what_cannot_be_loaded_says_why(
    tmp_path: Path, changes: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    sdar_checkpoint(tmp_path / "broken", **changes)
    with pytest.raises(UserError, match=message):
        load_policy(tmp_path / "broken", **given)


def test_the_end_of_a_turn_ends_the_text(tmp_path: Path) -> None:
    """Whichever end the tokenizer names, and whichever generation settings list; that of the template comes first."""
    sdar_checkpoint(tmp_path)
    about = tmp_path / "tokenizer_config.json"
    about.write_text(about.read_text().replace('"eos_token": "<|im_end|>"', '"eos_token": "<|endoftext|>"'))
    assert load_policy(tmp_path).eos_ids == (258, 256)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 256}))
    assert load_policy(tmp_path).eos_ids == (258, 256)


@pytest.mark.parametrize(
    ("eos", "pad", "forbidden"),
    [
        ("<|im_end|>", "<|fim_pad|>", (259,)),
        ("<|im_end|>", "<|endoftext|>", ()),
        ("<|im_end|>", "<|im_end|>", ()),
        ("<|endoftext|>", "<|im_end|>", ()),
        ("<|endoftext|>", "<|endoftext|>", ()),
    ],
)
def test_padding_may_be_committed_only_if_it_ends_a_text(
    eos: str, pad: str, forbidden: tuple[int, ...], tmp_path: Path
) -> None:
    """Whether a text or a turn: were the end of turns forbidden, no completion could end."""
    sdar_checkpoint(tmp_path)
    about = tmp_path / "tokenizer_config.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "eos_token": eos, "pad_token": pad}))
    policy = load_policy(tmp_path)
    ids = {"<|endoftext|>": 256, "<|im_end|>": 258, "<|fim_pad|>": 259}
    assert (policy.eos_ids, policy.pad_id) == ((258, 256), ids[pad])
    assert policy.forbidden_ids == (*forbidden, 261, 262, 263)  # mask, and rows without a token


def test_a_block_size_that_was_given_is_kept(tmp_path: Path) -> None:
    sdar_checkpoint(tmp_path / "first", block_size="absent")
    policy = load_policy(tmp_path / "first", block_size=8)
    assert policy.block_size == 8
    save_transformers(policy, tmp_path / "saved")
    save_own_layout(policy, tmp_path / "own")
    assert json.loads((tmp_path / "own" / "config.json").read_text()) == sdar_config(block_size="absent")
    for name in ("saved", "own"):
        assert load_policy(tmp_path / name).block_size == 8


@pytest.mark.thorough
def test_it_trains_from_the_command_line_and_lora_changes_adapters_only(
    checkpoint: tuple[Path, Any], tmp_path: Path
) -> None:
    own = (f"Pretrained.path='{checkpoint[0]}'", f"Pretrained.forbidden_ids={OTHERS}", "Pretrained.lora_rank=4")
    blocks = ("Sampler.block_length=4", "Sampler.tokens_per_step=1")
    result = train(tmp_path / "run", "egspo_sa", *BINDINGS, *own, *blocks)
    assert "old and new log-probabilities agree before the first update" in result.output
    base = load_policy(checkpoint[0])
    before = dict(base.model.named_parameters())
    after = dict(load_policy(tmp_path / "run" / "model").model.named_parameters())
    adapted = {n for n in before if n.split(".")[-2].endswith("_proj")}
    assert {n for n in before if not torch.equal(before[n], after[n])} == adapted
    base.add_adapter(lora_config(base.model, 4, 64))
    assert all(".lora_" in name for name, _ in base.trainable())
    weights = load_file(next((tmp_path / "run" / "checkpoints").glob("*")) / "weights.safetensors")
    assert set(weights) == {name for name, _ in base.trainable()}
