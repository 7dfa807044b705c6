"""The benchmarks compare like with like: the plain implementation and the kit compute the same numbers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.other_device import other_device
from support.paths import ROOT
from support.seeds import seeded

from dlmrl_kit.core import behaviour
from dlmrl_kit.core.policy import LOGITS_BYTES
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.core.trajectory import gather_steps
from dlmrl_kit.samplers.base import View

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu
import plain
import rollout
import sharing
import tight
import update
import vocabulary
from common import Size, full_ids, growth, interleaved, make_policy, make_prompts, make_sampler, masked_block_counts

SIZE = Size(vocab=40, hidden=64, layers=2, prompt=7, length=10, block=6, per_step=2, batch=4, selected=3, lora=4)
WIDE = Size(vocab=2100, hidden=64, layers=2, prompt=5, length=9, block=4, per_step=3, batch=3, selected=2, lora=0)
LARGE = replace(WIDE, vocab=4500, length=8)


def kit_run(policy: Any, prompts: Any, size: Size) -> Any:
    return rollout.kit(policy, prompts, size, (*rollout.RECORDS, ("token", "log_prob")))()


@pytest.mark.parametrize("size", [SIZE, WIDE, LARGE], ids=["adapter", "vocabulary searched twice", "one pass"])
@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "pieces"])
def test_rollouts_are_identical(size: Size, pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same noise, same commits; log-probabilities and entropies within 1e-5. Also cut into the smallest pieces."""
    if pieces:
        monkeypatch.setitem(LOGITS_BYTES, True, 1)
        monkeypatch.setitem(behaviour._PIECE_BYTES, True, 1)
    policy, prompts = make_policy(size), make_prompts(size)
    prompts["prompt_mask"][0, :2] = False
    found = kit_run(policy, prompts, size)
    wanted = plain.rollout(policy, prompts, size, torch.Generator().manual_seed(1), plain.inverse_draw)
    assert torch.equal(found["completion_ids"], wanted.completion)
    assert torch.equal(found["commit_step"].long(), wanted.commit_step)
    entropy = torch.stack(wanted.entropy, 1)
    chosen = entropy.argsort(dim=-1, descending=True, stable=True)[:, : size.selected]  # only there it is promised
    greedy = (torch.stack(wanted.greedy, 1), found["step", "greedy_ids"].long())
    assert torch.equal(*(gather_steps(ids, chosen) for ids in greedy))
    for key in ("log_prob", "model_log_prob", "entropy"):
        values = torch.stack(getattr(wanted, key), 1).float()
        torch.testing.assert_close(found["step", key], values, rtol=1e-5, atol=1e-5)


def test_updates_have_the_same_gradient() -> None:
    policy, prompts = make_policy(SIZE), make_prompts(SIZE)
    kit = update.make_update(policy, SIZE)
    run = update.trajectory(policy, prompts, SIZE, kit)
    advantage = run["advantage"][:, None].expand(-1, SIZE.selected)
    kept, steps = update.as_plain(policy, run, SIZE), run["selected", "step"]
    fixed = plain.reference(policy, prompts, kept, steps)
    plain.update(policy, prompts, kept, advantage, steps, fixed, update.BETA)
    wanted = {name: parameter.grad.clone() for name, parameter in policy.trainable()}
    policy.zero_grad()
    grads: dict[str, torch.Tensor] = {}
    kit.optimiser.register_step_pre_hook(
        lambda *_: grads.update({name: p.grad.clone() for name, p in policy.trainable()})
    )
    update.learn(kit, run)
    scale = max(value.abs().max() for value in wanted.values())
    assert scale > 1e-4
    for name, value in wanted.items():
        assert (grads[name] - value).abs().max() < 1e-5 * max(1.0, float(scale))


