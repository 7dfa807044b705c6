"""Prompt layouts: how a question becomes what a policy is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.prompts.base import PromptLayout as PromptLayout
    from dlmrl_kit.prompts.chat_prompt import ChatPrompt as ChatPrompt
    from dlmrl_kit.prompts.plain_prompt import PlainPrompt as PlainPrompt

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["PromptLayout"],
        "chat_prompt": ["ChatPrompt"],
        "plain_prompt": ["PlainPrompt"],
    },
)
