"""A family of checkpoints as its checks see it: a tiny one in the published layout, and what it must compute."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from dlmrl_kit.policies.families.base import Family
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

Logits: TypeAlias = Callable[[Tensor], Tensor]
"""Logits [S, V] of one row without padding, int64 [S]: at i the prediction of token i; NaN where there is none."""

Write: TypeAlias = Callable[[Path], Logits]
"""Writes a random checkpoint of two layers into a folder as it is published; returns what it must compute."""


@dataclass(frozen=True)
class FamilyCase:
    """A family of checkpoints, and what its checks need.

    Args:
        name: of the case.
        family: class of the family.
        write: a checkpoint in float32, whose logits are far from uniform. If what it returns is a module of torch with
            the published names, adapters are also loaded onto it, by peft.
        mask_id: id of the mask; None: the model has no masks.
        eos_ids: ids that end a text, in order.
        options: of ``load_policy``.
        block_size: positions of a block, where the model denoises block by block.
        canvas: a row ends with two canvases of so many positions; None: any position can be predicted.
        tied: writes one whose head is its table of embeddings; None: the family has none, or its head is always so.
        own_layout: whether what is saved has the published files; else it is as transformers writes it.
        tolerance: on logits in float32.
    """

    name: str
    family: type[Family]
    write: Write
    mask_id: int | None
    eos_ids: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    block_size: int | None = None
    canvas: int | None = None
    tied: Write | None = None
    own_layout: bool = True
    tolerance: float = 1e-5

    @cached_property
    def _made(self) -> tuple[tempfile.TemporaryDirectory[str], Logits]:
        holder = tempfile.TemporaryDirectory(prefix="checkpoint-")  # the name says nothing of the family
        return holder, self.write(Path(holder.name))

    @property
    def folder(self) -> Path:
        """A checkpoint, made once; not to be changed."""
        return Path(self._made[0].name)

    @property
    def logits(self) -> Logits:
        """What the checkpoint in ``folder`` computes."""
        return self._made[1]

    def load(self, folder: Path | None = None, **options: Any) -> TransformersPolicy:
        """Loads a checkpoint, by default that in ``folder``."""
        return load_policy(self.folder if folder is None else folder, **{**self.options, **options})

    def __str__(self) -> str:
        return self.name
