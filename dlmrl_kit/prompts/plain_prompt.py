"""One text, for models without a chat template."""

from __future__ import annotations

from dlmrl_kit.core.prompt import Prompt
from dlmrl_kit.core.registry import register
from dlmrl_kit.prompts.base import PromptLayout


@register("prompt")
class PlainPrompt(PromptLayout):
    """One text: instruction, worked examples and question, with empty lines between them.

    It is for base models, which have no chat template.

    Arguments, raises as ``PromptLayout``.
    """

    def laid_out(self, instruction: str, worked: list[tuple[str, str]], question: str) -> Prompt:
        """Returns the text; the question is its last line, and the prefix of an answer begins a new one."""
        shown = [f"{asked}\n{answer.rstrip()}" for asked, answer in worked]
        return "\n\n".join([*([instruction] if instruction else []), *shown, question]) + "\n" * bool(self.prefix)
