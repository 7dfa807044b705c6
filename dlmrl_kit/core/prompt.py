"""The type of prompts. This module imports no torch, so that the processes that score completions start fast."""

from __future__ import annotations

from typing import TypeAlias

Prompt: TypeAlias = str | list[dict[str, str]]
"""A text, or a conversation: messages with ``role`` and ``content`` for the tokenizer's chat template."""
