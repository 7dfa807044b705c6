"""The interface of prompt layouts, which make a prompt of a task's instruction and question."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from dlmrl_kit.core.dependencies import Dependent, anchored_paths
from dlmrl_kit.core.promises import promises, shown
from dlmrl_kit.core.prompt import Prompt, fault_of
from dlmrl_kit.core.validate import check, refuse_value


def prompt_fault(prompt: object) -> str:
    """Says what is wrong with what should be a prompt, as the end of a sentence; "" if nothing is."""
    if isinstance(prompt, list):
        whole = all(isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in prompt)
    else:
        whole = isinstance(prompt, str)
    if not whole:
        return f"{shown(prompt)}; it should be a text, or a list of messages with 'role' and 'content'"
    return (fault_of(prompt) or "") if prompt else "an empty prompt"  # type: ignore[arg-type]


class PromptLayout(Dependent, ABC):
    """Base class of prompt layouts.

    A published wording is not part of the kit: it is read from a text file of the user's, whose digest the run records.

    Args:
        instruction: what the model is told to do; None: the task's own wording.
        instruction_file: a UTF-8 text file with the instruction, in place of ``instruction``.
        shots_file: a JSON Lines file of worked examples, each an object with the texts ``question`` and ``answer``
            (all that the model should write); they stand before the question.
        shots: how many of them, from the first; None: all.
        prefix: what the answer begins with. It is given to the model behind the prompt, and the completion goes on
            behind it; rewards see both.
        max_tokens: the most tokens of a prompt, prefix included; longer ones are cut from the left, and a run says how
            many are. None: no prompt is cut.

    Raises:
        ValueError: both an instruction and a file, a file that cannot be read, fewer examples in it than ``shots``, or
            a parameter out of its range.
    """

    def __init__(
        self,
        instruction: str | None = None,
        instruction_file: str | None = None,
        shots_file: str | None = None,
        shots: int | None = None,
        prefix: str = "<reasoning>\n",
        max_tokens: int | None = None,
    ) -> None:
        one = instruction is None or instruction_file is None
        check(one, self, "instruction_file", instruction_file, "None where there is an instruction")
        check(shots is None or shots >= 0, self, "shots", shots, "at least 0")
        check(max_tokens is None or max_tokens >= 1, self, "max_tokens", max_tokens, "at least 1")
        self.instruction, self.instruction_file = instruction, instruction_file
        self.shots_file, self.shots = shots_file, shots
        self.prefix, self.max_tokens = prefix, max_tokens
        self._told = instruction if instruction_file is None else self._text("instruction_file", instruction_file)
        self._worked = [] if shots_file is None else self._examples(shots_file)
        enough = shots is None or shots <= len(self._worked)
        check(enough, self, "shots", shots, f"at most {len(self._worked)}, as many as shots_file has")
        self._worked = self._worked[:shots]

    @classmethod
    def anchored(cls, settings: Mapping[str, object]) -> dict[str, object]:
        """Returns the files as absolute paths."""
        return anchored_paths(settings, "instruction_file", "shots_file")

    def files(self) -> tuple[Path, ...]:
        """Returns the files that the wording comes from."""
        return tuple(Path(name).expanduser() for name in (self.instruction_file, self.shots_file) if name is not None)

    def prompt(self, instruction: str, question: str) -> Prompt:
        """Returns the prompt of a question.

        Args:
            instruction: the task's own wording, used where the layout has none.
            question: of the example.
        """
        return self.laid_out(instruction if self._told is None else self._told, self._worked, question)

    @abstractmethod
    @promises(lambda result, given: prompt_fault(result))
    def laid_out(self, instruction: str, worked: list[tuple[str, str]], question: str) -> Prompt:
        """Returns the prompt of a question, behind an instruction (may be "") and worked examples with answers."""

    def _text(self, parameter: str, path: str) -> str:
        try:
            return Path(path).expanduser().read_text(encoding="utf-8").strip("\n")
        except (OSError, UnicodeDecodeError) as error:
            refuse_value(self, parameter, f"{path!r} cannot be read as UTF-8 text: {error}", joint=": ")

    def _examples(self, path: str) -> list[tuple[str, str]]:
        found = []
        for number, line in enumerate(self._text("shots_file", path).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
                pair = fields["question"], fields["answer"]
            except (ValueError, KeyError, TypeError, RecursionError):
                pair = (None, None)
            if not all(isinstance(text, str) for text in pair):
                expected = "an object with the texts 'question' and 'answer' on each line"
                refuse_value(self, "shots_file", f"{path}:{number}: expected {expected}", joint=": ")
            found.append(pair)
        return found