def test_merging_the_adapter_leaves_every_bit_of_the_base() -> None:
    policy, prompts = make_policy(SIZE), make_prompts(SIZE)
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    ids, mask = prompts["prompt_ids"], prompts["prompt_mask"]
    outside = policy(ids, mask, mask)
    with policy.merged(), torch.no_grad():
        inside = policy(ids, mask, mask)
        changed = [n for n, tensor in policy.model.state_dict().items() if not torch.equal(tensor, before[n])]
        with policy.merged():  # once more changes nothing
            torch.testing.assert_close(policy(ids, mask, mask), inside, rtol=0, atol=0)
        torch.testing.assert_close(policy(ids, mask, mask), inside, rtol=0, atol=0)
    assert len(changed) == 7 * SIZE.layers
    torch.testing.assert_close(inside, outside, rtol=1e-5, atol=1e-5)
    after = policy.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    with policy.reference(), torch.no_grad():
        base = policy(ids, mask, mask)
    assert (base - inside).abs().max() > 1e-3
    assert torch.equal(policy(ids, mask, mask), outside)


@pytest.mark.parametrize("temperature", [0.9, 1.0])
def test_fused_and_differentiable_log_probabilities_agree(temperature: float) -> None:
    """What the rollout computes in pieces without gradients, the likelihoods compute with them."""
    generator = torch.Generator().manual_seed(5)
    sampler = make_sampler(SIZE)
    allowed = torch.rand(6, 10, generator=generator) < 0.7
    allowed[:, 0] = True
    scale = torch.tensor([0.1, 1.0, 4.0, 12.0, 30.0])[torch.randint(0, 5, (int(allowed.sum()),), generator=generator)]
    logits = torch.randn(int(allowed.sum()), 50, generator=generator) * scale[:, None]
    behaving = behaviour.Behaviour(temperature)
    with torch.inference_mode():
        view = View(logits.clone(), behaving, allowed)
        decision = sampler.decide(view, sample_seeds(6, "cpu", 5))
        without = sampler.action_log_prob(view, decision).clone()
    with_gradient = sampler.action_log_prob(View(logits.requires_grad_(), behaving, allowed), decision)
    assert with_gradient.requires_grad
    torch.testing.assert_close(without, with_gradient.detach(), rtol=1e-5, atol=1e-5)


def test_a_large_vocabulary_is_searched_exactly() -> None:
    """The search in two steps finds what a float64 cumulative sum finds, and never a token of weight 0."""
    generator = torch.Generator().manual_seed(6)
    weights = torch.rand(64, 5000, generator=generator) ** 8
    weights[:, torch.rand(5000, generator=generator) < 0.5] = 0.0
    weights[:, 1024:2048] = 0.0  # whole blocks of nothing
    noise = torch.rand(64, generator=generator, dtype=torch.float64)
    found = behaviour.invert(weights, noise)
    assert (weights.gather(1, found[:, None]) > 0).all()
    cumulative = weights.double().cumsum(-1) / weights.double().sum(-1, keepdim=True)
    upper = cumulative.gather(1, found[:, None]).squeeze(1)
    lower = upper - weights.double().gather(1, found[:, None]).squeeze(1) / weights.double().sum(-1)
    assert ((lower - 1e-6 <= noise) & (noise <= upper + 1e-6)).all()
    for extreme in (0.0, 1 - 2**-32):
        at_end = behaviour.invert(weights, torch.full((64,), extreme, dtype=torch.float64))
        assert (weights.gather(1, at_end[:, None]) > 0).all()


def test_the_floor_heads_as_many_positions_as_the_sampler_asks() -> None:
    sampler = make_sampler(SIZE)
    policy, prompts = make_policy(SIZE), make_prompts(SIZE)
    counts: list[int] = []
    features = policy.features

    def counted(ids: Any, mask: Any, positions: Any) -> Any:
        counts.append(int(positions[0].sum()))
        return features(ids, mask, positions)

    policy.features = counted  # type: ignore[method-assign]
    sampler(seeded(prompts), policy=policy)
    assert counts == masked_block_counts(SIZE)


