"""DiffusionGemma: logits are transformers' own, files are saved as they were, adapters, encoded prefixes, training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.block_checkpoints import CANVAS, diffusion_gemma_checkpoint, padded_batch
from support.command_line import BINDINGS, train
from support.diffusion_gemma import LENGTH, LENGTHS, batch, prompts
from support.seeds import seeded
from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.adapter import lora_config
from dlmrl_kit.policies.families.diffusion_gemma import DiffusionGemmaPolicy
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.saving import save_adapter, save_transformers
from dlmrl_kit.rollout.environment import DenoisingEnv, SamplerPolicy
from dlmrl_kit.samplers.entropy_bound_renoising import EntropyBoundRenoising
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.tasks.sudoku import Sudoku4x4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("diffusion-gemma")
    return folder, diffusion_gemma_checkpoint(folder)


@pytest.fixture(scope="module")
def policy(checkpoint: tuple[Path, Any]) -> Any:
    return load_policy(checkpoint[0])


def reference(model: Any, row: Tensor, canvas: int) -> Tensor:
    """Transformers' own forward on one unpadded row: [CANVAS, V]."""
    start = len(row) - LENGTH + canvas * CANVAS
    given = {"input_ids": row[None, :start], "decoder_input_ids": row[None, start : start + CANVAS]}
    logits: Tensor = model(**given).logits[0]
    return logits


