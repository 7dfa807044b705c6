"""Families: published layouts load to the right logits, and are written back as they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    MASKED,
    Llada,
    dream_checkpoint,
    dream_config,
    llada_checkpoint,
    llada_config,
    llada_moe_checkpoint,
    llada_moe_config,
    llada_moe_logits,
    masked_checkpoint,
)
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.adapter import blocks
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.policies.load import family_of
from dlmrl_kit.policies.pretrained import Pretrained

Reference = Callable[[Tensor], Tensor]


def make_llada(folder: Path) -> Reference:
    return llada_checkpoint(folder)


def make_llada_tied(folder: Path) -> Reference:
    """Grouped keys and values and one matrix for both ends, which the format allows too."""
    return llada_checkpoint(folder, weight_tying=True, n_kv_heads=2)


def make_llada_moe(folder: Path) -> Reference:
    state = llada_moe_checkpoint(folder)
    return lambda ids: llada_moe_logits(state, llada_moe_config(), ids)


def make_dream(folder: Path) -> Reference:
    """Qwen2's blocks under an explicit mask that lets every position see every other; then the shift."""
    model = dream_checkpoint(folder)

    def logits(ids: Tensor) -> Tensor:
        everything = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
        found = model(input_ids=ids[None], attention_mask=everything).logits[0]
        return torch.cat([found[:1], found[:-1]])

    return logits


def make_masked(kind: str) -> Callable[[Path], Reference]:
    def make(folder: Path) -> Reference:
        model = masked_checkpoint(folder, kind)
        return lambda ids: model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).logits[0]

    return make


FAMILIES: dict[str, Callable[[Path], Reference]] = {
    "llada": make_llada,
    "llada tied": make_llada_tied,
    "llada_moe": make_llada_moe,
    "dream": make_dream,
    **{kind: make_masked(kind) for kind in MASKED},
}
PUBLISHED = ("llada", "llada tied", "llada_moe", "dream")
ROW = torch.tensor([1, 2, 3, 4, 14, 5, 2, 9])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Reference]]:
    """Checkpoint folder and reference of a family, made once. The folder's name says nothing."""
    done: dict[str, tuple[Path, Reference]] = {}

    def get(family: str) -> tuple[Path, Reference]:
        if family not in done:
            folder = tmp_path_factory.mktemp("checkpoint")
            done[family] = (folder, FAMILIES[family](folder))
        return done[family]

    return get


Made = Callable[[str], tuple[Path, Reference]]


