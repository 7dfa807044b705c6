"""Families: published layouts load to the right logits, and are written back as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import (
    dream_checkpoint,
    dream_config,
    llada_checkpoint,
    llada_config,
    llada_moe_checkpoint,
    llada_moe_config,
    masked_checkpoint,
)
from support.families import ROW, Made

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.families.base import Family
from dlmrl_kit.policies.families.bidirectional import Bidirectional
from dlmrl_kit.policies.families.dream import Dream
from dlmrl_kit.policies.families.llada import LLaDA
from dlmrl_kit.policies.families.llada_moe import LLaDAMoE
from dlmrl_kit.policies.families.masked_lm import MaskedLM
from dlmrl_kit.policies.loading import family_of, load_policy
from dlmrl_kit.policies.pretrained import Pretrained


def test_what_the_checkpoints_say(made: Made) -> None:
    llada = load_policy(made("llada")[0])
    assert (llada.mask_id, llada.eos_ids, llada.pad_id, llada.shift_logits) == (22, (18, 21), 18, False)
    assert llada.forbidden_ids == (22, *range(23, 32))  # the mask and rows without a token; never the end of text
    moe = load_policy(made("llada_moe")[0])
    assert (moe.mask_id, moe.eos_ids) == (18, (17,))  # its config.json names no mask: the vocabulary does
    dream = load_policy(made("dream")[0])
    assert (dream.mask_id, dream.eos_ids, dream.pad_id, dream.shift_logits) == (261, (256, 258), 256, True)
    assert dream.forbidden_ids == (261, 262, 263)
    bert = load_policy(made("bert")[0])
    assert (bert.mask_id, bert.eos_ids, bert.pad_id, bert.prefix_ids) == (20, (19,), 17, (18,))
    assert bert.forbidden_ids == (17, 20, 21, 22)


@pytest.mark.parametrize("family", ["dream", "llada_moe"])
def test_a_missing_mask_is_an_error_that_says_what_to_do(family: str, tmp_path: Path) -> None:
    (dream_checkpoint if family == "dream" else llada_moe_checkpoint)(tmp_path)
    edit(tmp_path / "config.json", mask_token_id=None)
    edit(tmp_path / "tokenizer_config.json", mask_token=None)
    if family == "llada_moe":
        path = tmp_path / "tokenizer.json"
        path.write_text(path.read_text().replace("<|mask|>", "<|other|>"))
    with pytest.raises(UserError, match="names no mask token: give one with mask_id"):
        load_policy(tmp_path)
    assert load_policy(tmp_path, mask_id=9).mask_id == 9
    with pytest.raises(UserError, match="mask_id 9999 is no token of the model"):
        Pretrained(str(tmp_path), mask_id=9999).load()


def edit(path: Path, **changes: Any) -> None:
    """Changes values of a JSON file; None removes."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (llada_config(), LLaDA),
        ({**llada_config(), "architectures": None}, LLaDA),
        (llada_moe_config(), LLaDAMoE),
        (dream_config(), Dream),
        ({**dream_config(), "model_type": "dream", "architectures": None}, Dream),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, Bidirectional),
        ({"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]}, MaskedLM),
        ({"model_type": "bert"}, MaskedLM),
    ],
)
def test_config_json_decides_the_family(config: dict[str, Any], expected: type[Family]) -> None:
    assert type(family_of(config)) is expected


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"model_type": "bert", "auto_map": {"AutoModelForMaskedLM": "own.Model"}},
        {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "own.Model"}},
        {"model_type": "bert", "architectures": ["BertLMHeadModelForCausalLM"]},
        {},
    ],
)
def test_other_models_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"no denoiser for model type .*; the kit knows these families: LLaDA-MoE .*; Dream"
    ):
        family_of(config)


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (llada_checkpoint, {"scale_logits": True}, "LLaDA with scale_logits = True: its blocks are not Llama's"),
        (llada_checkpoint, {"layer_norm_type": "default"}, "layer_norm_type = 'default'"),
        (llada_checkpoint, {"n_layers": None}, "without n_layers"),
        (llada_checkpoint, {"n_layers": 1}, r"9 tensors are left over, among them \S*layers\.1"),
        (llada_checkpoint, {"n_layers": 3}, r"9 tensors are missing, among them model\.layers\.2"),
        (llada_checkpoint, {"mlp_hidden_size": 40}, "tensors are of another shape"),
        (
            llada_moe_checkpoint,
            {"shared_expert_intermediate_size": 8},
            "needs shared experts, which Qwen3-MoE does not",
        ),
        (llada_moe_checkpoint, {"moe_router_score_function": "sigmoid"}, "needs a router that is no softmax"),
        (dream_checkpoint, {"use_sliding_window": True}, "use_sliding_window"),
        (dream_checkpoint, {"num_hidden_layers": 1}, "12 tensors are left over"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(
    make: Any, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make(tmp_path)
    edit(tmp_path / "config.json", **change)
    with pytest.raises(UserError, match=message) as caught:
        load_policy(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_masked_model_without_its_head_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    masked_checkpoint(tmp_path, "bert")
    path = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("cls.")}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"tensors are missing, among them cls\.predictions"):
        load_policy(tmp_path)


def test_a_table_of_positions_that_is_too_short(tmp_path: Path) -> None:
    masked_checkpoint(tmp_path, "roberta", max_position_embeddings=26)  # counts from the padding's id + 1 = 18
    policy = load_policy(tmp_path)
    ids = ROW[None]
    assert policy(ids, torch.ones_like(ids).bool(), torch.ones_like(ids).bool()).shape == (8, policy.vocab_size)
    ids = torch.cat([ids, ids[:, :1]], dim=1)
    with pytest.raises(UserError, match=r"have 9 tokens, and RobertaForMaskedLM has 8 positions: lower"):
        policy(ids, torch.ones_like(ids).bool(), torch.ones_like(ids).bool())


def test_a_model_that_cannot_tell_padding_is_refused(tmp_path: Path) -> None:
    masked_checkpoint(tmp_path, "fnet", intermediate_size=32)
    with pytest.raises(UserError, match="FNetForMaskedLM takes no attention mask"):
        load_policy(tmp_path)
