"""SDAR: published files load to block-causal logits, cached prefixes change nothing, samplers follow its blocks."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from block_checkpoints import BLOCK, block_causal_logits, padded_batch, sdar_checkpoint, sdar_config
from safetensors.torch import load_file
from tensordict import TensorDict
from torch import Tensor
from typer.testing import CliRunner

from dlmrl_kit.cli.app import app
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.likelihoods.block_replay import BlockReplay, rounds
from dlmrl_kit.likelihoods.step_log_prob import StepLogProb
from dlmrl_kit.likelihoods.step_token_log_prob import StepTokenLogProb
from dlmrl_kit.policies.adapter import lora_config
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.policies.block_causal import BlockCausalPolicy, attention_mask_for
from dlmrl_kit.policies.finished_blocks import FinishedBlocks
from dlmrl_kit.rollout.environment import DenoisingEnv, SamplerPolicy
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.selectors.k_steps import FirstK
from dlmrl_kit.selectors.top_k import EntropyTopK
from dlmrl_kit.tasks.sudoku import Sudoku4x4

LENGTHS = (9, 4, 1, 6, 3)
LENGTH = 10
OTHERS = tuple(i for i in range(264) if not 16 <= i <= 19)  # all tokens but the digits 1 to 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("sdar")
    return folder, sdar_checkpoint(folder)


@pytest.fixture(scope="module")
def policy(checkpoint: tuple[Path, Any]) -> Any:
    return Policy.from_pretrained(checkpoint[0])


def batch(lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    return padded_batch(256, lengths, LENGTH)


def prompts(lengths: tuple[int, ...] = LENGTHS) -> TensorDict:
    ids, mask = batch(lengths)
    width = max(lengths)
    return TensorDict({"prompt_ids": ids[:, :width], "prompt_mask": mask[:, :width]}, [len(lengths)])


def reference(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return torch.cat([block_causal_logits(model, row[real]) for row, real in zip(ids, mask, strict=True)])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_those_of_qwen3_under_an_explicit_mask(checkpoint: tuple[Path, Any], attention: str) -> None:
    policy = Policy.from_pretrained(checkpoint[0], attention=attention)
    assert isinstance(policy, BlockCausalPolicy)
    assert (policy.block_size, policy.mask_id, policy.eos_id) == (BLOCK, 261, 258)
    ids, mask = batch()
    with torch.no_grad():
        expected = reference(checkpoint[1], ids, mask)
        torch.testing.assert_close(policy(ids, mask, mask), expected, atol=1e-5, rtol=0)
        last = torch.tensor([[ids.shape[1] - 1, ids.shape[1] - 5]] * len(ids))
        rows = reference(checkpoint[1], ids[:1], mask[:1])
        torch.testing.assert_close(policy(ids[:1], mask[:1], last[:1])[0], rows[[-1, -5]], atol=1e-5, rtol=0)


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
    flexible = Policy.from_pretrained(checkpoint[0], attention="flex_attention")
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
        ({"model_type": "sdar_moe"}, {}, "sdar_moe"),
        ({"hidden_act": "silu"}, {"attention": "flash_attention_2"}, "flash_attention_2"),
    ],
)
def test_what_cannot_be_loaded_says_why(
    tmp_path: Path, changes: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    sdar_checkpoint(tmp_path / "broken", **changes)
    with pytest.raises(UserError, match=message):
        Policy.from_pretrained(tmp_path / "broken", **given)


def test_the_end_of_a_turn_ends_the_text(tmp_path: Path) -> None:
    """Whichever end the tokenizer names, where generation settings list several and the template writes one of them."""
    sdar_checkpoint(tmp_path)
    about = tmp_path / "tokenizer_config.json"
    about.write_text(about.read_text().replace('"eos_token": "<|im_end|>"', '"eos_token": "<|endoftext|>"'))
    assert Policy.from_pretrained(tmp_path).eos_id == 258
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 256}))
    assert Policy.from_pretrained(tmp_path).eos_id == 256


def test_a_block_size_that_was_given_is_kept(tmp_path: Path) -> None:
    sdar_checkpoint(tmp_path / "first", block_size="absent")
    policy = Policy.from_pretrained(tmp_path / "first", block_size=8)
    assert policy.block_size == 8
    policy.save_pretrained(tmp_path / "saved")
    policy.save_own_layout(tmp_path / "own")
    assert json.loads((tmp_path / "own" / "config.json").read_text()) == sdar_config(block_size="absent")
    for name in ("saved", "own"):
        assert Policy.from_pretrained(tmp_path / name).block_size == 8


def test_saved_and_read_again_it_is_the_same(checkpoint: tuple[Path, Any], policy: Any, tmp_path: Path) -> None:
    original = {name: tensor for f in checkpoint[0].glob("*.safetensors") for name, tensor in load_file(f).items()}
    policy.save_pretrained(tmp_path / "saved")
    policy.save_own_layout(tmp_path / "own")
    assert json.loads((tmp_path / "own" / "config.json").read_text()) == sdar_config()
    for name in ("saved", "own"):
        tensors = {n: t for f in (tmp_path / name).glob("*.safetensors") for n, t in load_file(f).items()}
        assert tensors.keys() == original.keys()
        assert all(torch.equal(tensors[key], original[key]) for key in original)
        again = Policy.from_pretrained(tmp_path / name)
        assert isinstance(again, BlockCausalPolicy)
        assert again.block_size == BLOCK


class Counted:
    """Tokens that go through a policy's body, for each of its forwards."""

    def __init__(self, policy: Any) -> None:
        self.tokens: list[int] = []
        self.handle = policy.model.get_decoder().register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        self.tokens.append(kwargs["input_ids"].shape[1])

    def __enter__(self) -> list[int]:
        return self.tokens

    def __exit__(self, *error: object) -> None:
        self.handle.remove()


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockCausalPolicy, "prefix_cache", lambda self: contextlib.nullcontext())


