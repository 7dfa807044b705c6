"""Tiny recipes for pre-training."""

from __future__ import annotations

import torch

from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.recipe.load import Recipe, load_recipe

TINY = [
    "CharacterLlama.hidden_size = 16",
    "CharacterLlama.num_layers = 1",
    "CharacterLlama.num_heads = 2",
    "Sudoku4x4.num_pretrain = 40",
    "Sudoku4x4.num_heldout = 4",
    "MaskedDiffusion.steps = 9",
    "MaskedDiffusion.batch_size = 16",
    "MaskedDiffusion.checkpoint_every = 4",
    "MaskedDiffusion.log_every = 3",
    "MaskedDiffusion.eval_size = 4",
    "MaskedDiffusion.warmup_steps = 2",
]
GIVEN = "1_3__4_22_4__3_1:"


def tiny(*sets: str) -> Recipe:
    return load_recipe("pretrain_sudoku4x4", sets=[*TINY, *sets])


def watched_features(policy: TransformersPolicy) -> list[tuple[torch.Tensor, ...]]:
    """Returns a list to which each later call of ``policy.features`` adds its arguments."""
    seen: list[tuple[torch.Tensor, ...]] = []
    features = policy.features

    def watched(*given: torch.Tensor) -> torch.Tensor:
        seen.append(given)
        return features(*given)

    policy.features = watched  # type: ignore[method-assign]
    return seen


def policy_of(characters: str = "1234_:", hidden: int = 16) -> TransformersPolicy:
    torch.manual_seed(0)
    return CharacterLlama(characters, hidden_size=hidden, num_layers=1, num_heads=2).load()
