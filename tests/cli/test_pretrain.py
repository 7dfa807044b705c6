"""``dlmrl pretrain`` goes on in its folder only."""

from __future__ import annotations

from pathlib import Path

from support.command_line import dlmrl


def test_pretrain_goes_on_in_its_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "denoiser"
    options = [
        *("--set", "MaskedDiffusion.steps=3", "--set", "MaskedDiffusion.eval_size=4", "--out", str(folder)),
        *("--set", "CharacterLlama.hidden_size=16", "--set", "CharacterLlama.num_heads=2"),
        *(
            "--set",
            "CharacterLlama.num_layers=1",
            "--set",
            "Sudoku4x4.num_pretrain=16",
            "--set",
            "Sudoku4x4.num_heldout=4",
        ),
    ]
    for _ in range(2):
        result = dlmrl("pretrain", *options)
        assert result.exit_code == 0, result.output
        assert "3 steps done" in result.stdout
        assert str(folder / "model") in result.stdout
    result = dlmrl("pretrain", *options, "--set", "MaskedDiffusion.batch_size=2")
    assert result.exit_code == 2
    assert "another recipe" in result.stderr
