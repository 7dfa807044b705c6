"""Runs on real layouts from the command line: what they train, write, and upload."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from peft import PeftModel
from safetensors.torch import load_file
from support.checkpoints import dream_checkpoint, llada_checkpoint, llada_moe_checkpoint, masked_checkpoint
from support.shipped_runs import TINY, tiny_run
from typer.testing import CliRunner, Result

from dlmrl_kit.cli.app import app
from dlmrl_kit.core.checksums import CHECKSUMS
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.saving import save_own_layout, save_transformers
from dlmrl_kit.training import old_check
from dlmrl_kit.training.model_card import AUDIT
from dlmrl_kit.training.opening import open_decoder

MAKERS: dict[str, Any] = {
    "llada": llada_checkpoint,
    "llada_moe": llada_moe_checkpoint,
    "dream": dream_checkpoint,
    "bert": lambda folder: masked_checkpoint(folder, "bert"),
    "modernbert": lambda folder: masked_checkpoint(folder, "modernbert"),
}
ROW = torch.tensor([[1, 2, 3, 4, 14, 5, 2, 9]])
FULL = torch.ones_like(ROW, dtype=torch.bool)


def dlmrl(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def train(base: Path, out: Path, *options: str, sets: tuple[str, ...] = ()) -> Result:
    """``dlmrl train egspo_sa``, tiny, with a checkpoint as the start."""
    few = ("Trainer.updates=2", "Trainer.eval_every=0")
    bindings = [*TINY, *few, f"Pretrained.path={json.dumps(str(base))}", *sets]
    settings = [part for binding in bindings for part in ("--set", binding)]
    return dlmrl("train", "egspo_sa", "--use", "logger=MetricsCSV", *settings, "--out", str(out), *options)


def digits_only(base: Path) -> str:
    """The binding that lets a random model write 1, 2, 3 and 4 alone, so that it earns rewards."""
    policy = load_policy(base)
    digits = policy.tokenizer("1234", add_special_tokens=False)["input_ids"]
    assert len(set(digits)) == 4
    return f"Pretrained.forbidden_ids={tuple(index for index in range(policy.vocab_size) if index not in digits)}"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("family", "rank"), [("llada", 0), ("llada", 2), ("llada_moe", 2), ("dream", 2), ("bert", 0), ("modernbert", 2)]
)
def test_every_family_trains_from_the_command_line(family: str, rank: int, tmp_path: Path) -> None:
    """The ratio is 1 before the first update; what is written is the family's layout, changed where it was trained."""
    base, out = tmp_path / "base", tmp_path / "run"
    MAKERS[family](base)
    lora = f"Pretrained.lora_rank={rank}"
    result = train(
        base, out, sets=(lora, digits_only(base), "Trainer.learning_rate=0.01", "Sudoku4x4.cells_weight=0.7")
    )
    assert result.exit_code == 0, result.output
    agreement = re.search(r"agree before the first update \(largest difference (\S+)\)", result.output)
    assert agreement is not None
    assert float(agreement.group(1)) < 1e-4
    assert len(read_metrics(out)["loss"]) == 2

    before, after = tensors(base), tensors(out / "model")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert (out / "model" / "config.json").read_bytes() == (base / "config.json").read_bytes() or family.endswith(
        "bert"
    )
    if rank:
        assert all(before[name].dim() == 2 and "emb" not in name for name in changed)
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= {
            path.name for path in (out / "adapter").iterdir()
        }
        trained = load_policy(out / "model")
        again = load_policy(out / "adapter")
        with torch.no_grad():
            torch.testing.assert_close(again(ROW, FULL, FULL), trained(ROW, FULL, FULL), rtol=0, atol=1e-4)
    else:
        assert len(changed) > len(before) / 2
        assert not (out / "adapter").exists()
    result = dlmrl("eval", str(out), "--size", "4", "--json")
    assert result.exit_code == 0, result.output
    stored = json.loads((out / "result.json").read_text())["after"]
    assert json.loads(result.stdout)["accuracy"] == stored["accuracy"]


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished LoRA run on a LLaDA, with forbidden ids of the user's: (base, run)."""
    folder = tmp_path_factory.mktemp("lora")
    llada_checkpoint(folder / "base")
    sets = ("Pretrained.lora_rank=2", "Pretrained.forbidden_ids=(11, 12)", "Trainer.learning_rate=0.01")
    result = train(folder / "base", folder / "run", sets=sets)
    assert result.exit_code == 0, result.output
    return folder / "base", folder / "run"


