"""LLaDA2 and SDAR's mixture of experts: what is read, refused, counted, trained and left alone."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from support.command_line import BINDINGS, train
from support.llada2 import BLOCK, llada2_checkpoint, published_llada2, sdar_moe_checkpoint
from torch import nn

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.policies.families.llada2 import LLaDA2
from dlmrl_kit.policies.layout import Layout
from dlmrl_kit.policies.loading import family_of, load_policy
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.saving import save_adapter, save_transformers
from dlmrl_kit.policies.skeleton import skeleton
from dlmrl_kit.testing.family_tensors import tensors_of
from dlmrl_kit.training.shapes import SHAPES

Make = Callable[..., Any]
MAKERS: dict[str, Make] = {"llada2": llada2_checkpoint, "sdar_moe": sdar_moe_checkpoint}


@pytest.fixture(params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    MAKERS[request.param](tmp_path / "base", block=BLOCK)
    return tmp_path / "base"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_bias": True}, "use_bias = True: its blocks are not Glm4Moe's"),
        ({"use_bias": "absent"}, "without use_bias"),
        ({"norm_head": True}, "norm_head = True"),
        ({"score_function": "softmax"}, "score_function = 'softmax'"),
        ({"using_split_qkv_in_self_attention": True}, "using_split_qkv_in_self_attention"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"router_mode": "tokens"}, "router_mode = 'tokens', which the kit does not know"),
        ({"num_shared_experts": 0}, "without shared experts"),
        ({"rotary_dim": 8}, "rotary_dim = 8, but partial_rotary_factor turns 4"),
    ],
)
def test_a_llada2_that_may_compute_something_else_is_refused(change: dict[str, Any], message: str) -> None:
    config = published_llada2(**change)
    with pytest.raises(UserError, match=message):
        family_of(config).model_config(config, LoadOptions())


def test_unknown_settings_that_are_off_change_nothing() -> None:
    config = published_llada2(later_setting=None, another=False)
    found = family_of(config).model_config(config, LoadOptions())
    assert found.to_dict() == LLaDA2().model_config(published_llada2(), LoadOptions()).to_dict()


def test_an_older_transformers_says_which_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    older = ModuleType("transformers")
    older.__version__ = "5.23.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", older)
    with pytest.raises(
        UserError, match=r"LLaDA2 needs transformers 5\.24 or later, and 5\.23\.0 is installed: pip install"
    ):
        LLaDA2().model_config(published_llada2(), LoadOptions())


FLASH = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
FLASH |= {"intermediate_size": 9216, "moe_intermediate_size": 1024}


@pytest.mark.parametrize(
    ("name", "changes", "parameters", "biases"),
    [
        ("inclusionAI/LLaDA2.0-mini", {}, 16_255_638_528, 4_864),
        ("inclusionAI/LLaDA2.0-mini", FLASH, 102_889_697_280, 7_936),
        ("JetLM/SDAR-30B-A3B-Chat", {}, 30_532_122_624, 0),
    ],
)
def test_published_sizes(name: str, changes: dict[str, int], parameters: int, biases: int) -> None:
    """Twice the parameters, and as often the biases, are the bytes that the published indices give."""
    config = {**json.loads(SHAPES.read_text())[name], **changes}
    with torch.device("meta"):
        model = skeleton(config, LoadOptions(block_size=4))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(b.numel() for path, b in model.named_buffers() if path.endswith("correction_bias")) == biases


def test_routers_compute_in_float32_whatever_the_precision(folder: Path) -> None:
    """In bfloat16, and in mixed precision, where torch would round them."""
    ids, full = torch.arange(1, 12)[None], torch.ones(1, 11, dtype=torch.bool)
    for dtype, context in (("bfloat16", False), ("float32", True)):
        policy = load_policy(folder, block_size=BLOCK, dtype=dtype)
        router: Any = policy.model.get_submodule("model.layers.1.mlp.gate")
        seen = []

        def keep(module: nn.Module, args: Any, out: Any, seen: list[Any] = seen) -> None:
            seen.append((args[0], out))

        router.register_forward_hook(keep)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=context):
            policy(ids, full, full)
        hidden, (logits, weights, _) = seen[0]
        assert (logits.dtype, weights.dtype, router.weight.dtype) == (torch.float32,) * 3
        exact = hidden.double().flatten(0, -2) @ router.weight.double().T
        torch.testing.assert_close(logits.double(), exact, rtol=0, atol=1e-5)


def test_experts_that_were_chosen_are_counted(folder: Path) -> None:
    policy = load_policy(folder, block_size=BLOCK)
    chosen: list[torch.Tensor] = []
    routers = [part for path, part in policy.model.named_modules() if path.endswith("mlp.gate")]
    for router in routers:
        router.register_forward_hook(lambda _, args, out: chosen.append(out[2]))
    ids, full = torch.arange(1, 12)[None], torch.ones(1, 11, dtype=torch.bool)
    assert policy.take_metrics() == {}
    policy(ids, full, full)  # with gradients: in the update nothing is counted
    assert policy.take_metrics() == {}
    chosen.clear()
    with torch.no_grad():
        policy(ids, full, full)
        policy(ids[:, :5], full[:, :5], full[:, :5])
    loads = [torch.cat(chosen[i :: len(routers)]).flatten().bincount(minlength=8).double() for i in range(len(routers))]
    wanted = sum(load.max().item() * 8 / load.sum().item() for load in loads) / len(loads)
    found = policy.take_metrics()
    assert found["router/imbalance"] == pytest.approx(wanted)
    assert found["router/unused"] == sum(float((load == 0).double().mean()) for load in loads) / len(loads)
    assert policy.take_metrics() == {}


def test_adapters_of_experts_are_refused_with_the_reason(tmp_path: Path) -> None:
    llada2_checkpoint(tmp_path / "base")
    save_adapter(Pretrained(str(tmp_path / "base"), lora_rank=2).load(), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({re.sub(r"attention\.dense", "mlp.experts.3.up_proj", k): v for k, v in load_file(path).items()}, path)
    with pytest.raises(
        UserError, match=r"experts\.3\.up_proj is an expert, and transformers holds all of a layer's in one"
    ):
        load_policy(tmp_path / "adapter")


def check_plain(kind: str, folder: Path, policy: Any) -> None:
    """What a run saved in the published layout loads in transformers without the kit, and computes the same.

    transformers does not know the published type of model; it is told the configuration of the class that has it.
    """
    given = json.loads((folder / "config.json").read_text())
    settings = {name: value for name, value in given.items() if name not in ("model_type", "auto_map", "architectures")}
    if kind == "llada2":
        from transformers.models.sarvam_moe.configuration_sarvam_moe import SarvamMoEConfig as Config
    else:
        from transformers import Qwen3MoeConfig as Config  # type: ignore[assignment]
    plain, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=Config(**settings), output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    state = plain.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in policy.model.state_dict().items())
    ids = torch.arange(16, 16 + 2 * BLOCK)[None] % 20
    block = torch.arange(ids.shape[1]) // BLOCK
    sees = (block[:, None] >= block[None])[None, None]
    full = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        expected = plain.eval()(input_ids=ids, attention_mask=sees).logits[0]
        torch.testing.assert_close(policy(ids, full, full), expected, rtol=1e-5, atol=1e-5)


OTHERS = {
    "llada2": tuple(i for i in range(24) if not 1 <= i <= 4),
    "sdar_moe": tuple(range(16)) + tuple(range(20, 264)),
}


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        ("llada2", 2),
        *(pytest.param(*k, marks=pytest.mark.thorough) for k in (("llada2", 0), ("sdar_moe", 2), ("sdar_moe", 0))),
    ],
)
def test_it_trains_from_the_command_line_and_transformers_loads_what_it_saved(
    kind: str, rank: int, tmp_path: Path
) -> None:
    """Two updates. The biases of the experts stay, and with LoRA all but attention does."""
    MAKERS[kind](tmp_path / "base", block=BLOCK)
    own = (f"Pretrained.path='{tmp_path / 'base'}'", f"Pretrained.forbidden_ids={OTHERS[kind]}")
    own += (f"Pretrained.lora_rank={rank}", f"Pretrained.block_size={BLOCK}", "Trainer.updates=2")
    result = train(tmp_path / "run", "egspo_sa", *BINDINGS, *own, "Sampler.block_length=4", "Sampler.tokens_per_step=1")
    assert "old and new log-probabilities agree before the first update" in result.output
    metrics = read_metrics(tmp_path / "run")
    assert len(metrics["router/imbalance"]) == len(metrics["router/unused"]) == 2
    before, after = tensors_of(tmp_path / "base"), tensors_of(tmp_path / "run" / "model")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any("expert_bias" in name for name in moved)
    if rank:
        assert all("attention." in name or "self_attn." in name for name in moved)
    else:
        assert any("experts" in name for name in moved)
        assert any("mlp.gate.weight" in name for name in moved)
    policy = load_policy(tmp_path / "run" / "model", block_size=BLOCK)
    check_plain(kind, tmp_path / "run" / "model", policy)
    save_transformers(policy, tmp_path / "native")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    state = plain.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in policy.model.state_dict().items())


def test_the_number_of_steps_of_a_row_is_bounded_by_its_positions(tmp_path: Path) -> None:
    """Blocks count from position 0 of the prompt, so a completion of two blocks may touch three."""
    from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold

    llada2_checkpoint(tmp_path, block=BLOCK)
    policy = load_policy(tmp_path, block_size=BLOCK)
    sampler = ConfidenceThreshold(2 * BLOCK, BLOCK, threshold=1.0)
    sampler.attach(policy)
    assert sampler.num_steps(policy) == 2 * BLOCK


def test_routers_are_written_in_the_files_precision_where_that_loses_nothing() -> None:
    layout = Layout({}, precisions={"a": torch.bfloat16, "b": torch.bfloat16})
    exact, trained = torch.tensor([1.0, 0.5, -3.0]), torch.tensor([1.0, 0.1])
    stored = layout.stored({"a": exact, "b": trained, "c": exact})
    assert [tensor.dtype for tensor in stored.values()] == [torch.bfloat16, torch.float32, torch.float32]
    assert torch.equal(stored["a"].float(), exact)
    assert stored["b"] is trained
