"""``dlmrl train RECIPE --dry-run``: sizes without weights, an update of the recipe's components on a small model."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.block_checkpoints import diffusion_gemma_checkpoint, sdar_checkpoint
from support.checkpoints import dream_checkpoint, llada_checkpoint, llada_moe_checkpoint, masked_checkpoint
from support.command_line import train
from support.kit_recipes import kit_recipes
from support.llada2 import llada2_checkpoint, sdar_moe_checkpoint
from support.runs import build
from typer.testing import CliRunner

from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.cli.app import app
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.experiments.forwards import count_forwards
from dlmrl_kit.policies.adapter import lora_config
from dlmrl_kit.policies.checkpoint_files import read_config
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import shapes
from dlmrl_kit.training.estimate import forwards, layer_sizes, memory
from dlmrl_kit.training.optimiser import build_optimiser
from dlmrl_kit.training.small_update import ScaledDown, small_update

LARGE = {
    "egspo_sa_llada": (8_015_581_184, 335_544_320, 12_288),
    "egspo_sa_dream": (7_615_616_512, 322_961_408, 12_288),
    "egspo_sa_sdar": (8_190_735_360, 349_175_808, 24_576),
    "egspo_sa_llada2": (16_255_638_528, 34_078_720, 24_576),
    "egspo_sa_sdar_moe": (30_532_122_624, 106_954_752, 24_576),
    "egspo_sa_diffusion_gemma": (25_823_778_864, 148_684_800, 4_608),
}
"""Recipe -> parameters (as published, but for the last), those of LoRA, states of a rollout of 96 completions."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shapes, "_from_hub", lambda path: None)


def dry_run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["train", *arguments, "--dry-run"])


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n not in ("egspo_sa_llada", "egspo_sa_diffusion_gemma")))
        for n in LARGE
    ],
)
def test_recipes_for_large_models_need_no_weights(name: str) -> None:
    result = dry_run(name)
    assert result.exit_code == 0, result.output
    parameters, trainable, rollout = LARGE[name]
    assert f"parameters   {parameters:,}, trainable {trainable:,} (LoRA of rank 128)" in result.output
    assert "the published sizes, as they ship with dlmrl_kit" in result.output
    assert f"96 completions, rollout {rollout:,}, reference 768, update 768 forward and backward" in result.output
    assert re.search(r"small update worked: .* log-probabilities agree to ([0-9.]+e-0[5-9]|0\.0e\+00)", result.output)
    peak = re.search(r"peak +([0-9.]+) GiB", result.output)
    assert peak
    assert float(peak[1]) < 75  # of a card of 80 GB


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in kit_recipes() if "llada" not in name and "dream" not in name])
def test_a_recipe_has_a_dry_run_on_a_cluster(name: str) -> None:
    """Also where losses read rewards, which are equal, and where confidences of the random model tie."""
    result = CliRunner().invoke(app, ["train", name, "--dry-run", "--gpus", "8", "--nodes", "4"])
    assert result.exit_code == 0, result.output
    assert re.search(r"small update (worked|rolled out, and the recipe's filters kept nothing)", result.output)
    assert "choose       --set" in result.output


MAKERS: dict[str, Any] = {
    "llada": llada_checkpoint,
    "llada_moe": llada_moe_checkpoint,
    "dream": dream_checkpoint,
    "sdar": sdar_checkpoint,
    "llada2": llada2_checkpoint,
    "sdar_moe": sdar_moe_checkpoint,
    "diffusion_gemma": diffusion_gemma_checkpoint,
    "bert": lambda folder: masked_checkpoint(folder, "bert"),
    "modernbert": lambda folder: masked_checkpoint(folder, "modernbert"),
}


