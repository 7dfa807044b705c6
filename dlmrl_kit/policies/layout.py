"""How a family writes its checkpoints: the names of its tensors, and small files, which are kept as they were."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_NUMBER = re.compile(r"\.(\d+)\.")
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|h5|msgpack|onnx)|.*\.index\.json")
_LARGEST = 64 * 2**20  # bytes
_OURS = ("dlmrl_kit.json", "README.md", "adapter_config.json")


@dataclass(frozen=True)
class Layout:
    """The files of a checkpoint besides its weights, and what it calls its tensors.

    Args:
        files: contents by name: ``config.json``, tokenizer, generation settings, Python files (never run).
        names: the family's names of modules by transformers' names, with ``*`` for the number of a block. Empty where
            the family names them as transformers does.
    """

    files: Mapping[str, bytes] = field(repr=False)
    names: Mapping[str, str] = field(default_factory=dict)

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

    def restore(self, name: str) -> str:
        """Returns transformers' name of a tensor or module that the family calls ``name``.

        Raises:
            KeyError: transformers' model has no such tensor.
        """
        return _translate(name, {ours: theirs for theirs, ours in self.names.items()}) if self.names else name

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


def _translate(name: str, names: Mapping[str, str]) -> str:
    module, number = name, _NUMBER.search(name)
    if number:
        module = _NUMBER.sub(".*.", name, count=1)
    stem, suffix = (module, "") if module in names else module.rpartition(".")[::2]
    translated = names[stem] + ("." + suffix if suffix else "")
    return translated.replace("*", number.group(1)) if number else translated
