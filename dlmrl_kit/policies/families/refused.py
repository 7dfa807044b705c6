"""Diffusion language models that are known and not supported, with the reason."""

from __future__ import annotations

from dlmrl_kit.policies.checkpoint_files import ConfigJson, architectures

REFUSED = {
    "wedlm": "WeDLM attends causally, over tokens that are sorted anew in every step: those that are known come first",
    "nemotronlabsdiffusion": "Nemotron-Labs-Diffusion decodes in three modes on Ministral's blocks, causally, in "
    "blocks, and both in turn: what its prompt sees in which of them was not compared with its published code",
}
"""Reasons by how the model type or a class in ``config.json`` begins, in lower case, without ``_``, ``-`` and ``.``."""


def reason_against(config: ConfigJson) -> str | None:
    """Returns why a known model is not supported; None for models that the kit has never heard of."""
    names = [str(config.get("model_type")), *architectures(config)]
    plain = ["".join(character for character in name.lower() if character.isalnum()) for name in names]
    return next((reason for start, reason in REFUSED.items() if any(name.startswith(start) for name in plain)), None)
