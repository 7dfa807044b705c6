"""Question and answer, in two words each."""

from __future__ import annotations

from dlmrl_kit import register
from dlmrl_kit.core.prompt import Prompt
from dlmrl_kit.prompts.base import PromptLayout


@register("prompt")
class AcmePrompt(PromptLayout):
    """One text of lines that begin with ``Q:`` and ``A:``.

    Arguments, raises as ``PromptLayout``.
    """

    def laid_out(self, instruction: str, worked: list[tuple[str, str]], question: str) -> Prompt:
        """Returns the text; it ends with ``A:``."""
        shown = [f"Q: {asked}\nA: {answer.strip()}" for asked, answer in worked]
        return "\n\n".join([*([instruction] if instruction else []), *shown, f"Q: {question}\nA:"])