def test_the_configuration_of_a_folder_is_enough(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    sdar_checkpoint(checkpoint)
    for file in checkpoint.glob("*.safetensors*"):
        file.unlink()
    result = dry_run("egspo_sa_sdar", "--set", f"Pretrained.path='{checkpoint}'", "--set", "Pretrained.lora_rank=2")
    assert result.exit_code == 0, result.output
    assert str(checkpoint / "config.json") in result.output
    assert "of the prompt (the longest of a few)" in result.output
    assert "small update worked" in result.output
    assert not list(tmp_path.glob("runs*"))


def test_a_dry_run_chooses_how_many_blocks_recompute() -> None:
    auto = ("--set", "Pretrained.gradient_checkpointing='auto'")
    result = dry_run("egspo_sa", *auto)
    assert "'auto': 0 of 4 blocks are recomputed" in result.output
    assert "a card of 74.5 GiB allows 67.04 GiB" in result.output
    result = dry_run("egspo_sa", *auto, "--set", "Pretrained.activation_gib=0.25")
    assert result.exit_code == 0, result.output
    assert re.search(r"update +[0-9.]+ GiB, 64 samples at once, 3 of 4 blocks recomputed", result.output)
    assert "Pretrained.activation_gib allows 0.25 GiB" in result.output
    result = dry_run("egspo_sa", *auto, "--set", "Pretrained.activation_gib=0.01")
    assert result.exit_code == 2
    assert "activation_gib = 0.01 is too small" in result.output


def test_the_default_recipe_and_models_from_scratch_have_one_too() -> None:
    result = dry_run()
    assert result.exit_code == 0, result.output
    assert "parameters   445,536, trainable 445,536" in result.output
    assert "128 completions, rollout 1,024, reference 512, update 512 forward and backward" in result.output
    result = dry_run("egspo", "--use", "policy=CharacterLlama", "--use", "advantage=MonteCarlo")
    assert result.exit_code == 0, result.output
    assert "CharacterLlama, built as it is" in result.output
    assert "and the completions that MonteCarlo samples" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["egspo_sa_llada", "--set", "Pretrained.path='nobody/nothing'"], "no config.json for nobody/nothing"),
        (["egspo_sa_sdar", "--set", "Pretrained.block_size=None"], "give one with block_size"),
        (["egspo_sa_sdar", "--set", "Sampler.block_length=6"], "block_length = 4"),
        (["pretrain_sudoku4x4"], "only training recipes have a dry run"),
        (["egspo", "--out", "runs/x"], "--out with --dry-run"),
        (["--resume", "runs/x"], "--resume with --dry-run"),
    ],
)
def test_what_cannot_be_done_says_why(arguments: list[str], message: str) -> None:
    result = dry_run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_filter_that_keeps_nothing_is_reported() -> None:
    algorithm = build("egspo", uses=["filter=SuccessRange"])
    assert "kept nothing" in small_update(algorithm, algorithm.policy)


@pytest.mark.thorough
def test_forwards_are_those_that_happen() -> None:
    """Counted while an update runs; every row takes all steps."""
    sets = ["Sampler.stop_at_eos = False", "Trainer.group_size = 2"]
    for name, more in (("reinforce_exact", []), ("egspo_sa", ["Trainer.inner_iterations = 3"])):
        bindings = [*sets, *more]
        real = count_forwards(name, bindings)
        algorithm: Any = load_recipe(name, sets=[*bindings, "Trainer.prompts_per_update = 4"]).build()
        found = forwards(algorithm, make_plan(algorithm))
        assert (found.samples, found.restarts) == (8, ())
        assert real.rollout == found.rollout / 8
        assert real.update == (found.old + found.reference + found.update) / 8


@pytest.mark.parametrize("rank", [0, 4])
def test_memory_of_weights_and_optimiser_is_exact(rank: int, tmp_path: Path) -> None:
    algorithm = build("egspo", sets=[f"Pretrained.lora_rank = {rank}"])
    policy = algorithm.policy.load()
    need = memory(algorithm, make_plan(algorithm), policy, 10)
    weights = sum(p.numel() * 4 for p in policy.model.parameters())
    trained = [p for _, p in policy.trainable()]
    copies = 0 if rank else sum(p.numel() * 4 for p in trained)  # the reference policy
    assert need.weights == weights + copies
    settings = {"learning_rate": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.0, "schedule": "constant"}
    optimiser, _ = build_optimiser(trained, **settings, warmup_steps=0, total_steps=1)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    moments = [t for state in optimiser.state.values() for t in state.values() if t.dim()]
    assert need.optimiser == 4 * sum(t.numel() for t in [*moments, *trained])
    assert need.peak == need.weights + need.optimiser + max(need.rollout, need.update, need.evaluation)


@pytest.mark.parametrize(("rows", "size", "at_once"), [("None", 512, 256), ("None", 100, 100), ("6", 512, 6)])
def test_the_peak_contains_evaluation(rows: str, size: int, at_once: int) -> None:
    sets = [f"Trainer.rollout_batch_size = {rows}", f"Trainer.eval_size = {size}", "Trainer.micro_batch_size = 1"]
    algorithm = build(sets=[*sets, "Trainer.prompts_per_update = 1"])
    policy = algorithm.policy.load()
    need = memory(algorithm, make_plan(algorithm), policy, 17)
    tokens, sizes = at_once * (17 + algorithm.sampler.completion_length), layer_sizes(policy)
    logits = 3 * 4 * at_once * algorithm.sampler.completion_length * policy.vocab_size
    assert need.evaluation == 4 * tokens * sizes.computed + logits
    assert need.peak >= need.weights + need.optimiser + need.evaluation
    if rows == "None":
        assert need.evaluation > max(need.rollout, need.update)


