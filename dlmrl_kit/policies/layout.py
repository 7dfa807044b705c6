"""How a family writes its checkpoints: the names of its tensors, and small files, which are kept as they were."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dlmrl_kit.core.checksums import CHECKSUMS

_NUMBER = re.compile(r"\.(\d+)\.")
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|h5|msgpack|onnx)|.*\.index\.json")
_LARGEST = 64 * 2**20  # bytes
_OURS = ("dlmrl_kit.json", CHECKSUMS, "README.md", "adapter_config.json")


@dataclass(frozen=True)
class Layout:
    """The files of a checkpoint besides its weights, and what it calls its tensors.

    Args:
        files: contents by name: ``config.json``, tokenizer, generation settings, Python files (never run).
        names: the family's names of modules by transformers' names, with ``*`` for the number of a block. Empty where
            the family names them as transformers does. Modules of one name are parts of one, in this order.
        converted: transformers itself reads and writes the family's names, so that ``names`` is for adapters and
            messages only.
        precisions: precision in the files, by transformers' names, of tensors that are computed in a higher one.
    """

    files: Mapping[str, bytes] = field(repr=False)
    names: Mapping[str, str] = field(default_factory=dict)
    converted: bool = False
    precisions: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def renames(self) -> bool:
        """Whether the kit must rename tensors when it reads and writes the family's files."""
        return bool(self.names) and not self.converted

    def rename(self, name: str) -> str:
        """Returns the family's name of a tensor or module that transformers calls ``name``.

        Raises:
            KeyError: the family has no such tensor.
        """
        return _translate(name, self.names) if self.names else name

    def both(self, name: str) -> str:
        """Returns what transformers calls a tensor, and behind it what the family's files do, where they differ."""
        try:
            family = self.rename(name)
        except KeyError:
            return name
        return name if family == name else f"{name} (in the files: {family})"

    def parts(self, name: str) -> tuple[str, ...]:
        """Returns transformers' names of a module that the family calls ``name``: several where it is split.

        Raises:
            KeyError: transformers' model has no such module.
        """
        if not self.names:
            return (name,)
        stem, number = _stem(name)
        found = [native for native, family in self.names.items() if family == stem]
        if not found:
            raise KeyError(name)
        return tuple(native.replace("*", number) for native in found)

    def stored(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns tensors, by transformers' names, in the precision of the files wherever that loses nothing."""
        return {name: _narrowed(tensor, self.precisions.get(name)) for name, tensor in state.items()}

    def key_mapping(self) -> dict[str, str]:
        """Returns transformers' names by regular expressions of the family's, as ``from_pretrained`` takes them."""
        return {
            "^" + re.escape(family).replace(r"\*", r"(\d+)") + r"\.": native.replace("*", r"\1") + "."
            for native, family in self.names.items()
        }


def read_files(folder: str) -> dict[str, bytes]:
    """Returns the contents of a checkpoint's small files by name, without weights and what the kit writes."""
    return {
        path.name: path.read_bytes()
        for path in sorted(Path(folder).iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and path.name not in _OURS
        and not _WEIGHTS.fullmatch(path.name)
        and path.stat().st_size <= _LARGEST
    }


def _stem(name: str) -> tuple[str, str]:
    """Returns a name with ``*`` in place of the number of a block, and that number; empty where there is none."""
    number = _NUMBER.search(name)
    return (_NUMBER.sub(".*.", name, count=1), number.group(1)) if number else (name, "")


def _translate(name: str, names: Mapping[str, str]) -> str:
    module, number = _stem(name)
    stem, suffix = (module, "") if module in names else module.rpartition(".")[::2]
    translated = names[stem] + ("." + suffix if suffix else "")
    return translated.replace("*", number) if number else translated


def _narrowed(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or dtype == tensor.dtype:
        return tensor
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor
