"""Prompts: what a task asks, and what a policy is given. Imports no torch, for the processes that score."""

from __future__ import annotations

from typing import TypeAlias

Prompt: TypeAlias = str | list[dict[str, str]]
"""A text, or a conversation: messages with ``role`` and ``content``, formatted with the tokenizer's chat template."""
