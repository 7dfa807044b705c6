"""Prompts of a user, from a file or standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dlmrl_kit.core.errors import FileError
from dlmrl_kit.core.files import read_regular, reason_of
from dlmrl_kit.core.prompt import Prompt, fault_of, is_message


def read_prompts(path: Path) -> list[Prompt]:
    """Reads prompts, one in each line that is not empty.

    Args:
        path: of a text file, or of JSON lines if it ends with ``.jsonl``: texts, or objects with a field ``prompt``,
            which holds a text or a conversation. ``-`` is standard input, as text.

    Raises:
        FileError: the file cannot be read, or a line of it holds no prompt.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else read_regular(path).decode("utf-8-sig")
    except OSError as error:
        raise FileError(f"cannot read {path}: {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    return [_prompt(line, f"{path}, line {number}") for number, line in lines]


def _prompt(line: str, place: str) -> Prompt:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{place}: not JSON ({error})") from error
    prompt = data.get("prompt") if isinstance(data, dict) else data
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not prompt or not all(map(is_message, prompt)):
        raise FileError(f"{place}: expected a text or an object with a field 'prompt', a text or a list of messages")
    if fault := fault_of(prompt):
        raise FileError(f"{place}: {fault}")
    return prompt