def test_the_tight_floor_is_the_model_of_the_policy() -> None:
    """Its logits at the columns that it computes are the policy's, with the adapter."""
    policy, prompts = make_policy(SIZE), make_prompts(SIZE)
    ids, mask, _ = full_ids(prompts, torch.full((SIZE.batch, SIZE.length), policy.mask_id))
    asked = torch.zeros_like(mask)
    asked[:, -4:] = True
    with torch.inference_mode():
        wanted = policy(ids, mask, asked)
        for joined in (True, False):
            model = tight.Transformer(policy, joined)
            found = model.features(ids, slice(ids.shape[1] - 4, ids.shape[1])).flatten(0, 1)
            torch.testing.assert_close(model.logits(found), wanted, rtol=1e-5, atol=1e-5)
    behind = tight.behind_counts(policy, prompts, SIZE)
    blocks, steps = (SIZE.length - SIZE.block, SIZE.block // SIZE.per_step)
    assert set(behind) == {blocks}  # the first block's steps have the second behind them
    assert SIZE.batch * (SIZE.selected - (SIZE.steps - steps)) <= len(behind) <= SIZE.batch * SIZE.selected


@pytest.mark.thorough
def test_the_gpu_benchmark_runs_on_a_device_of_its_own() -> None:
    """Nothing of it, nor of the plain implementation and the floor, is left on the CPU."""
    with other_device() as device:
        size = replace(SIZE, device=str(device), batch=2, length=6, block=3, layers=1, selected=2)
        rows = gpu.measure(size, repeats=1, with_plain=True, side=8)
    of = {row["work"]: row for row in rows}
    assert all(row["seconds"] > 0 and row["share_of_peak"] > 0 for row in rows)
    assert of["rollout, DualCache"]["tera_operations"] < of["rollout, kit"]["tera_operations"]
    assert of["rollout, kit"]["tera_operations"] < of["rollout, plain"]["tera_operations"]
    assert of["update, kit"]["tera_operations"] < of["update, plain"]["tera_operations"]


def test_operations_are_counted() -> None:
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    assert gpu.operations(lambda: left @ right) == 2 * 3 * 5 * 7


SMALL = ["--vocab", "40", "--hidden", "64", "--batch", "2", "--repeats", "1"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (rollout, [*SMALL, "--prompt", "5", "--length", "8", "--layers", "1", "--caches", "--vocab", "50"]),
        (update, [*SMALL, "--selected", "1", "--selected", "2"]),
        (tight, [*SMALL, "--prompt", "5", "--length", "8", "--layers", "1"]),
        (vocabulary, [*SMALL, "--length", "8", "--temperature", "1"]),
        (gpu, [*SMALL, "--layers", "1", "--mlp", "64", "--head", "32", "--prompt", "5", "--length", "8", "--lora", "2",
               "--device", "cpu", "--dtype", "float32", "--side", "8"]),
    ],
)  # fmt: skip
def test_the_scripts_print_and_write(
    script: Any, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["script", *arguments, "--out", str(tmp_path)])
    script.main()
    name = script.__name__
    stored = json.loads((tmp_path / f"{name}.json").read_text())
    assert stored["rows"]
    header = capsys.readouterr().out.splitlines()[0].split()
    assert header[0] == next(iter(stored["rows"][0]))
    assert name in ("gpu", "tight", "vocabulary") or (tmp_path / f"{name}.png").stat().st_size > 1000


def test_growth_and_medians() -> None:
    assert growth([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert growth([1, 2, 4], [5, 5, 5]) == pytest.approx(0)
    calls: list[str] = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert set(seconds) == {"a", "b"}


@pytest.mark.parametrize(("block_size", "hidden_size"), [(4, 10**6), (32, 16)])
def test_positions_that_states_share_are_counted(block_size: int, hidden_size: int) -> None:
    """Nothing is left out, padding comes on top, and one state of each sample shares its group's prompt only."""
    several, single = (sharing.trajectories(block_size, selected) for selected in (3, 1))
    found = sharing.counted(several, block_size, hidden_size, 6)
    assert found.once <= found.shared <= found.packed < found.whole
    assert found.once < found.real <= found.whole
    prompts = several["prompt_mask"][:: sharing.GROUP].sum(-1) // block_size * block_size
    assert found.once >= int(prompts.sum())
    alone = sharing.counted(single, block_size, hidden_size, 1)
    assert alone.once == alone.shared == alone.packed
    assert alone.once > sharing.counted(single, block_size, hidden_size, 6).once
