"""Settings of saved adapters: what names modules means the same as with peft on the published model, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.families import PUBLISHED, ROW, Made, tensors
from support.llada import Llada
from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.adapter_settings import _FORMS, _HARMLESS
from dlmrl_kit.policies.loading import load_policy

Edit = Callable[[dict[str, Any]], dict[str, Any]]


def published(folder: Path) -> Llada:
    """The published LLaDA in plain torch, with its own names."""
    plain = Llada(json.loads((folder / "config.json").read_text()))
    plain.load_state_dict(tensors(folder))
    return plain.eval()


def trained_adapter(folder: Path, out: Path, **settings: Any) -> Tensor:
    """Saves a random adapter that peft put on the published model; returns that model's logits."""
    model = get_peft_model(published(folder), LoraConfig(**settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.2)
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(str(out))
    again = PeftModel.from_pretrained(published(folder), str(out))  # what peft makes of the files
    return again(ROW).detach()


def logits(folder: Path) -> Tensor:
    full = torch.ones(1, len(ROW), dtype=torch.bool)
    return load_policy(folder)(ROW[None], full, full).detach()


NAMING: dict[str, dict[str, Any]] = {
    "alpha_pattern": {"target_modules": ["q_proj", "ff_proj"], "alpha_pattern": {"q_proj": 40, "blocks.1.ff_proj": 2}},
    "rank_pattern": {"target_modules": ["q_proj", "attn_out"], "rank_pattern": {r"blocks\.0\.attn_out": 5}},
    "both and rslora": {
        "target_modules": ["v_proj", "up_proj"],
        "rank_pattern": {"v_proj": 4},
        "alpha_pattern": {"^model.transformer.blocks.1.v_proj": 9},
        "use_rslora": True,
    },
    "exclude_modules": {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["blocks.0.k_proj"]},
    "exclude_modules as a pattern": {"target_modules": ["q_proj"], "exclude_modules": r".*blocks\.1\..*"},
    "layers_to_transform": {"target_modules": ["ff_out"], "layers_to_transform": 1, "layers_pattern": "blocks"},
    "layers_pattern": {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["blocks"]},
    "target_modules as a pattern": {"target_modules": r".*\.(ff_out|wte)"},
    "all-linear": {"target_modules": "all-linear"},
    "the head and the embeddings": {"target_modules": ["ff_out", "wte"]},
    "random start": {"target_modules": ["q_proj"], "layers_to_transform": [0], "init_lora_weights": False},
}


@pytest.mark.parametrize("settings", NAMING.values(), ids=NAMING)
def test_settings_that_name_modules_mean_what_they_mean_to_peft(
    settings: dict[str, Any], made: Made, tmp_path: Path
) -> None:
    folder, reference = made("llada")
    expected = trained_adapter(folder, tmp_path, **{"r": 2, "lora_alpha": 8, **settings})
    assert (expected - reference(ROW)).abs().max() > 0.1
    torch.testing.assert_close(logits(tmp_path), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", PUBLISHED)
def test_an_adapter_in_transformers_names_fits_every_family(family: str, made: Made, tmp_path: Path) -> None:
    folder, _ = made(family)
    base = load_policy(folder)
    config = LoraConfig(r=2, target_modules=["q_proj"], alpha_pattern={"layers.1.self_attn.q_proj": 64})
    model = get_peft_model(base.model, config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.2)
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    full = torch.ones(1, len(ROW), dtype=torch.bool)
    torch.testing.assert_close(logits(tmp_path), base(ROW[None], full, full).detach(), rtol=0, atol=2e-5)


def change(folder: Path, edit: Edit) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "modules_to_save": ({"modules_to_save": ["wte"]}, r"modules_to_save = \['wte'\] is not supported"),
    "target_parameters": ({"target_parameters": ["mlp.experts"]}, "target_parameters = .* is not supported"),
    "layer_replication": ({"layer_replication": [[0, 1]]}, "layer_replication = .* is not supported"),
    "trainable_token_indices": ({"trainable_token_indices": [1]}, "trainable_token_indices = .* is not supported"),
    "bias": ({"bias": "all"}, "bias = 'all' is not supported"),
    "lora_bias": ({"lora_bias": True}, "lora_bias = True is not supported"),
    "use_dora": ({"use_dora": True}, "use_dora = True is not supported"),
    "use_qalora": ({"use_qalora": True}, "use_qalora = True is not supported"),
    "alora": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens = .* is not supported"),
    "arrow": ({"arrow_config": {"top_k": 1}}, "arrow_config = .* is not supported"),
    "a setting of a later peft": ({"modules_of_2031": ["q_proj"]}, "modules_of_2031 = .* is not supported"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' starts from other weights of the base"),
    "revision": ({"revision": "v2"}, "revision = 'v2' asks for another version of the base"),
    "another method": ({"peft_type": "LOHA"}, "trains more than LoRA, peft_type = 'LOHA'"),
    "an alpha that is no number": ({"lora_alpha": "big"}, "lora_alpha = 'big' is not what peft writes"),
    "an alpha of a pattern that is true": ({"alpha_pattern": {"q_proj": True}}, "alpha_pattern = .* is not what peft"),
    "a rank of a pattern that is no integer": ({"rank_pattern": {"q_proj": 4.0}}, "rank_pattern = .* is not what peft"),
    "a true rank": ({"r": True}, "r = True is not what peft writes"),
    "an alpha for nobody": (
        {"alpha_pattern": {"self_attn.q_proj": 2}},
        "alpha_pattern names 'self_attn.q_proj', which",
    ),
    "a rank for nobody": ({"rank_pattern": {"w_q": 2}}, "rank_pattern names 'w_q', which is none of the adapted"),
    "no pattern": ({"alpha_pattern": {"(": 2}}, "alpha_pattern has a name that is no regular expression"),
    "more modules": (
        {"target_modules": ["q_proj", "k_proj"]},
        r"target_modules choose \S*k_proj, for which .* no weights",
    ),
    "fewer modules": ({"exclude_modules": ["blocks.1.q_proj"]}, r"exclude_modules leave out \S*blocks\.1\.q_proj, for"),
    "fewer layers": (
        {"layers_to_transform": [0], "layers_pattern": "blocks"},
        r"layers_to_transform, layers_pattern leave out \S*blocks\.1\.q_proj",
    ),
    "another rank": ({"r": 3}, "the adapter does not fit its base .*size mismatch"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_other_settings_are_refused_by_name(settings: dict[str, Any], message: str, made: Made, tmp_path: Path) -> None:
    trained_adapter(made("llada")[0], tmp_path, r=2, target_modules=["q_proj"])
    change(tmp_path, lambda stored: {**stored, **settings})
    with pytest.raises(UserError, match=message) as caught:
        load_policy(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_every_setting_of_peft_is_understood_harmless_or_refused(made: Made, tmp_path: Path) -> None:
    """A new setting of peft is refused as long as nobody has looked at it."""
    trained_adapter(made("llada")[0], tmp_path, r=2, target_modules=["q_proj"])
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    known = {*_FORMS, *_HARMLESS, "init_lora_weights", "revision"}
    others = sorted(stored.keys() - known)
    assert "modules_to_save" in others
    for name in others:
        change(tmp_path, lambda _, name=name: {**stored, name: ["q_proj"]})  # type: ignore[misc]
        with pytest.raises(UserError, match=rf"{name} = \['q_proj'\] is not supported"):
            load_policy(tmp_path)


def test_weights_of_an_adapter_that_do_not_fit(made: Made, tmp_path: Path) -> None:
    folder, _ = made("llada")
    trained_adapter(folder, tmp_path, r=2, target_modules=["q_proj"])
    path = tmp_path / "adapter_model.safetensors"
    weights = load_file(path)
    first = "base_model.model.model.transformer.blocks.0.q_proj.lora_B.weight"
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({name: tensor for name, tensor in weights.items() if name != first}, "lora_B.weight is missing"),
        ({**weights, first: weights[first] * float("inf")}, rf"{path}: {first} has NaN or infinite values"),
        ({**weights, first.replace("q_proj", "w_proj"): weights[first].clone()}, "the model has no module .*w_proj"),
        ({**weights, first.replace("lora_B", "lora_C"): weights[first].clone()}, "lora_C.weight has no place"),
        ({}, "holds no weights"),
    ]
    for state, message in cases:
        save_file(state, path)
        with pytest.raises(UserError, match=message):
            load_policy(tmp_path)
    save_file({name: tensor * 1e30 for name, tensor in weights.items()}, path)
    with pytest.raises(
        UserError, match=r"with the adapter .* merged: .*q_proj\.weight and 1 more tensors have NaN or inf"
    ):
        load_policy(tmp_path)


@pytest.mark.parametrize("ends", ["head", "embeddings", "head and embeddings"])
@pytest.mark.parametrize("family", [name for name in PUBLISHED if name != "llada tied"])
def test_an_adapter_of_the_head_or_the_embeddings(family: str, ends: str, made: Made, tmp_path: Path) -> None:
    """peft writes copies of the base's weights beside it, which must be the base's."""
    folder, _ = made(family)
    policy = load_policy(folder)
    chosen = [name for name, word in {"lm_head": "head", "embed_tokens": "embeddings"}.items() if word in ends]
    settings = LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", *chosen])
    model = get_peft_model(policy.model, settings)
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(str(tmp_path), save_embedding_layers=True)
    full = torch.ones(1, len(ROW), dtype=torch.bool)
    torch.testing.assert_close(logits(tmp_path), policy(ROW[None], full, full).detach(), rtol=1e-4, atol=1e-4)

    path = tmp_path / "adapter_model.safetensors"
    weights = load_file(path)
    copies = [name for name in weights if name.endswith(".base_layer.weight")]
    assert len(copies) == len(chosen)
    for name in copies:
        for other in (weights[name] * 2, weights[name][1:].clone(), weights[name] * float("nan")):
            save_file({**weights, name: other}, path)
            with pytest.raises(UserError, match=r"holds weights of \S+ that are not those of its base|NaN or infinite"):
                load_policy(tmp_path)


def test_one_end_of_tied_weights_cannot_be_adapted(made: Made, tmp_path: Path) -> None:
    trained_adapter(made("llada tied")[0], tmp_path, r=2, target_modules=["wte"])
    with pytest.raises(UserError, match=r"the adapter changes \S*wte alone, which shares its weights"):
        load_policy(tmp_path)
