"""Families: published layouts load to the right logits, and are written back as they were."""

from __future__ import annotations

import json
import shutil
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
from support.families import FAMILIES, PUBLISHED, ROW, Made, same, tensors

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.adapter import blocks
from dlmrl_kit.policies.families.base import Family
from dlmrl_kit.policies.families.bidirectional import Bidirectional
from dlmrl_kit.policies.families.dream import Dream
from dlmrl_kit.policies.families.llada import LLaDA
from dlmrl_kit.policies.families.llada_moe import LLaDAMoE
from dlmrl_kit.policies.families.masked_lm import MaskedLM
from dlmrl_kit.policies.loading import family_of, load_policy
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.saving import save_own_layout, save_transformers
from dlmrl_kit.policies.transformers_policy import TransformersPolicy


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_the_published_model(family: str, made: Made) -> None:
    folder, reference = made(family)
    policy = load_policy(folder)
    ids = ROW.clone()
    ids[[3, 6]] = policy.mask_id
    full = torch.ones(1, len(ids), dtype=torch.bool)
    expected = reference(ids)
    assert expected.std() > 0.3  # far from uniform
    assert policy.vocab_size == expected.shape[-1]
    torch.testing.assert_close(policy(ids[None], full, full), expected, rtol=0, atol=1e-5)

    # left padding of any content, rows of different lengths in one batch
    batch = torch.randint(0, 9, (3, len(ids) + 3))
    mask = torch.zeros_like(batch, dtype=torch.bool)
    for row, padding in enumerate((3, 0, 7)):
        batch[row, padding:] = torch.cat([ids, ids])[: batch.shape[1] - padding]
        mask[row, padding:] = True
    rows = [reference(batch[row][mask[row]]) for row in range(3)]
    torch.testing.assert_close(policy(batch, mask, mask), torch.cat(rows), rtol=0, atol=1e-5)
    indices = torch.tensor([[10, 3], [0, 5], [7, 7]])
    start = torch.tensor([3, 0, 7])
    picked = torch.stack([logits[index] for logits, index in zip(rows, indices - start[:, None], strict=True)])
    torch.testing.assert_close(policy(batch, mask, indices), picked, rtol=0, atol=1e-5)

    # both ways: the first position sees the last token, without padding and with it
    for positions in (slice(None), slice(1, None)):
        other, row = ids.clone(), torch.ones(1, len(ids), dtype=torch.bool)
        row[:, : positions.start or 0] = False
        other[-1] = 8
        first = row & (row.cumsum(-1) == 1)
        assert (policy(ids[None], row, first) - policy(other[None], row, first)).abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_runs_at_asked_positions_only(family: str, made: Made) -> None:
    """Also the head's transform, where there is one: outside of the blocks nothing but norms sees more rows."""
    policy = load_policy(made(family)[0])
    inside = {part for block in blocks(policy.model).values() for part in block.modules()}
    seen: list[int] = []
    for module in policy.model.modules():
        if isinstance(module, torch.nn.Linear) and module not in inside and "embed" not in _name(policy, module):
            module.register_forward_hook(lambda _, args, out: seen.append(out.shape[:-1].numel()))
    batch, full = ROW.expand(5, -1), torch.ones(5, len(ROW), dtype=torch.bool)
    asked = torch.zeros_like(full)
    asked[[0, 0, 3], [1, 6, 2]] = True
    assert policy(batch, full, asked).shape == (3, policy.vocab_size)
    assert policy(batch, full, torch.tensor([[1, 4]] * 5)).shape == (5, 2, policy.vocab_size)
    assert sorted(set(seen)) == [3, 10]
    assert policy(batch[:0], full[:0], full[:0]).shape == (0, policy.vocab_size)
    assert policy(batch, full, torch.zeros_like(full)).shape == (0, policy.vocab_size)


def _name(policy: TransformersPolicy, module: torch.nn.Module) -> str:
    return next(name for name, part in policy.model.named_modules() if part is module)


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_and_saved_is_the_same_checkpoint(family: str, made: Made, tmp_path: Path) -> None:
    """In the family's layout every file is as it was; in transformers' layout the policy is."""
    folder, _ = made(family)
    policy = load_policy(folder)
    save_own_layout(policy, tmp_path / "own")
    assert same(tensors(tmp_path / "own"), tensors(folder))
    if family in PUBLISHED:
        kept = {path.name for path in folder.iterdir() if "model" not in path.name or path.suffix == ".py"}
        assert {"config.json", "tokenizer_config.json"} <= kept
        for name in kept:
            assert (tmp_path / "own" / name).read_bytes() == (folder / name).read_bytes(), name
        assert {path.name for path in (tmp_path / "own").iterdir() if "model" not in path.name} == {
            name for name in kept if "model" not in name
        }
    save_transformers(policy, tmp_path / "native")
    again = load_policy(tmp_path / "native")
    assert again.layout is None
    facts = ("mask_id", "eos_ids", "pad_id", "vocab_size", "forbidden_ids", "shift_logits", "prefix_ids")
    assert [getattr(again, name) for name in facts] == [getattr(policy, name) for name in facts]
    full = torch.ones(1, len(ROW), dtype=torch.bool)
    assert torch.equal(again(ROW[None], full, full), policy(ROW[None], full, full))
    assert again.tokenizer("12_:ab")["input_ids"] == policy.tokenizer("12_:ab")["input_ids"]
    for path in (tmp_path / "own", tmp_path / "native"):
        assert same(dict(load_policy(path).trainable()), dict(policy.trainable()))


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_weights_keep_their_precision(family: str, tmp_path: Path) -> None:
    (llada_checkpoint if family == "llada" else dream_checkpoint)(tmp_path / "a")
    for path in (tmp_path / "a").glob("*.safetensors"):
        from safetensors.torch import save_file

        save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    policy = load_policy(tmp_path / "a")
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    save_own_layout(policy, tmp_path / "b")
    assert same(tensors(tmp_path / "b"), tensors(tmp_path / "a"))
    assert {p.dtype for p in load_policy(tmp_path / "a", dtype="float32").parameters()} == {torch.float32}


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


@pytest.mark.parametrize("family", PUBLISHED)
def test_what_the_caller_said_is_kept(family: str, made: Made, tmp_path: Path) -> None:
    told = {"mask_id": 5, "forbidden_ids": (3, 7), "shift_logits": family != "dream"}
    policy = load_policy(made(family)[0], **told)
    assert {3, 5, 7} <= set(policy.forbidden_ids)
    for save in (save_own_layout, save_transformers):
        save(policy, tmp_path / "out")
        again = load_policy(tmp_path / "out")
        assert again.forbidden_ids == policy.forbidden_ids
        assert (again.mask_id, again.shift_logits) == (5, family != "dream")
        more = load_policy(tmp_path / "out", mask_id=6, forbidden_ids=(4,))
        assert more.mask_id == 6
        assert {3, 4, 6, 7} <= set(more.forbidden_ids)
        shutil.rmtree(tmp_path / "out")


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
