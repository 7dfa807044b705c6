"""Checkpoints from the hub, in pieces, and notes beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import llada_checkpoint
from support.families import ROW, Made, same

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.saving import save_adapter, save_own_layout, save_transformers


def test_large_checkpoints_are_written_in_pieces(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmrl_kit.policies.saving.SHARD", "10KB")
    folder, _ = made("llada")
    policy = load_policy(folder)
    for save in (save_own_layout, save_transformers):
        save(policy, tmp_path / "out")
        assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
        again = load_policy(tmp_path / "out")
        assert same(dict(again.trainable()), dict(policy.trainable()))
        shutil.rmtree(tmp_path / "out")


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
    save_adapter(policy, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/dream"
    full = torch.ones(1, len(ROW), dtype=torch.bool)
    assert torch.equal(load_policy(tmp_path)(ROW[None], full, full), policy(ROW[None], full, full))
    assert [name for name, _ in asked] == ["someone/dream"] * 2


def test_an_unreachable_hub_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(name: str, **_: Any) -> str:
        raise LocalEntryNotFoundError("cannot reach the hub\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UserError, match=r"from a/b: no such folder here, and the hub says: cannot reach the hub$"):
        load_policy("a/b")
    monkeypatch.undo()
    with pytest.raises(UserError, match="no such folder, and no hub id either"):
        load_policy("not/a/hub/id")


def test_notes_beside_a_checkpoint_that_cannot_be_read(tmp_path: Path) -> None:
    llada_checkpoint(tmp_path)
    (tmp_path / "dlmrl_kit.json").write_text("[")
    with pytest.raises(UserError, match=r"dlmrl_kit\.json cannot be read"):
        load_policy(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json is no JSON object"):
        load_policy(tmp_path)
