"""TorchRL's loggers: missing backends, options and state."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.loggers import drive

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.loggers.torchrl_logger import TorchRLLogger


def test_torchrl_csv(tmp_path: Path) -> None:
    drive(TorchRLLogger("csv", name="mine"), tmp_path, range(3), 0)
    lines = (tmp_path / "csv" / "mine" / "scalars" / "kl.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["0", "1", "2"]


def test_missing_backend_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrl.record.loggers.wandb._has_wandb", False)
    with pytest.raises(UserError, match="pip install wandb"):
        TorchRLLogger("wandb").open(tmp_path, 0)


def test_options_and_state_reach_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wandb run is continued by the id it had; the real wandb 0.31 was tried by hand."""
    calls = []

    class Recorded:
        def state_dict(self) -> dict[str, object]:
            return {"exp_name": "e", "log_dir": "d", "local": {"id": "abc"}}

        def close(self) -> None: ...

    def get_logger(*args: object, **kwargs: object) -> Recorded:
        calls.append((args, kwargs))
        return Recorded()

    monkeypatch.setattr("torchrl.record.loggers.get_logger", get_logger)
    for first_update in (0, 5):
        logger = TorchRLLogger("wandb", options={"project": "p"})
        logger.open(tmp_path, first_update)
        logger.close()
    name = ("wandb", str(tmp_path / "wandb"), tmp_path.name)
    assert calls[0] == (name, {"wandb_kwargs": {"project": "p"}})
    assert calls[1] == (name, {"wandb_kwargs": {"project": "p"}, "state_dict": Recorded().state_dict()})