def tensors(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder, by name."""
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_the_published_model(family: str, made: Made) -> None:
    folder, reference = made(family)
    policy = Policy.from_pretrained(folder)
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
    policy = Policy.from_pretrained(made(family)[0])
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


def _name(policy: Policy, module: torch.nn.Module) -> str:
    return next(name for name, part in policy.model.named_modules() if part is module)


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_and_saved_is_the_same_checkpoint(family: str, made: Made, tmp_path: Path) -> None:
    """In the family's layout every file is as it was; in transformers' layout the policy is."""
    folder, _ = made(family)
    policy = Policy.from_pretrained(folder)
    policy.save_own_layout(tmp_path / "own")
    assert same(tensors(tmp_path / "own"), tensors(folder))
    if family in PUBLISHED:
        kept = {path.name for path in folder.iterdir() if "model" not in path.name or path.suffix == ".py"}
        assert {"config.json", "tokenizer_config.json"} <= kept
        for name in kept:
            assert (tmp_path / "own" / name).read_bytes() == (folder / name).read_bytes(), name
        assert {path.name for path in (tmp_path / "own").iterdir() if "model" not in path.name} == {
            name for name in kept if "model" not in name
        }
    policy.save_pretrained(tmp_path / "native")
    again = Policy.from_pretrained(tmp_path / "native")
    assert again.layout is None
    facts = ("mask_id", "eos_id", "pad_id", "vocab_size", "forbidden_ids", "shift_logits", "prefix_ids")
    assert [getattr(again, name) for name in facts] == [getattr(policy, name) for name in facts]
    full = torch.ones(1, len(ROW), dtype=torch.bool)
    assert torch.equal(again(ROW[None], full, full), policy(ROW[None], full, full))
    assert again.tokenizer("12_:ab")["input_ids"] == policy.tokenizer("12_:ab")["input_ids"]
    for path in (tmp_path / "own", tmp_path / "native"):
        assert same(dict(Policy.from_pretrained(path).trainable()), dict(policy.trainable()))


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_weights_keep_their_precision(family: str, tmp_path: Path) -> None:
    (llada_checkpoint if family == "llada" else dream_checkpoint)(tmp_path / "a")
    for path in (tmp_path / "a").glob("*.safetensors"):
        from safetensors.torch import save_file

        save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    policy = Policy.from_pretrained(tmp_path / "a")
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    policy.save_own_layout(tmp_path / "b")
    assert same(tensors(tmp_path / "b"), tensors(tmp_path / "a"))
    assert {p.dtype for p in Policy.from_pretrained(tmp_path / "a", dtype="float32").parameters()} == {torch.float32}


def test_large_checkpoints_are_written_in_pieces(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmrl_kit.policies.saving.SHARD", "10KB")
    folder, _ = made("llada")
    policy = Policy.from_pretrained(folder)
    for save in (policy.save_own_layout, policy.save_pretrained):
        save(tmp_path / "out")
        assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
        again = Policy.from_pretrained(tmp_path / "out")
        assert same(dict(again.trainable()), dict(policy.trainable()))
        shutil.rmtree(tmp_path / "out")


def test_what_the_checkpoints_say(made: Made) -> None:
    llada = Policy.from_pretrained(made("llada")[0])
    assert (llada.mask_id, llada.eos_id, llada.pad_id, llada.shift_logits) == (22, 18, 18, False)
    assert llada.forbidden_ids == (22, *range(23, 32))  # the mask and rows without a token; never the end of text
    moe = Policy.from_pretrained(made("llada_moe")[0])
    assert (moe.mask_id, moe.eos_id) == (18, 17)  # its config.json names no mask: the vocabulary does
    dream = Policy.from_pretrained(made("dream")[0])
    assert (dream.mask_id, dream.eos_id, dream.pad_id, dream.shift_logits) == (261, 256, 256, True)
    assert dream.forbidden_ids == (261, 262, 263)
    bert = Policy.from_pretrained(made("bert")[0])
    assert (bert.mask_id, bert.eos_id, bert.pad_id, bert.prefix_ids) == (20, 19, 17, (18,))
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
        Policy.from_pretrained(tmp_path)
    assert Policy.from_pretrained(tmp_path, mask_id=9).mask_id == 9
    with pytest.raises(UserError, match="mask_id 9999 is no token of the model"):
        Pretrained(str(tmp_path), mask_id=9999).load()


def edit(path: Path, **changes: Any) -> None:
    """Changes values of a JSON file; None removes."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


@pytest.mark.parametrize("family", PUBLISHED)
def test_what_the_caller_said_is_kept(family: str, made: Made, tmp_path: Path) -> None:
    told = {"mask_id": 5, "forbidden_ids": (3, 7), "shift_logits": family != "dream"}
    policy = Policy.from_pretrained(made(family)[0], **told)
    assert {3, 5, 7} <= set(policy.forbidden_ids)
    for save in (policy.save_own_layout, policy.save_pretrained):
        save(tmp_path / "out")
        again = Policy.from_pretrained(tmp_path / "out")
        assert again.forbidden_ids == policy.forbidden_ids
        assert (again.mask_id, again.shift_logits) == (5, family != "dream")
        more = Policy.from_pretrained(tmp_path / "out", mask_id=6, forbidden_ids=(4,))
        assert more.mask_id == 6
        assert {3, 4, 6, 7} <= set(more.forbidden_ids)
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (llada_config(), "llada"),
        ({**llada_config(), "architectures": None}, "llada"),
        (llada_moe_config(), "llada_moe"),
        (dream_config(), "dream"),
        ({**dream_config(), "model_type": "dream", "architectures": None}, "dream"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "bidirectional"),
        ({"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]}, "masked_lm"),
        ({"model_type": "bert"}, "masked_lm"),
    ],
)
def test_config_json_decides_the_family(config: dict[str, Any], expected: str) -> None:
    assert family_of(config).__name__.endswith(f".{expected}")


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
        (
            llada_moe_checkpoint,
            {"architectures": ["LLaDA2MoeModelLM"]},
            "LLaDA2 .* is not supported: transformers has no",
        ),
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
        Policy.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_masked_model_without_its_head_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    masked_checkpoint(tmp_path, "bert")
    path = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("cls.")}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"tensors are missing, among them cls\.predictions"):
        Policy.from_pretrained(tmp_path)


def test_a_table_of_positions_that_is_too_short(tmp_path: Path) -> None:
    masked_checkpoint(tmp_path, "roberta", max_position_embeddings=26)  # counts from the padding's id + 1 = 18
    policy = Policy.from_pretrained(tmp_path)
    ids = ROW[None]
    assert policy(ids, torch.ones_like(ids).bool(), torch.ones_like(ids).bool()).shape == (8, policy.vocab_size)
    ids = torch.cat([ids, ids[:, :1]], dim=1)
    with pytest.raises(UserError, match=r"have 9 tokens, and RobertaForMaskedLM has 8 positions: lower"):
        policy(ids, torch.ones_like(ids).bool(), torch.ones_like(ids).bool())


