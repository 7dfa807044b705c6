"""Trains the tokenizer of a model from nothing, on the texts that the model is going to be pre-trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dlmrl_kit.algorithm.algorithm import Pretraining
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.files import atomic_folder
from dlmrl_kit.policies.subwords import train_tokenizer
from dlmrl_kit.rollout.services import examples, require_examples


def texts_of(built: Pretraining) -> Iterator[str]:
    """Yields prompts and demonstrations of the pretrain split, example after example.

    Raises:
        UserError: the split is empty, or an example cannot be made.
    """
    require_examples(built.task, "pretrain")
    for index in range(built.task.size("pretrain")):
        (example,) = examples(built.task, "pretrain", [index])
        prompt = example.prompt
        yield from [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        yield from (example.prefix + text for text, _ in built.demonstrator.demonstrations(example))


def write_tokenizer(built: Pretraining, vocab_size: int, folder: Path) -> int:
    """Trains a tokenizer for a pre-training recipe and writes it to a folder; returns the size of its vocabulary.

    Args:
        built: the components of the recipe. Its policy is not loaded, and may name the folder.
        vocab_size: as ``train_tokenizer``.
        folder: is made, and must not hold anything yet.

    Raises:
        UserError: as ``texts_of`` and ``train_tokenizer``, or the folder is not empty.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; choose another --out")
    tokenizer = train_tokenizer(texts_of(built), vocab_size)
    with atomic_folder(folder) as temporary:
        tokenizer.save_pretrained(temporary)
    return len(tokenizer)