@pytest.mark.parametrize("kind", ["llada", "dream", "sdar"])
def test_activations_are_about_those_that_autograd_keeps(kind: str, tmp_path: Path) -> None:
    names = ("d_model", "mlp_hidden_size") if kind == "llada" else ("hidden_size", "intermediate_size")
    MAKERS[kind](tmp_path, **dict(zip(names, (64, 192), strict=True)))
    policy = load_policy(tmp_path)
    policy.add_adapter(lora_config(policy.model, 2, 4))
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(10, (4, 40))
    alive = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(policy.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))
    size = layer_sizes(policy)
    ratio = sum(kept.values()) / (4 * ids.numel() * size.number * size.computed)
    assert 0.6 < ratio < 1.6
    assert [size.alive(number) for number in (0, 1, 2)] == [
        3 * size.computed,
        64 + 2 * size.computed,
        2 * 64 + size.computed,
    ]


def test_precision_and_quantisation_count(tmp_path: Path) -> None:
    llada_checkpoint(tmp_path)
    algorithm = build("egspo", sets=[f"Pretrained.path = '{tmp_path}'", "Pretrained.lora_rank = 2"])
    config = read_config(str(tmp_path))
    policy = ScaledDown(algorithm.policy, config).load()
    plan = make_plan(algorithm)
    plain = memory(algorithm, plan, policy, 10)
    half = copy.deepcopy(policy)
    for parameter in half.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    frozen = sum(p.numel() for p in policy.model.parameters() if not p.requires_grad)
    assert plain.weights - memory(algorithm, plan, half, 10).weights == 2 * frozen
    algorithm.policy.quantisation = "nf4"
    matrices = sum(p.numel() for p in policy.model.parameters() if not p.requires_grad and p.dim() == 2)
    assert memory(algorithm, plan, half, 10).weights == pytest.approx(
        plain.weights - 4 * matrices + 0.57 * matrices - 2 * (frozen - matrices)
    )


def test_guesses_of_later_states_need_memory_and_places_limit_it() -> None:
    def rollout(ahead: int, states: int | None) -> float:
        sampler = ("Speculative.sampler = @LowConfidence()", f"Speculative.ahead = {ahead}")
        sets = ["Algorithm.sampler = @Speculative()", *sampler, f"Speculative.states = {states}"]
        algorithm = build("egspo", sets=[*sets, "Trainer.rollout_batch_size = None"])
        return memory(algorithm, make_plan(algorithm), algorithm.policy.load(), 10).rollout

    once, places = rollout(1, None), rollout(1, 8)
    assert rollout(3, None) - once == pytest.approx(rollout(5, None) - rollout(3, None)), "linear in the guesses"
    assert 0 < places < once < rollout(3, None)
    assert rollout(3, 8) == places


SMALL = (
    *("Trainer.updates=1", "Trainer.prompts_per_update=1", "Trainer.group_size=2", "Trainer.minibatches=1"),
    *("Trainer.eval_size=1", "Trainer.precision='float32'"),
    *("Sampler.completion_length=8", "Selector.k=2", "Pretrained.lora_rank=2"),
)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("llada", ("Sampler.block_length=4",)),
        ("dream", ("Sampler.block_length=4",)),
        ("sdar", ()),
        ("llada2", ("Pretrained.block_size=4", "Sampler.block_length=4")),
        ("sdar_moe", ()),
        ("diffusion_gemma", ("Sampler.block_length=4", "EntropyBoundRenoising.steps=3")),
    ],
)
def test_recipes_for_large_models_train_on_a_tiny_checkpoint(name: str, sizes: tuple[str, ...], tmp_path: Path) -> None:
    """Those whose tiny tokenizer has few characters cannot read the recipe's task, and get another."""
    MAKERS[name](tmp_path / "model")
    task = "Countdown" if name in ("dream", "sdar", "sdar_moe") else "Sudoku4x4"
    few = (f"{task}.num_train=4", f"{task}.num_heldout=2", f"Pretrained.path='{tmp_path / 'model'}'")
    uses = () if task == "Countdown" else (f"task={task}",)
    result = train(tmp_path / "run", f"egspo_sa_{name}", *SMALL, *sizes, *few, uses=uses)
    assert "old and new log-probabilities agree before the first update" in result.output


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(UserError, match=r"no config\.json for somebody/model"):
        shapes.find_config("somebody/model")
    assert shapes.find_config("JetLM/SDAR-8B-Chat")[0]["num_hidden_layers"] == 36


@pytest.mark.parametrize("draws", [2, 20])
def test_draws_of_the_whole_sequence_are_counted_however_many_steps_there_are(draws: int) -> None:
    algorithm = load_recipe("unigrpo", sets=[f"WholeSequence.draws = {draws}"]).build()
    trainer = algorithm.trainer
    count = forwards(algorithm, make_plan(algorithm))
    assert count.update == trainer.prompts_per_update * trainer.group_size * draws
