"""Policies: transformers models behind one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.policies.base import PolicySource as PolicySource
    from dlmrl_kit.policies.characters import CharacterLlama as CharacterLlama
    from dlmrl_kit.policies.pretrained import Pretrained as Pretrained
    from dlmrl_kit.policies.small_llama import SmallLlama as SmallLlama
    from dlmrl_kit.policies.subwords import SubwordLlama as SubwordLlama

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["PolicySource"],
        "characters": ["CharacterLlama"],
        "pretrained": ["Pretrained"],
        "small_llama": ["SmallLlama"],
        "subwords": ["SubwordLlama"],
    },
)