def rollout(policy: Any, sampler: Any, seed: int = 3) -> TensorDict:
    return sampler(prompts(), policy=policy, generator=torch.Generator().manual_seed(seed))


SAMPLERS = [
    LowConfidence(LENGTH, 1, BLOCK),
    LowConfidence(LENGTH, 2, BLOCK, temperature=0.7),
    ConfidenceThreshold(LENGTH, 0.3, BLOCK),
    RandomOrder(LENGTH, 3, 2 * BLOCK),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{type(s).__name__}-{s.block_length}")
@pytest.mark.parametrize("greedy", [False, True])
def test_cached_prefixes_change_no_logits(policy: Any, sampler: Any, greedy: bool) -> None:
    sampler.ask_for([("step", "greedy_ids")] if greedy else [])
    asked: list[tuple[Tensor, ...]] = []

    class Checked(BlockCausalPolicy):
        def hidden_at(self, *given: Tensor) -> Tensor:
            found = super().hidden_at(*given)
            cache, self._cache = self._cache, None
            assert cache is not None
            torch.testing.assert_close(found, super().hidden_at(*given), atol=1e-5, rtol=0)
            self._cache = cache
            asked.append(given)
            return found

    checked = Checked(policy.model, policy.tokenizer)
    checked.told = policy.told
    trajectory = rollout(checked, sampler)
    assert len(asked) == int(trajectory["step", "valid"].any(0).sum())


def test_only_unfinished_blocks_are_computed(policy: Any) -> None:
    """Prompts of six tokens: the first step also computes their first block; that of a block also the one before."""
    sampler = LowConfidence(LENGTH, 1, BLOCK, stop_at_eos=False)
    with Counted(policy) as tokens:
        sampler(prompts((6, 6, 6)), policy=policy, generator=torch.Generator().manual_seed(0))
    assert tokens == [8, 4, 8, 4, 4, 4, 8, 4, 4, 4]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{type(s).__name__}-{s.block_length}")
def test_one_step_completions_of_chosen_steps_are_those_of_all_steps(policy: Any, sampler: Any) -> None:
    """Made at the end, from the states; the rollout itself is the same bit for bit."""
    sampler, selector = copy.copy(sampler), EntropyTopK(3)
    sampler.ask_for([("step", "greedy_ids")])
    everything = rollout(policy, sampler)
    sampler.may_choose = partial(selector.kept, generator=None)
    found = rollout(policy, sampler)
    kept = selector.kept(found, None)
    greedy, wanted = found["step", "greedy_ids"], everything["step", "greedy_ids"]
    assert torch.equal(greedy[kept], wanted[kept])
    assert (greedy[(greedy != wanted).any(-1)] == -1).all()
    assert (greedy == -1).any()
    torch.testing.assert_close(
        found.exclude(("step", "greedy_ids")).to_dict(), everything.exclude(("step", "greedy_ids")).to_dict()
    )


def test_later_blocks_are_computed_for_chosen_states_only(policy: Any) -> None:
    """As ``test_only_unfinished_blocks_are_computed``; then the first two states, whose blocks from the second on."""
    sampler = LowConfidence(LENGTH, 1, BLOCK, stop_at_eos=False)
    sampler.ask_for([("step", "greedy_ids")])
    sampler.may_choose = partial(FirstK(2).kept, generator=None)
    with Counted(policy) as tokens:
        sampler(prompts((6, 6, 6)), policy=policy, generator=torch.Generator().manual_seed(0))
    assert tokens == [8, 4, 8, 4, 4, 4, 8, 4, 4, 4, 12, 12]


def test_a_rollout_is_the_same_without_the_cache(policy: Any, uncached: None) -> None:
    sampler = LowConfidence(LENGTH, 2, BLOCK, temperature=0.9)
    plain = rollout(policy, sampler)
    assert policy._cache is None
    with torch.inference_mode(), _cache(policy):
        cached = rollout(policy, sampler)
        assert policy._cache.tokens is not None
    for key in ("completion_ids", "commit_step"):
        assert torch.equal(plain[key], cached[key])
    torch.testing.assert_close(plain["step", "log_prob"], cached["step", "log_prob"], atol=1e-5, rtol=0)


@contextlib.contextmanager
def _cache(policy: Any) -> Iterator[None]:
    policy._cache = FinishedBlocks(policy.block_size)
    yield
    policy._cache = None


def test_blocks_are_counted_from_the_first_token_of_the_prompt(policy: Any) -> None:
    for sampler in SAMPLERS:
        found = rollout(policy, sampler)
        size = sampler.block_length
        for length, steps in zip(LENGTHS, found["commit_step"].tolist(), strict=True):
            blocks = [(length % BLOCK + position) // size for position in range(LENGTH)]
            order = sorted(zip(steps, blocks, strict=True))
            done = [block for step, block in order if step < sampler.max_steps]
            assert done == sorted(done)
            assert max(steps) <= sampler.max_steps


def test_decoding_is_that_of_the_release(checkpoint: tuple[Path, Any], policy: Any) -> None:
    """One row at a time as the released generation goes: block by block, the most confident token of each step."""
    lengths, total = (9, 4, 2, 7), 12
    ids, mask = padded_batch(256, lengths, total)
    width = max(lengths)
    given = TensorDict({"prompt_ids": ids[:, :width], "prompt_mask": mask[:, :width]}, [len(lengths)])
    sampler = LowConfidence(total, 1, BLOCK, temperature=0, stop_at_eos=False)
    found = sampler(given, policy=policy)["completion_ids"]
    for row, length in enumerate(lengths):
        text = [*ids[row, width - length : width].tolist(), *([policy.mask_id] * total)]
        for start in range(length // BLOCK * BLOCK, len(text), BLOCK):
            while policy.mask_id in text[start : start + BLOCK]:
                with torch.no_grad():
                    logits = block_causal_logits(checkpoint[1], torch.tensor(text))
                logits[:, list(policy.forbidden_ids)] = -torch.inf
                best = logits.softmax(-1).max(-1)
                open_ = [i for i in range(start, min(start + BLOCK, len(text))) if text[i] == policy.mask_id]
                chosen = max(open_, key=lambda i: best.values[i].item())
                text[chosen] = int(best.indices[chosen])
        assert found[row].tolist() == text[length:]


def test_recorded_log_probabilities_are_recomputed(policy: Any) -> None:
    sampler = LowConfidence(LENGTH, 1, BLOCK, temperature=0.9)
    trajectory = rollout(policy, sampler)
    valid = trajectory["step", "valid"]
    step = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    trajectory["selected"] = TensorDict({"step": step, "weight": valid.float()}, [len(LENGTHS)])
    found = StepLogProb()(trajectory, policy=policy, sampler=sampler)["selected", "log_prob"]
    torch.testing.assert_close(found.detach(), trajectory["step", "log_prob"], atol=1e-4, rtol=0)


def test_a_sampler_of_other_blocks_is_refused(policy: Any) -> None:
    for sampler in (LowConfidence(LENGTH, 1, 6), LowConfidence(LENGTH)):
        with pytest.raises(UserError, match=r"blocks of 4: set LowConfidence.block_length = 4"):
            rollout(policy, sampler)


def test_the_environment_has_the_same_blocks(policy: Any) -> None:
    sampler = LowConfidence(8, 1, BLOCK)
    env = DenoisingEnv(Sudoku4x4(num_train=8), policy, 8, batch_size=3, block_length=BLOCK, action_mask=False)
    actor = SamplerPolicy(sampler, policy, torch.Generator().manual_seed(0))
    end = env.rollout(9, actor, break_when_any_done=False, break_when_all_done=True)  # an illegal action would raise
    assert bool(end["next", "done"][:, -1].all())


TINY = (
    *("Sudoku4x4.num_train=8", "Sudoku4x4.num_heldout=4", "Sudoku4x4.cells_weight=0.7", "Trainer.updates=2"),
    *("Trainer.prompts_per_update=2", "Trainer.group_size=3", "Trainer.eval_every=0", "Trainer.eval_size=2"),
    *("Trainer.learning_rate=0.05", "Sampler.completion_length=16", "Selector.k=2"),
)


def train(folder: Path, recipe: str, *bindings: str, uses: tuple[str, ...] = ()) -> Any:
    arguments = ["train", recipe, "--out", str(folder)]
    arguments += [part for binding in bindings for part in ("--set", binding)]
    arguments += [part for use in uses for part in ("--use", use)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result


def test_it_trains_from_the_command_line_and_lora_changes_adapters_only(
    checkpoint: tuple[Path, Any], tmp_path: Path
) -> None:
    own = (f"Pretrained.path='{checkpoint[0]}'", f"Pretrained.forbidden_ids={OTHERS}", "Pretrained.lora_rank=4")
    blocks = ("Sampler.block_length=4", "Sampler.tokens_per_step=1")
    result = train(tmp_path / "run", "egspo_sa", *TINY, *own, *blocks)
    assert "old and new log-probabilities agree before the first update" in result.output
    base = Policy.from_pretrained(checkpoint[0])
    before = dict(base.model.named_parameters())
    after = dict(Policy.from_pretrained(tmp_path / "run" / "model").model.named_parameters())
    adapted = {n for n in before if n.split(".")[-2].endswith("_proj")}
    assert {n for n in before if not torch.equal(before[n], after[n])} == adapted
    base.add_adapter(lora_config(base.model, 4, 64))
    assert all(".lora_" in name for name, _ in base.trainable())
    weights = load_file(next((tmp_path / "run" / "checkpoints").glob("*")) / "weights.safetensors")
    assert set(weights) == {name for name, _ in base.trainable()}


def replayed(policy: Any, sampler: Any, part: Any, keys: tuple[Any, ...], trajectory: TensorDict) -> TensorDict:
    part.ask_for(keys)
    batch = trajectory.copy()
    part.prepare(batch, sampler=sampler, policy=policy)
    return part(batch, policy=policy, sampler=sampler)


@pytest.mark.parametrize(
    "sampler",
    [
        LowConfidence(LENGTH, 1, BLOCK),
        LowConfidence(LENGTH, 2, BLOCK, temperature=0.7, top_p=0.9),
        ConfidenceThreshold(LENGTH, 0.2, BLOCK, stop_at_eos=False),
    ],
    ids=["one", "two", "threshold"],
)
@pytest.mark.parametrize("temperature", [True, False])
def test_blocks_replayed_in_parallel_are_the_steps_replayed_one_by_one(
    policy: Any, sampler: Any, temperature: bool
) -> None:
    ended = copy.copy(policy)
    trajectory = rollout(policy, sampler)
    if sampler.stop_at_eos:  # some rows end within a block
        ended.eos_id = int(trajectory["completion_ids"][1, 2])
        trajectory = rollout(ended, sampler)
        assert len(trajectory["step", "valid"].sum(-1).unique()) > 1
    valid = trajectory["step", "valid"]
    step = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    keys = (("selected", "token_log_prob"), ("selected", "token_mask"))
    parts = (StepTokenLogProb(temperature), BlockReplay(temperature))
    for weight in (valid.float(), valid.float() * (torch.arange(valid.shape[1]) % 3 == 1), torch.zeros(valid.shape)):
        trajectory["selected"] = TensorDict({"step": step, "weight": weight}, [len(LENGTHS)])
        with Counted(ended) as tokens:
            slow = replayed(ended, sampler, parts[0], keys, trajectory)["selected"]
            single = len(tokens)
            fast = replayed(ended, sampler, parts[1], keys, trajectory)["selected"]
        assert len(tokens) - single <= 1
        for key in ("log_prob", "token_log_prob", "token_mask"):
            torch.testing.assert_close(fast[key].float(), slow[key].float(), atol=1e-5, rtol=0)
        if weight.any():
            values = [parameter for _, parameter in ended.trainable()]
            slow_gradient, fast_gradient = (
                torch.autograd.grad((f["token_log_prob"] ** 2).sum() + f["log_prob"].sum(), values)
                for f in (slow, fast)
            )
            for a, b in zip(slow_gradient, fast_gradient, strict=True):
                torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-4)


def test_replay_needs_as_many_states_as_the_longest_block_has_steps(policy: Any) -> None:
    sampler = LowConfidence(LENGTH, 1, BLOCK, stop_at_eos=False)
    trajectory = rollout(policy, sampler)
    valid = trajectory["step", "valid"]
    step = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    trajectory["selected"] = TensorDict({"step": step, "weight": valid.float()}, [len(LENGTHS)])
    rows: list[int] = []
    body = policy.model.get_decoder()
    handle = body.register_forward_pre_hook(lambda m, a, k: rows.append(len(k["input_ids"])), with_kwargs=True)
    StepTokenLogProb()(trajectory.copy(), policy=policy, sampler=sampler)
    BlockReplay()(trajectory.copy(), policy=policy, sampler=sampler)
    handle.remove()
    assert rows == [len(LENGTHS) * LENGTH, len(LENGTHS) * BLOCK]


def test_replay_of_other_policies_and_blocks_is_one_forward_per_step(policy: Any) -> None:
    sampler = RandomOrder(LENGTH, 3, 2 * BLOCK)  # a step may commit in two blocks at once
    trajectory = rollout(policy, sampler)
    valid = trajectory["step", "valid"]
    step = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    trajectory["selected"] = TensorDict({"step": step, "weight": valid.float()}, [len(LENGTHS)])
    slow = StepTokenLogProb()(trajectory.copy(), policy=policy, sampler=sampler)["selected", "log_prob"]
    fast = BlockReplay()(trajectory.copy(), policy=policy, sampler=sampler)["selected", "log_prob"]
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)


def test_rounds_count_the_steps_of_a_block() -> None:
    commit = torch.tensor([[4, 2, 7, 7, 9, 8, 9, 30], [1, 0, 3, 2, 5, 9, 7, 8]])
    found = rounds(commit, torch.tensor([2, 0]), 4)  # blocks of 2 + 4 + 2, and of 4 + 4
    assert found.tolist() == [[1, 0, 0, 0, 2, 1, 0, 1], [1, 0, 3, 2, 0, 3, 1, 2]]