@pytest.mark.parametrize("what", ["model", "adapter"])
def test_a_flipped_bit_in_what_a_run_wrote_is_refused(what: str, lora_run: tuple[Path, Path], tmp_path: Path) -> None:
    """In every file but the card, wherever it is; also in the checksums themselves, but for names of files."""
    original = lora_run[1] / what
    files = {path.name for path in original.iterdir()} - {"README.md"}
    assert {*json.loads((original / CHECKSUMS).read_text())} == files - {CHECKSUMS}
    flips = random.Random(0)
    for name in sorted(files):
        folder = Path(shutil.copytree(original, tmp_path / name))
        content = bytearray((folder / name).read_bytes())
        place = len(content) - 3 if name == CHECKSUMS else flips.randrange(len(content))
        content[place] ^= 1 << flips.randrange(7)
        (folder / name).write_bytes(bytes(content))
        with pytest.raises(UserError, match=r"checksums?\b.* copy the folder again, or remove checksums\.json"):
            load_policy(folder)
    folder = Path(shutil.copytree(original, tmp_path / "changed on purpose"))
    for name in ("README.md", "trained_with.gin"):
        (folder / name).write_text("# mine\n")
        if name != "README.md":
            (folder / CHECKSUMS).unlink()
        load_policy(folder)


def test_a_model_that_is_saved_over_another_has_its_own_files(lora_run: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(lora_run[1] / "model", tmp_path / "model"))
    policy = load_policy(folder)
    assert policy.layout is not None
    assert CHECKSUMS not in policy.layout.files
    with torch.no_grad():
        policy.trainable()[0][1].add_(1)
    for save in (save_own_layout, save_transformers):
        shutil.copy(lora_run[1] / "model" / CHECKSUMS, folder)
        save(policy, folder)
        assert not (folder / CHECKSUMS).exists()
        if save is save_own_layout:
            load_policy(folder)


def test_a_run_leaves_all_that_is_needed_to_use_its_model(lora_run: tuple[Path, Path]) -> None:
    base, run = lora_run
    model = load_policy(run / "model")
    assert {11, 12} <= set(model.forbidden_ids)
    assert {11, 12} <= set(load_policy(run / "adapter").forbidden_ids)
    about = json.loads((run / "model" / "dlmrl_kit.json").read_text())
    assert about["policy"] == {"forbidden_ids": [11, 12]}
    assert about["decoding"]["sampler"] == "LowConfidence"
    assert about["decoding"]["completion_length"] == 16
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "modeling_llada.py"):
        assert (run / "model" / name).read_bytes() == (base / name).read_bytes()
    adapted = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert adapted["base_model_name_or_path"] == str(base)
    assert (run / "adapter" / "tokenizer.json").is_file()


def test_peft_loads_the_adapter_of_a_run_onto_transformers_model(tmp_path: Path) -> None:
    """Where the family has no names of its own, any peft user can: here Qwen2 under Dream's checkpoint."""
    from transformers import Qwen2ForCausalLM

    base = dream_checkpoint(tmp_path / "base")
    assert isinstance(base, Qwen2ForCausalLM)
    sets = ("Pretrained.lora_rank=2", "Trainer.learning_rate=0.01")
    assert train(tmp_path / "base", tmp_path / "run", sets=sets).exit_code == 0
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).eval()
    policy = load_policy(tmp_path / "run" / "model")
    everything = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    with torch.no_grad():
        expected = adapted(input_ids=ROW, attention_mask=everything).logits[:, :-1]
        torch.testing.assert_close(policy(ROW, FULL, FULL)[1:], expected[0], rtol=0, atol=1e-4)


def test_the_model_card(lora_run: tuple[Path, Path]) -> None:
    base, run = lora_run
    card = (run / "model" / "README.md").read_text()
    result = json.loads((run / "result.json").read_text())
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- dlmrl_kit\n")  # a local base is no hub id
    assert f"# egspo_sa: {base}" in card
    assert "task Sudoku4x4, 2 updates" in card
    row = f"| accuracy | {result['before']['accuracy']:.3f} | {result['after']['accuracy']:.3f} |"
    assert row in card
    assert "4 examples" in card
    assert "Not audited" in card
    assert (run / "recipe.gin").read_text().strip() in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)  # LLaDA's layout: no code of plain transformers
    assert "it is decoded by the code that its family publishes" in card
    names: dict[str, object] = {}
    exec(code.replace("PATH", str(run / "model")).replace("a prompt", "1234"), names)
    opened = open_decoder(str(run / "model"))
    assert names["text"] == opened.policy.generate("1234", opened.sampler.at_temperature(0.0))[0][0]
    adapter = (run / "adapter" / "README.md").read_text()
    assert adapter.startswith("---\nlibrary_name: peft\n")
    assert f"the LoRA adapter alone, for `{base}`" in adapter