def test_a_model_that_cannot_tell_padding_is_refused(tmp_path: Path) -> None:
    masked_checkpoint(tmp_path, "fnet", intermediate_size=32)
    with pytest.raises(UserError, match="FNetForMaskedLM takes no attention mask"):
        Policy.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", PUBLISHED)
def test_adapters_are_in_the_familys_own_names(family: str, made: Made, tmp_path: Path) -> None:
    """peft loads them onto the published model: for LLaDA a module in plain torch with the published names."""
    folder, _ = made(family)
    policy = Pretrained(str(folder), lora_rank=3, lora_alpha=6).load()
    with torch.no_grad():
        for _, p in policy.trainable():
            p.normal_(std=0.2)
    full = torch.ones(1, len(ROW), dtype=torch.bool)
    trained = policy(ROW[None], full, full).detach()
    with policy.reference():
        assert (policy(ROW[None], full, full) - trained).abs().max() > 0.1
    policy.save_adapter(tmp_path / "adapter")
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(folder)

    again = Policy.from_pretrained(tmp_path / "adapter")  # merged into its base
    torch.testing.assert_close(again(ROW[None], full, full), trained, rtol=0, atol=2e-5)
    assert not any("lora" in name for name, _ in again.named_parameters())
    assert all(p.requires_grad for p in again.parameters())
    policy.save_own_layout(tmp_path / "merged")
    again.save_own_layout(tmp_path / "merged again")
    for name, tensor in tensors(tmp_path / "merged").items():
        torch.testing.assert_close(tensors(tmp_path / "merged again")[name], tensor, rtol=0, atol=1e-6)

    if family.startswith("llada") and family != "llada_moe":
        plain = Llada(json.loads((folder / "config.json").read_text()))
        plain.load_state_dict(tensors(folder))
        adapted = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
        assert isinstance(adapted.peft_config["default"], LoraConfig)
        torch.testing.assert_close(adapted(ROW), trained, rtol=0, atol=2e-5)
        names = {name.partition(".lora_")[0] for name in tensors(tmp_path / "adapter")}
        assert len(names) == 7 * 2  # every projection of both blocks, and not the head, which is called ff_out as well


def test_hub_ids_are_downloaded_without_other_weights(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The downloaded snapshot's path says nothing; the id stays the name, which adapters refer to."""
    asked: list[tuple[str, list[str]]] = []

    def snapshot(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(made("llada")[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    policy = Pretrained("someone/dream", lora_rank=2).load()
    assert policy.layout is not None
    assert "*.safetensors" in asked[0][1]
    assert not {"*.bin", "*.gguf", "*"} & set(asked[0][1])
    policy.save_adapter(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/dream"
    full = torch.ones(1, len(ROW), dtype=torch.bool)
    assert torch.equal(Policy.from_pretrained(tmp_path)(ROW[None], full, full), policy(ROW[None], full, full))
    assert [name for name, _ in asked] == ["someone/dream"] * 2


def test_an_unreachable_hub_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(name: str, **_: Any) -> str:
        raise LocalEntryNotFoundError("cannot reach the hub\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UserError, match=r"from a/b: no such folder here, and the hub says: cannot reach the hub$"):
        Policy.from_pretrained("a/b")
    monkeypatch.undo()
    with pytest.raises(UserError, match="no such folder, and no hub id either"):
        Policy.from_pretrained("not/a/hub/id")


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def test_adapters_that_do_not_fit_are_refused(made: Made, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    policy = Pretrained(str(made("llada")[0]), lora_rank=2).load()
    with pytest.raises(UserError, match="no adapter to save"):
        Policy.from_pretrained(made("llada")[0]).save_adapter(tmp_path)
    policy.save_adapter(tmp_path)
    about = tmp_path / "adapter_config.json"
    stored = about.read_text()
    with pytest.raises(UserError, match=r"cannot be merged into weights in 4 bits|needs a GPU"):
        Policy.from_pretrained(tmp_path, quantisation="nf4")
    change(about, lambda config: {**config, "base_model_name_or_path": None})
    with pytest.raises(UserError, match="names no base model"):
        Policy.from_pretrained(tmp_path)
    change(about, lambda config: {**config, "base_model_name_or_path": str(made("dream")[0])})
    with pytest.raises(UserError, match="the adapter does not fit its base"):
        Policy.from_pretrained(tmp_path)
    about.write_text(stored)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({**weights, "base_model.model.lm_head.weight": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"trains more than LoRA, for example base_model\.model\.lm_head"):
        Policy.from_pretrained(tmp_path)


def test_notes_beside_a_checkpoint_that_cannot_be_read(tmp_path: Path) -> None:
    llada_checkpoint(tmp_path)
    (tmp_path / "dlmrl_kit.json").write_text("[")
    with pytest.raises(UserError, match=r"dlmrl_kit\.json cannot be read"):
        Policy.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json is no JSON object"):
        Policy.from_pretrained(tmp_path)
