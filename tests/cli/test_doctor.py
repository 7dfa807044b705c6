"""``dlmrl doctor``."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
import torch
from packaging.requirements import Requirement
from support.command_line import dlmrl

from dlmrl_kit.report import doctor
from dlmrl_kit.sandbox import bubblewrap
from dlmrl_kit.sandbox.bubblewrap import SandboxError


def findings() -> dict[str, dict[str, str]]:
    return {found["what"]: found for found in json.loads(dlmrl("doctor", "--json").stdout)}


def test_it_names_versions_devices_and_parts() -> None:
    found = findings()
    assert found["torch"]["found"] == metadata.version("torch")
    assert found["CPU"]["found"].endswith(f"torch uses {torch.get_num_threads()} threads")
    assert {"memory", "disk", "sandbox", "extra tasks", "extra quantisation"} <= set(found)
    assert "torch" in dlmrl("doctor").stdout


def test_a_missing_part_comes_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> str:
        raise SandboxError("no bwrap")

    monkeypatch.setattr(bubblewrap, "require_bubblewrap", refused)
    monkeypatch.setattr(doctor, "_version", lambda r: None if r.name == "bitsandbytes" else "99999.0")
    found = findings()
    assert found["sandbox"]["found"] == "no bwrap"
    assert "apt-get install bubblewrap" in found["sandbox"]["advice"]
    assert found["extra quantisation"]["found"] == "missing: bitsandbytes"
    assert found["extra quantisation"]["advice"] == "pip install 'dlmrl-kit[quantisation]'"


@pytest.mark.parametrize(("version", "told"), [(None, "not installed"), ("0.0.1", "0.0.1, ")])
def test_what_the_kit_needs_is_an_error(monkeypatch: pytest.MonkeyPatch, version: str | None, told: str) -> None:
    real = doctor._version

    def pretended(requirement: Requirement) -> str | None:
        return version if requirement.name == "typer" else real(requirement)

    monkeypatch.setattr(doctor, "_version", pretended)
    result = dlmrl("doctor", "--json")
    typer = next(found for found in json.loads(result.stdout) if found["what"] == "typer")
    assert result.exit_code == 1
    assert typer["found"].startswith(told)
    assert typer["advice"].startswith("pip install 'typer>=")


def test_all_is_well_here() -> None:
    assert dlmrl("doctor").exit_code == 0