def test_resuming_a_finished_run_writes_the_audits_verdict(lora_run: tuple[Path, Path]) -> None:
    _, run = lora_run
    before = tensors(run / "model")
    (run / AUDIT).write_text(json.dumps({"verdict": "biased, relative bias 0.5"}))
    assert dlmrl("train", "--resume", str(run)).exit_code == 0
    assert "biased, relative bias 0.5" in (run / "model" / "README.md").read_text()
    after = tensors(run / "model")
    assert all(torch.equal(before[name], after[name]) for name in before)
    (run / AUDIT).write_text("{")  # not an audit: as good as none
    assert dlmrl("train", "--resume", str(run)).exit_code == 0
    assert "Not audited" in (run / "model" / "README.md").read_text()


class Hub:
    """Records what would be uploaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None
        monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
        monkeypatch.setattr(HfApi, "create_repo", lambda _, repo, **named: self.called("create", repo=repo, **named))
        monkeypatch.setattr(HfApi, "upload_folder", lambda _, **named: self.called("upload", **named))

    def called(self, what: str, **named: Any) -> str:
        if self.error is not None:
            raise self.error
        self.calls.append((what, named))
        return f"https://huggingface.co/{named.get('repo', named.get('repo_id'))}"


def test_push_to_hub(lora_run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = lora_run
    hub = Hub(monkeypatch)
    result = dlmrl("train", "--resume", str(run), "--push-to-hub", "someone/llada-sudoku")
    assert result.exit_code == 0, result.output
    assert "uploaded to https://huggingface.co/someone/llada-sudoku" in result.output
    (_, created), (_, model), (_, adapter) = hub.calls
    assert created == {"repo": "someone/llada-sudoku", "private": True, "exist_ok": True}
    assert (model["folder_path"], model.get("path_in_repo")) == (run / "model", None)
    assert (adapter["folder_path"], adapter["path_in_repo"]) == (run / "adapter", "adapter")
    assert model["repo_id"] == adapter["repo_id"] == "someone/llada-sudoku"


def test_a_failed_upload_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    hub.error = ConnectionError("no route to host")
    llada_checkpoint(tmp_path / "base")
    result = train(tmp_path / "base", tmp_path / "run", "--push-to-hub", "a/b", sets=("Trainer.updates=1",))
    assert result.exit_code == 2
    assert "error: the upload to a/b failed: no route to host; the run is complete in" in result.stderr
    assert f"dlmrl train --resume {tmp_path / 'run'} --push-to-hub a/b" in result.stderr
    assert "Traceback" not in result.output
    assert json.loads((tmp_path / "run" / "result.json").read_text())["updates"] == 1
    hub.error = None
    assert dlmrl("train", "--resume", str(tmp_path / "run"), "--push-to-hub", "a/b").exit_code == 0
    assert [what for what, _ in hub.calls] == ["create", "upload"]  # no adapter


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("a/b", None, "needs a token of the Hugging Face hub: run 'hf auth login', or set HF_TOKEN"),
        ("a b/c/d", "hf_token", "'a b/c/d' is no repository id"),
    ],
)
def test_uploads_that_cannot_work_are_refused_before_training(
    repo: str, token: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    result = dlmrl("train", "--out", str(tmp_path / "run"), "--push-to-hub", repo)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_base_on_the_hub_is_named_in_the_card(tmp_path: Path) -> None:
    from dlmrl_kit.core.results import EvalResult, RunResult
    from dlmrl_kit.training.model_card import model_card

    before, after = EvalResult("heldout", 8, 0.5, 0.5), EvalResult("heldout", 8, 0.75, 0.8, components={"cells": 0.9})
    result = RunResult(tmp_path, before, after, 10, 60.0, tmp_path / "model")
    card = model_card(result, recipe="r", task="T", base="GSAI-ML/LLaDA-8B-Instruct", adapter=False, decoding="")
    assert '\nbase_model: "GSAI-ML/LLaDA-8B-Instruct"\n' in card
    assert "| accuracy | 0.500 | 0.750 |\n| reward | 0.500 | 0.800 |\n| cells | - | 0.900 |" in card
    from huggingface_hub import ModelCard

    assert ModelCard(card).data.to_dict() == {
        "library_name": "transformers",
        "base_model": "GSAI-ML/LLaDA-8B-Instruct",
        "tags": ["dlmrl_kit", "diffusion-language-model"],
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_frozen_weights_in_half_precision_may_round(dtype: str, tolerance: float, tmp_path: Path) -> None:
    """Adapters are trained in float32 on a base in bfloat16, which rounds differently in batches of another shape."""
    llada_checkpoint(tmp_path / "base")
    sets = (f"Pretrained.path='{tmp_path / 'base'}'", "Pretrained.lora_rank=2", f"Pretrained.dtype='{dtype}'")
    run = tiny_run(tmp_path / "run", sets=sets)
    assert {p.dtype for _, p in run.policy.trainable()} == {torch.float32}
    assert old_check.tolerance(run.update.log_probs) == tolerance
