"""A checkpoint is loaded whole or refused: tensors that are missing, left over, NaN or infinite are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.block_checkpoints import diffusion_gemma_checkpoint, sdar_checkpoint
from support.checkpoints import (
    dream_checkpoint,
    fast_tokenizer,
    llada_checkpoint,
    llada_moe_checkpoint,
    masked_checkpoint,
)
from support.families import FAMILIES, tensors
from torch import Tensor
from transformers import ByT5Tokenizer

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.checkpoint_files import SHIPPED, VOCABULARIES, checkpoint_folder, load_tokenizer
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.saving import save_adapter, save_own_layout, save_transformers


def shipped(folder: Path) -> Any:
    return shutil.copytree(SHIPPED / "sudoku4x4", folder, dirs_exist_ok=True)


def qwen3_moe(folder: Path) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    tokenizer = fast_tokenizer(["<|end|>", "<|mask|>"], eos_token="<|end|>", mask_token="<|mask|>")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    config = Qwen3MoeConfig(vocab_size=len(tokenizer), head_dim=8, **sizes, **heads)  # type: ignore[call-arg]
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], Any]] = {
    **FAMILIES,
    "sdar": sdar_checkpoint,
    "diffusion_gemma": diffusion_gemma_checkpoint,
    "llama": shipped,
    "qwen3_moe": qwen3_moe,
}


def write(folder: Path, state: dict[str, Tensor]) -> None:
    """Replaces the weights of a checkpoint folder, by one file."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder: Path, state: dict[str, Tensor]) -> str:
    write(folder, state)
    with pytest.raises(UserError) as caught:
        load_policy(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


LARGE = ("diffusion_gemma", "deberta-v2")
SLOW = [pytest.param(family, marks=pytest.mark.thorough) for family in LARGE]


def test_heads_of_other_objectives_may_be_left_out(tmp_path: Path) -> None:
    """Published BERTs have a pooler and a head for the next sentence, on which no logit depends."""
    masked_checkpoint(tmp_path, "bert")
    more = {"bert.pooler.dense.weight": torch.ones(2, 2), "cls.seq_relationship.bias": torch.ones(2)}
    write(tmp_path, {**tensors(tmp_path), **more})
    load_policy(tmp_path)


@pytest.mark.parametrize("save", [save_own_layout, save_transformers])
def test_a_head_that_the_configuration_ties_is_not_dropped(save: Callable[..., None], tmp_path: Path) -> None:
    """A head of its own counts although config.json says ``weight_tying``, and again when it was saved."""
    reference = llada_checkpoint(tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weight_tying": True}))
    ids = torch.tensor([1, 2, 3, 4])
    full = torch.ones(1, 4, dtype=torch.bool)
    save(load_policy(tmp_path / "a"), tmp_path / "b")
    for folder in ("a", "b"):
        policy = load_policy(tmp_path / folder)
        torch.testing.assert_close(policy(ids[None], full, full), reference(ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("expert", [0, 3, 5])
def test_a_missing_expert_is_named(expert: int, tmp_path: Path) -> None:
    llada_moe_checkpoint(tmp_path)
    state = tensors(tmp_path)
    gone = {name for name in state if f"layers.0.mlp.experts.{expert}." in name}
    assert len(gone) == 3
    message = refusal(tmp_path, {name: tensor for name, tensor in state.items() if name not in gone})
    assert "layers.0.mlp.experts" in message


def test_pieces_that_the_index_does_not_list(tmp_path: Path) -> None:
    llada_checkpoint(tmp_path)
    extra = tmp_path / "model-00099-of-00099.safetensors"
    save_file({"model.transformer.other": torch.ones(2)}, extra)
    with pytest.raises(
        UserError, match=rf"{extra} would be left out, as model\.safetensors\.index\.json is what counts"
    ):
        load_policy(tmp_path)
    extra.unlink()
    pieces = sorted(tmp_path.glob("model-*.safetensors"))
    state = load_file(pieces[0])
    save_file({**load_file(pieces[1]), **state}, pieces[1], metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the tensor \S+ is in \S+ and in \S+: remove the file"):
        load_policy(tmp_path)
    pieces[0].unlink()
    with pytest.raises(UserError, match=rf"{pieces[0]} is missing, which model\.safetensors\.index\.json lists"):
        load_policy(tmp_path)


def test_a_loaded_checkpoint_that_is_saved_is_whole(tmp_path: Path) -> None:
    """What the kit writes has no tensors too many or too few, so that it can be read again."""
    llada_checkpoint(tmp_path / "a", weight_tying=True)
    save_own_layout(load_policy(tmp_path / "a"), tmp_path / "b")
    load_policy(tmp_path / "b")


@pytest.mark.parametrize("kind", ["int8", "uint8", "int64", "bool", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_quantised_weights_are_refused_by_name(ending: str, kind: str, tmp_path: Path) -> None:
    """Converted number by number they would be other weights: an 8-bit checkpoint lacks its scales."""
    shipped(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = next(name for name in state if name.endswith("mlp.up_proj.weight"))
    state[name] = state[name].to(getattr(torch, kind))
    if ending == "safetensors":
        message = refusal(tmp_path, state)
    else:
        (tmp_path / "model.safetensors").unlink()
        torch.save(state, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError) as caught:
            load_policy(tmp_path)
        message = str(caught.value)
    assert f"the tensor {name} is of type" in message
    assert "as quantised weights are" in message


EXPERTS = ("llada_moe", "qwen3_moe", "diffusion_gemma")


@pytest.mark.parametrize("family", ["llada", "bert", "llada_moe", "qwen3_moe", *SLOW[:1]])
def test_weights_in_double_precision_compute_or_are_refused(family: str, tmp_path: Path) -> None:
    """torch has no products of experts in float64."""
    MAKERS[family](tmp_path)
    row, full = torch.tensor([[1, 2, 3, 4]]), torch.ones(1, 4, dtype=torch.bool)
    expected = None if family in LARGE else load_policy(tmp_path)(row, full, full)
    write(tmp_path, {name: value.double() for name, value in tensors(tmp_path).items()})
    if family in EXPERTS:
        with pytest.raises(
            UserError, match=r"experts\.\S+ has weights in float64, .* load them with dtype = 'float32'"
        ):
            load_policy(tmp_path)
    else:
        torch.testing.assert_close(load_policy(tmp_path)(row, full, full).float(), expected)
    if expected is not None:
        torch.testing.assert_close(load_policy(tmp_path, dtype="float32")(row, full, full), expected)


def test_numbers_of_positions_are_no_weights(tmp_path: Path) -> None:
    masked_checkpoint(tmp_path, "bert")
    state = load_file(tmp_path / "model.safetensors")
    write(tmp_path, {**state, "bert.embeddings.position_ids": torch.arange(64)[None]})
    load_policy(tmp_path)


@pytest.mark.parametrize("kind", ["int8", "float8_e4m3fn"])
def test_quantised_adapters_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    save_adapter(Pretrained("shipped:sudoku4x4", lora_rank=2).load(), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: value.to(getattr(torch, kind)) for name, value in load_file(file).items()}, file)
    with pytest.raises(UserError, match=r"lora_A\.weight is of type .*, as quantised weights are"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    "missing", [("vocab.json", "merges.txt", "tokenizer_config.json"), ("vocab.json", "merges.txt")]
)
def test_a_tokenizer_without_a_vocabulary_is_refused(missing: tuple[str, ...], tmp_path: Path) -> None:
    """transformers makes one that knows no character: whatever a model is asked, it would see nothing of it."""
    dream_checkpoint(tmp_path)
    for name in missing:
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"holds no vocabulary for its tokenizer \(tokenizer.json"):
        load_policy(tmp_path)


def test_a_tokenizer_of_bytes_has_no_vocabulary_files(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert not any(any(tmp_path.glob(pattern)) for pattern in VOCABULARIES)
    tokenizer = load_tokenizer(str(tmp_path), {})
    assert tokenizer.decode(tokenizer.encode("ab")[:2]) == "ab"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"holds no vocabulary for its tokenizer \(tokenizer\.json"),
        ("{", r"tokenizer\.json cannot be read as JSON"),
        ('{"model": {}}', r"the tokenizer in .* cannot be loaded; is one of its files damaged"),
    ],
)
def test_a_tokenizer_that_is_missing_or_damaged_names_the_setting(
    content: str | None, told: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint_folder("shipped:sudoku4x4"), folder)
    for file in (*folder.glob("tokenizer*"), folder / "checksums.json"):
        file.unlink(missing_ok=True)
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=rf"^Pretrained\.path: {folder}: .*{told}") as raised:
        Pretrained(str(folder)).load()
    assert "\n" not in str(raised.value)


def test_a_mask_that_is_true_is_no_id(tmp_path: Path) -> None:
    llada_checkpoint(tmp_path, mask_token_id=True)
    with pytest.raises(UserError, match=r"config\.json: mask_token_id = True is no id of a token"):
        load_policy(tmp_path)
