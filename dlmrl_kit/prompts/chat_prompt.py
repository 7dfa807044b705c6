"""A conversation for the model's chat template."""

from __future__ import annotations

from dlmrl_kit.core.prompt import Prompt
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.prompts.base import PromptLayout


@register("prompt", paper="arXiv 2504.12216; arXiv 2603.12554")
class ChatPrompt(PromptLayout):
    """A conversation that the model's own chat template formats, for models that follow instructions.

    Worked examples are earlier turns of it. The answer begins with ``<reasoning>``, which the model is given.

    Args:
        system: whether the instruction is the system's message; if not, it stands at the head of the first question, as
            in the papers.

    Other arguments, raises as ``PromptLayout``.
    """

    @with_parameters_of(PromptLayout)
    def __init__(self, *args: object, system: bool = False, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.system = system

    def laid_out(self, instruction: str, worked: list[tuple[str, str]], question: str) -> Prompt:
        """Returns the messages, the last of which is the user's."""
        messages = []
        for asked, answer in worked:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": question})
        if instruction and self.system:
            return [{"role": "system", "content": instruction}, *messages]
        if instruction:
            messages[0]["content"] = f"{instruction}\n\n{messages[0]['content']}"
        return messages
