"""Damaged files of a model are one line that names the file and says what to do, whichever file and damage."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import dream_checkpoint, llada_checkpoint

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.checkpoint_files import SHIPPED
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.model_files import DEEPEST
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.saving import save_adapter

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4976698672\n"

Damage = Callable[[bytes], bytes]
ANY: dict[str, tuple[Damage, str]] = {
    "a Git LFS pointer": (lambda _: POINTER, "is a Git LFS pointer, .* run 'git lfs pull'"),
    "empty": (lambda _: b"", "write, copy or download it again"),
    "cut off": (lambda content: content[: len(content) // 2], "write, copy or download it again"),
    "another file": (lambda _: b"<!DOCTYPE html>\n<html>\xff</html>", "write, copy or download it again"),
}
JSON: dict[str, tuple[Damage, str]] = {
    **ANY,
    "no object": (lambda _: b"[1, 2]", "is no JSON object"),
    "deep": (lambda _: b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested deeper than 100 levels"),
    "a little too deep": (lambda _: b'{"a": ' + b"[" * DEEPEST + b"]" * DEEPEST + b"}", "deeper than 100 levels"),
    "a lone surrogate": (
        lambda content: content.rstrip()[:-1] + b', "chat": "a\\ud800"}',
        r"half of a surrogate pair \(\\ud800\), which is no character",
    ),
}
JSON_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
    *("model.safetensors.index.json", "dlmrl_kit.json"),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaDA in pieces, with every kind of file."""
    folder = tmp_path_factory.mktemp("llada")
    llada_checkpoint(folder)
    (folder / "dlmrl_kit.json").write_text(json.dumps({"policy": {"mask_id": 22}}))
    return folder


def refusal(folder: Path, load: Callable[[], Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load() if load else load_policy(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    message.encode()  # it can be printed
    return message


@pytest.mark.parametrize("damage", JSON)
@pytest.mark.parametrize("file", JSON_FILES)
def test_json_files(file: str, damage: str, original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "copy"))
    path, (change, expected) = folder / file, JSON[damage]
    path.write_bytes(change(path.read_bytes()))
    message = refusal(folder)
    assert str(path) in message
    assert re.search(expected, message), message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "generation_config.json", "dlmrl_kit.json"])
def test_a_pipe_is_not_waited_for_and_a_device_is_not_read(file: str, original: Path, tmp_path: Path) -> None:
    for put in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        folder = Path(shutil.copytree(original, tmp_path / "copy"))
        (folder / file).unlink()
        put(folder / file)
        with contextlib.suppress(UserError):  # what is no regular file may count as missing
            load_policy(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("damage", ANY)
@pytest.mark.parametrize("file", ["model-00002-of-*.safetensors", "model.safetensors", "pytorch_model.bin"])
def test_files_of_weights(file: str, damage: str, original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "copy"))
    if "*" not in file:
        state = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
        for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
            path.unlink()
        if file.endswith(".bin"):
            torch.save(state, folder / file)
        else:
            from safetensors.torch import save_file

            save_file(state, folder / file, metadata={"format": "pt"})
        load_policy(folder)
    path = next(folder.glob(file))
    change, _ = ANY[damage]
    path.write_bytes(change(path.read_bytes()))
    message = refusal(folder)
    assert str(path) in message
    assert "Git LFS pointer" in message or "damaged" in message or "empty" in message


@pytest.mark.parametrize(
    ("file", "damage"),  # a shorter list of merges is one
    [*(("vocab.json", damage) for damage in JSON), ("merges.txt", "a Git LFS pointer"), ("merges.txt", "another file")],
)
def test_files_of_a_vocabulary(file: str, damage: str, tmp_path: Path) -> None:
    dream_checkpoint(tmp_path)
    path, (change, _) = tmp_path / file, JSON[damage]
    path.write_bytes(change(path.read_bytes()))
    assert str(path) in refusal(tmp_path)


@pytest.mark.parametrize("damage", JSON)
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapters(file: str, damage: str, original: Path, tmp_path: Path) -> None:
    save_adapter(Pretrained(str(original), lora_rank=2).load(), tmp_path)
    load_policy(tmp_path)
    path, (change, _) = tmp_path / file, JSON[damage]
    path.write_bytes(change(path.read_bytes()))
    if not (file.endswith("safetensors") and damage not in ANY):
        assert str(path) in refusal(tmp_path)
    path.unlink()
    if file.endswith("safetensors"):
        assert "holds no adapter_model.safetensors or adapter_model.bin: copy the adapter's weights" in refusal(
            tmp_path
        )


def test_the_files_of_an_adapters_base_are_named(original: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(original, tmp_path / "base"))
    save_adapter(Pretrained(str(base), lora_rank=2).load(), tmp_path / "adapter")
    (base / "config.json").write_bytes(POINTER)
    assert f"{base / 'config.json'} is a Git LFS pointer" in refusal(tmp_path / "adapter")


STRANGE: dict[str, Any] = {
    "architectures": 5,
    "model_type": ["llada"],
    "auto_map": "x",
    "d_model": "wide",
    "n_heads": 0,
    "n_layers": -1,
    "n_layers ": None,
    "vocab_size": 1e9,
    "rope_theta": "fast",
    "eos_token_id": {"a": 1},
    "rms_norm_eps": "tiny",
}


@pytest.mark.parametrize("setting", STRANGE)
def test_strange_values_in_a_configuration(setting: str, original: Path, tmp_path: Path) -> None:
    """They are refused in one line, or are harmless."""
    folder = Path(shutil.copytree(original, tmp_path / "copy"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), setting: STRANGE[setting]}))
    try:
        load_policy(folder)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert str(folder) in str(error)  # noqa: PT017


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_in_a_configuration_are_finite(literal: str, original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "copy"))
    path = folder / "config.json"
    path.write_text(path.read_text().replace("1e-05", literal))
    assert f"{path} cannot be read as JSON ({literal} is no finite number)" in refusal(folder)


@pytest.mark.parametrize(
    "told", [{"mask_id": "x"}, {"forbidden_ids": 3}, {"chat_template": 1}, {"block_size": True}, {"eos_ids": ["a"]}, 7]
)
def test_notes_of_other_types(told: Any, original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "copy"))
    (folder / "dlmrl_kit.json").write_text(json.dumps({"policy": told}))
    assert f"{folder / 'dlmrl_kit.json'} cannot be used" in refusal(folder)


@contextlib.contextmanager
def as_somebody_else() -> Iterator[None]:
    """Root may read everything: within the context this process is nobody."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("closed", [".", "config.json", "tokenizer.json", "model-00001-of-*.safetensors"])
def test_folders_and_files_without_permission(closed: str, original: Path) -> None:
    with tempfile.TemporaryDirectory() as outside:  # the folders that pytest makes are closed to everybody else
        Path(outside).chmod(0o755)
        folder = Path(shutil.copytree(original, Path(outside) / "copy"))
        folder.chmod(0o755)
        path = folder if closed == "." else next(folder.glob(closed))
        path.chmod(0)
        with as_somebody_else():
            message = refusal(folder)
        assert f"{path} cannot be read (Permission denied)" in message


def test_a_shipped_denoiser_has_no_damage() -> None:
    load_policy(SHIPPED / "sudoku4x4")