def test_logits_are_those_of_transformers(checkpoint: tuple[Path, Any], policy: Any) -> None:
    assert isinstance(policy, DiffusionGemmaPolicy)
    assert (policy.block_size, policy.noise) == (CANVAS, "uniform")
    tokens = policy.tokenizer.convert_tokens_to_ids
    assert policy.eos_ids == (tokens("<turn|>"), tokens("<eos>"))
    assert policy.prefix_ids == (tokens("<bos>"),)
    assert {policy.mask_id, policy.vocab_size - 1} <= set(policy.forbidden_ids)
    ids, mask = batch()
    width = max(LENGTHS)
    with torch.no_grad():
        rows = [[reference(checkpoint[1], row[real], c) for c in (0, 1)] for row, real in zip(ids, mask, strict=True)]
        for canvas in (0, 1):
            asked = torch.zeros_like(mask)
            asked[:, width + canvas * CANVAS : width + (canvas + 1) * CANVAS] = True
            expected = torch.cat([row[canvas] for row in rows])
            torch.testing.assert_close(policy(ids, mask, asked), expected, atol=1e-5, rtol=0)
        mixed = torch.zeros_like(mask)  # rows at different canvases, one at both, one at none
        mixed[0, width:] = True
        mixed[1, width + 5] = True
        mixed[2, width + 1 : width + 3] = True
        mixed[4, width + 3 : width + 6] = True
        places = [(i, j - width) for i, j in mixed.nonzero().tolist()]
        expected = torch.stack([rows[i][j // CANVAS][j % CANVAS] for i, j in places])
        torch.testing.assert_close(policy(ids, mask, mixed), expected, atol=1e-5, rtol=0)
        index = torch.tensor([[width + 7, width, width + 2]] * len(LENGTHS))
        expected = torch.stack([torch.stack([row[1][3], row[0][0], row[0][2]]) for row in rows])
        torch.testing.assert_close(policy(ids, mask, index), expected, atol=1e-5, rtol=0)
        assert policy(ids, mask, torch.zeros_like(mask)).shape == (0, policy.vocab_size)


def test_logits_depend_exactly_on_the_canvas_and_what_is_before_it(policy: Any) -> None:
    ids, mask = padded_batch(16, (5,), LENGTH)
    asked = torch.zeros_like(mask)
    asked[:, 5 : 5 + CANVAS] = True
    with torch.no_grad():
        before = policy(ids, mask, asked)
        for changed in range(ids.shape[1]):
            other = ids.clone()
            other[0, changed] = (ids[0, changed] + 1) % 16
            moved = (policy(other, mask, asked) - before).abs().amax(-1) > 0
            assert bool((moved == (changed < 5 + CANVAS)).all())


def test_masks_and_broken_canvases_are_refused(policy: Any) -> None:
    ids, mask = batch()
    asked = torch.zeros_like(mask)
    asked[:, -1] = True
    masked = ids.index_fill(1, torch.tensor([ids.shape[1] - 2]), policy.mask_id)
    with pytest.raises(UserError, match="no mask"):
        policy(masked, mask, asked)
    asked = torch.zeros_like(mask)
    asked[:, 0] = True
    with pytest.raises(UserError, match="whole canvases of 4"):
        policy(ids, mask, asked)
    with pytest.raises(UserError, match="take a sampler that does, such as EntropyBoundRenoising"):
        LowConfidence(LENGTH, 1, CANVAS)(prompts(), policy=policy)
    with pytest.raises(UserError, match=r"set EntropyBoundRenoising\.block_length = 4"):
        EntropyBoundRenoising(LENGTH, 3)(prompts(), policy=policy)
    with pytest.raises(UserError, match="fills masks"):
        DenoisingEnv(Sudoku4x4(num_train=4), policy, LENGTH, batch_size=2)
    with pytest.raises(ValueError, match="one that fills masks"):
        SamplerPolicy(EntropyBoundRenoising(LENGTH), policy)


def test_encoder_and_decoder_share_the_adapter(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    policy: Any = load_policy(checkpoint[0])
    base = {name: p.clone() for name, p in policy.model.named_parameters()}
    policy.add_adapter(lora_config(policy.model, 4, 8))
    assert all(".lora_" in name for name, _ in policy.trainable())
    modules = {name.partition(".lora_")[0].split(".")[-1] for name, _ in policy.trainable()}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    ids, mask = batch()
    asked = torch.zeros_like(mask)
    asked[:, -CANVAS:] = True
    with torch.no_grad():
        tuned = policy(ids, mask, asked)
        with policy.reference():
            plain = policy(ids, mask, asked)
        with policy.merged():
            torch.testing.assert_close(policy(ids, mask, asked), tuned, atol=1e-5, rtol=0)
        assert torch.equal(policy(ids, mask, asked), tuned)
        assert (plain - tuned).abs().max() > 0.05
        save_transformers(policy, tmp_path / "merged")
        save_adapter(policy, tmp_path / "adapter")
        for name in ("merged", "adapter"):
            again: Any = load_policy(tmp_path / name)
            torch.testing.assert_close(again(ids, mask, asked), tuned, atol=1e-5, rtol=0)
            layer = again.model.model.decoder.layers[0].self_attn.q_proj.weight
            assert layer is again.model.model.encoder.language_model.layers[0].self_attn.q_proj.weight
    now = dict(policy.model.named_parameters())
    assert all(torch.equal(p, now[n if n in now else _inside(n)]) for n, p in base.items())


def _inside(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{module}.base_layer.{leaf}"


class Seen(DiffusionGemmaPolicy):
    """Keeps how many prefixes each forward encoded, and compares every forward with one without the cache."""

    def __init__(self, policy: Any) -> None:
        super().__init__(policy.model, policy.tokenizer, listed_ends=policy.eos_ids)
        self.encoded: list[int] = []

    def _encode(self, ids: Tensor, mask: Tensor) -> Any:
        self.encoded.append(len(ids))
        return super()._encode(ids, mask)

    def hidden_at(self, *given: Tensor) -> Tensor:
        found = super().hidden_at(*given)
        count = len(self.encoded)
        self._caching = False
        torch.testing.assert_close(found, super().hidden_at(*given), atol=1e-5, rtol=0)
        self._caching, self.encoded = True, self.encoded[:count]
        return found


def test_prefixes_are_encoded_once(policy: Any) -> None:
    seen = Seen(policy)
    sampler = EntropyBoundRenoising(LENGTH, CANVAS, steps=5, confidence_threshold=0, stop_at_eos=False)
    sampler(seeded(prompts()), policy=seen)
    assert seen.encoded == [len(LENGTHS)] * 2
    seen.encoded = []
    early = EntropyBoundRenoising(LENGTH, CANVAS, steps=5, confidence_threshold=2.0)  # rows part ways
    found = early(seeded(prompts(), 3), policy=seen)
    assert len(found["step", "valid"].sum(-1).unique()) > 1
    assert len(seen.encoded) < int(found["step", "valid"].any(0).sum())


@pytest.mark.thorough
def test_it_trains_from_the_command_line(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    """On digits alone, so that some of the cells are right; LoRA changes only the adapted layers."""
    others = tuple(i for i in range(22) if not 1 <= i <= 4)
    own = (f"Pretrained.path='{checkpoint[0]}'", f"Pretrained.forbidden_ids={others}", "Pretrained.lora_rank=4")
    steps = ("Sampler.block_length=4", "EntropyBoundRenoising.steps=3", "EntropyBoundRenoising.entropy_bound=1.0")
    result = train(tmp_path / "run", "egspo_sa", *BINDINGS, *own, *steps, uses=("sampler=EntropyBoundRenoising",))
    assert "old and new log-probabilities agree before the first update" in result.output
    before = load_file(checkpoint[0] / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    adapted = re.compile(r"model\.decoder\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
    assert moved == {name for name in before if adapted.fullmatch(name)}
