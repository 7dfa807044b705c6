"""Compiled transformer blocks: the numbers of the blocks as they are, compiled once for each state, in place."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.block_checkpoints import diffusion_gemma_checkpoint, sdar_checkpoint
from support.checkpoints import llada_moe_checkpoint, masked_checkpoint
from support.llada2 import llada2_checkpoint
from support.runs import build, new_run, prepared, rollout, sgd, weights
from support.runs import recipe as tiny_recipe
from support.seeds import seeded
from tensordict import TensorDict
from torch import Tensor, nn
from torch._dynamo.utils import counters

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies import compiling
from dlmrl_kit.policies.adapter import blocks, lora_config
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.policies.compiling import check_compiler
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.recompute import recompute_blocks
from dlmrl_kit.policies.saving import save_adapter, save_transformers
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.trainers.trainer import Trainer
from dlmrl_kit.training.checkpoint import checkpoints
from dlmrl_kit.training.small_update import small_update

USES = ["policy=CharacterLlama"]
SETS = ["CharacterLlama.num_layers = 3", "CharacterLlama.hidden_size = 16"]
NAMES = [name for name, _ in CharacterLlama(hidden_size=16, num_layers=3).load().model.named_parameters()]


@pytest.fixture(autouse=True)
def _clean_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would keep all of it
    torch._dynamo.reset()
    counters.clear()
    before = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = before
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are traced and guarded as always, but their graphs run as they are: fast, and without a C++ compiler."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")


@pytest.fixture
def compiler() -> Iterator[None]:
    """Works in this process: others would first import torch."""
    with torch._inductor.config.patch({"compile_threads": 1}):
        try:
            check_compiler(torch.device("cpu"))
        except UserError as error:
            pytest.skip(str(error))
        yield


def small(layers: int = 3, lora: int = 4) -> TransformersPolicy:
    """A random model, with an adapter that does something."""
    torch.manual_seed(0)
    policy = CharacterLlama(hidden_size=16, num_layers=layers, num_heads=2).load()
    return adapted(policy, lora) if lora else policy


def adapted(policy: TransformersPolicy, rank: int = 4) -> TransformersPolicy:
    policy.add_adapter(lora_config(policy.model, rank, 2 * rank))
    move(policy, 0)
    return policy


def move(policy: TransformersPolicy, seed: int) -> None:
    """Other weights of the same size, as an optimiser step leaves them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def states(batch: int, length: int, padded: bool, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 11, (batch, length), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    if padded:
        mask[0, :2] = False
    positions = torch.zeros_like(mask)
    positions[:, -4:] = True
    return ids, mask, positions


def bert_checkpoint(folder: Path) -> None:
    masked_checkpoint(folder, "bert")


def log_probs(policy: TransformersPolicy, *inputs: Tensor) -> Tensor:
    return policy(*inputs).log_softmax(-1)


def gradients(policy: TransformersPolicy, *inputs: Tensor) -> Tensor:
    """Of the update: the adapter with its fused products, where there is one."""
    policy.zero_grad()
    with policy.fused():
        log_probs(policy, *inputs)[:, 5].mean().backward()
    return torch.cat([p.grad.reshape(-1) for _, p in policy.trainable() if p.grad is not None])


def in_every_state(policy: TransformersPolicy, *inputs: Tensor) -> list[Tensor]:
    """Adapter merged as in rollouts, switched off, on, and on with gradients: what training computes."""
    with policy.merged(), torch.inference_mode():
        found = [log_probs(policy, *inputs).clone()]
    with torch.no_grad():
        if policy.adapter is not None:
            with policy.reference():
                found.append(log_probs(policy, *inputs))
        found.append(log_probs(policy, *inputs))
    return [*found, gradients(policy, *inputs)]


def agree(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def graphs() -> int:
    """How often something was compiled."""
    return int(counters["stats"]["unique_graphs"])


# ------------------------------------------------------------------------------------------- the numbers


def prompts(batch: int) -> TensorDict:
    ids = torch.randint(4, 11, (batch, 5), generator=torch.Generator().manual_seed(1))
    return TensorDict({"prompt_ids": ids, "prompt_mask": torch.ones_like(ids, dtype=torch.bool)}, [batch])


def rolled_out(policy: TransformersPolicy, batch: int) -> dict[Any, Tensor]:
    sampler = LowConfidence(8, 2, 4)
    return sampler.decode(seeded(prompts(batch), 2), policy=policy)


@pytest.mark.thorough
@pytest.mark.usefixtures("compiler")
def test_rollouts_and_gradients_are_those_of_the_blocks_as_they_are() -> None:
    """Compiled for good; nothing is compiled again for other weights, batch sizes and lengths."""
    policy, twin = small(2), small(2)
    policy.compile_blocks("default")
    for seed, batch, length in [(0, 5, 9), (1, 3, 11)]:
        move(policy, seed)
        move(twin, seed)
        found, wanted = rolled_out(policy, batch), rolled_out(twin, batch)
        assert torch.equal(found["completion_ids"], wanted["completion_ids"])
        torch.testing.assert_close(found["step", "log_prob"], wanted["step", "log_prob"], rtol=1e-5, atol=1e-5)
        inputs = states(batch, length, padded=False, seed=seed)
        agree([gradients(policy, *inputs)], [gradients(twin, *inputs)])
        if seed == 0:
            first = graphs()
    assert first == graphs() == 3  # the compiler's check, the rollout, the update
    assert not counters["graph_break"]


@pytest.mark.thorough
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("lora", [4, 0], ids=["adapter", "all weights"])
def test_what_is_compiled_for_one_state_is_not_used_in_another(lora: int) -> None:
    """Adapter, gradients, padding and single rows in any order; the number of layers does not count."""
    policy, twin = small(4, lora), small(4, lora)
    policy.compile_blocks("default")
    counts = []
    for round_ in range(2):
        for batch, padded in [(3, False), (2, True)] if lora else [(3, False), (1, False)]:
            batch += 2 * round_ * (batch > 1)
            move(policy, round_ + batch)
            move(twin, round_ + batch)
            inputs = states(batch, 7 + batch, padded, batch)
            found, wanted = in_every_state(policy, *inputs), in_every_state(twin, *inputs)
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        counts.append(graphs())
    assert 0 < counts[0] == counts[1] < compiling.STATES / 2


@pytest.mark.usefixtures("traced")
@pytest.mark.slow
@pytest.mark.parametrize("write", [sdar_checkpoint, llada_moe_checkpoint, llada2_checkpoint, bert_checkpoint])
def test_families(write: Any, tmp_path: Path) -> None:
    write(tmp_path)
    policy, twin = adapted(load_policy(tmp_path)), adapted(load_policy(tmp_path))
    policy.compile_blocks("default")
    for batch in (2, 3):
        inputs = states(batch, 12, padded=True, seed=batch)
        agree(in_every_state(policy, *inputs), in_every_state(twin, *inputs))
    assert 4 <= graphs() <= 10  # two kinds of blocks in LLaDA-MoE


@pytest.mark.thorough
@pytest.mark.usefixtures("traced")
def test_blocks_with_cached_keys_run_as_they_are(tmp_path: Path) -> None:
    """Each of them would be compiled for itself; without the cache they are compiled."""
    sdar_checkpoint(tmp_path)
    policy, twin = adapted(load_policy(tmp_path)), adapted(load_policy(tmp_path))
    policy.compile_blocks("default")
    before = graphs()
    found, wanted = rolled_out(policy, 3), rolled_out(twin, 3)
    assert torch.equal(found["completion_ids"], wanted["completion_ids"])
    assert torch.equal(found["step", "log_prob"], wanted["step", "log_prob"])
    assert graphs() == before
    log_probs(policy, *states(2, 12, padded=False))
    assert graphs() > before


@pytest.mark.thorough
@pytest.mark.usefixtures("traced")
def test_blocks_that_recompute_their_activations() -> None:
    policy, twin = small(), small()
    recompute_blocks(policy.model)
    policy.compile_blocks("default")
    inputs = states(3, 9, padded=False)
    agree([gradients(policy, *inputs)], [gradients(twin, *inputs)])


# --------------------------------------------------------------------------------------------- in place


@pytest.mark.thorough
@pytest.mark.usefixtures("traced")
def test_names_and_files_stay(tmp_path: Path) -> None:
    policy, twin = small(), small()
    policy.compile_blocks("default")
    log_probs(policy, *states(2, 8, padded=False))
    assert [name for name, _ in policy.trainable()] == [name for name, _ in twin.trainable()]
    assert list(policy.state_dict()) == list(twin.state_dict())
    for one, folder in ((policy, "compiled"), (twin, "plain")):
        save_transformers(one, tmp_path / folder)
        save_adapter(one, tmp_path / folder / "adapter")
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "compiled" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    again = copy.deepcopy(policy)  # as the reference is made
    assert torch.equal(log_probs(again, *states(2, 8, padded=False)), log_probs(twin, *states(2, 8, padded=False)))


@pytest.mark.thorough
@pytest.mark.usefixtures("traced")
def test_a_run_compiles_policy_and_reference(tmp_path: Path) -> None:
    """Traced blocks compute the same bits, so the whole update does."""
    runs = []
    for name, more in (("compiled", ["Trainer.compile = 'default'"]), ("plain", [])):
        run = new_run(tmp_path / name, "egspo", [*SETS, *more], USES)
        sgd(run).learn(prepared(run.update, rollout(run)), 0)
        runs.append(run)
    compiled, plain = (run.policy for run in runs)
    assert compiled.compiled
    assert not plain.compiled
    for model in (compiled.model, compiled.frozen):
        assert model is not None
        assert all(block._compiled_call_impl is not None for block in blocks(model).values())
    assert all(block._compiled_call_impl is None for block in blocks(plain.model).values())
    assert graphs() > 0
    assert torch.equal(weights(compiled), weights(plain))
    assert list(runs[0].parameters) == list(runs[1].parameters) == NAMES


@pytest.mark.usefixtures("traced")
def test_the_small_update_of_a_dry_run_is_not_compiled() -> None:
    algorithm = build("egspo", [*SETS, "Trainer.compile = 'default'"], USES)
    assert "worked" in small_update(algorithm, algorithm.policy)
    assert graphs() == 0
    assert algorithm.trainer.compile == "default"


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune", "fast", ""])
def test_other_modes_are_refused(mode: str) -> None:
    wanted = r"Trainer\.compile must be None or one of default, max-autotune-no-cudagraphs"
    with pytest.raises(ValueError, match=wanted):
        Trainer(compile=mode)


def test_models_that_cannot_be_compiled_are_refused(tmp_path: Path) -> None:
    diffusion_gemma_checkpoint(tmp_path / "gemma")
    with pytest.raises(UserError, match="not for DiffusionGemma"):
        load_policy(tmp_path / "gemma").compile_blocks("default")
    sdar_checkpoint(tmp_path / "sdar")
    with pytest.raises(UserError, match="flex_attention"):
        load_policy(tmp_path / "sdar", attention="flex_attention").compile_blocks("default")
    policy = small(lora=0)
    policy.model = nn.Linear(2, 2)
    policy.model.config = None  # type: ignore[assignment]
    with pytest.raises(UserError, match="Linear has no transformer blocks"):
        policy.compile_blocks("default")
    assert not policy.compiled


@pytest.mark.thorough
def test_a_machine_without_a_compiler_says_so(tmp_path: Path) -> None:
    missing = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.raises(UserError, match=r"does not work on cpu here .*needs a C\+\+ compiler"):
        new_run(tmp_path, "egspo", ["Trainer.compile = 'default'"])
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- slow


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Compiled anew in each process."""
    sets = [*SETS, "Trainer.compile = 'default'", "Trainer.updates = 3"]
    file = tmp_path / "tiny.gin"
    file.write_text(tiny_recipe("egspo", sets, USES).text())
    script = (
        "import sys; from pathlib import Path; from dlmrl_kit.recipe.load import load_recipe;"
        "from dlmrl_kit.training import train, resume; from dlmrl_kit.core.results import RunObserver\n"
        "class Stop(RunObserver):\n"
        "    def on_update(self, update, metrics):\n"
        "        if sys.argv[3] == 'stop' and update == 1: raise KeyboardInterrupt\n"
        "folder = Path(sys.argv[2])\n"
        "if folder.exists(): resume(folder, observer=Stop())\n"
        "else: train(load_recipe(sys.argv[1]), folder, observer=Stop())"
    )

    def process(folder: str, how: str) -> int:
        command = [sys.executable, "-c", script, str(file), str(tmp_path / folder), how]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True).returncode

    assert process("whole", "go") == 0
    assert process("broken", "stop") != 0
    assert [done for done, _ in checkpoints(tmp_path / "broken")] == [1]
    assert process("broken", "go") == 0
    for name in ("weights.safetensors", "optimiser.safetensors"):
        one, other = (checkpoints(tmp_path / folder)[-1][1] / name for folder in ("whole", "broken"))
        assert one.read_bytes() == other.read_bytes()


def test_uncompiled_is_nothing_where_it_is_not_wanted() -> None:
    assert isinstance(compiling.uncompiled(False), contextlib.nullcontext)
