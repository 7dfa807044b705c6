"""A conversation in the terminal: answers appear as the masks are filled in."""

from __future__ import annotations

from rich.console import Console
from rich.live import Live
from rich.text import Text
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.core.generation import prompt_rows
from dlmrl_kit.core.keys import COMPLETION_IDS
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.prompt import Prompt
from dlmrl_kit.core.seeding import derive_seed
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.watching import watch
from dlmrl_kit.training.trace import Words


class Chat:
    """A conversation with a policy; each message by itself where its tokenizer has no chat template.

    Args:
        console: where answers are printed, live on a terminal.
        policy: the denoiser.
        sampler: decodes.
        seed: of the noise; answer n of a conversation has noise of its own.
        system: what the conversation begins with; None: nothing.

    Raises:
        UserError: the sampler cannot decode from the policy.
    """

    def __init__(
        self, console: Console, policy: Policy, sampler: Sampler, *, seed: int = 0, system: str | None = None
    ) -> None:
        sampler.attach(policy)
        self.console, self.policy, self.sampler, self.seed = console, policy, sampler, seed
        self.system = [] if system is None else [{"role": "system", "content": system}]
        self.words = Words(policy)
        self.messages: list[dict[str, str]] = []
        self.begin()

    def begin(self) -> None:
        """Forgets the conversation."""
        self.messages = list(self.system)

    def say(self, text: str) -> str:
        """Adds a message and the policy's answer to the conversation, and shows the answer; returns it.

        Raises:
            RecipeError: the policy cannot read the conversation; the message is forgotten.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt: Prompt = asked if self.policy.tokenizer.chat_template else text
        number = len(asked)
        row = prompt_rows(self.policy, [prompt], self.sampler.completion_length, derive_seed(self.seed, "chat", number))
        (answer,) = self.policy.completion_texts(self._watched(row))
        self.console.print(Text(answer))
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        return answer

    def _watched(self, row: TensorDict) -> Tensor:
        """Decodes one prompt, live on a terminal; returns the completion, int64 [1, L]."""
        if not self.console.is_terminal:
            return self.sampler.decode(row, policy=self.policy)[COMPLETION_IDS]
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            for ids in watch(self.sampler, row, self.policy):
                live.update(self._canvas(ids[0]), refresh=True)
        return ids

    def _canvas(self, ids: Tensor) -> Text:
        """Writes a state; open positions as dots, what is behind the end of the text left out."""
        text, shown = Text(), int(self.policy.before_end(ids).sum())
        for token in ids[:shown].tolist():
            open_ = token == self.policy.mask_id
            text.append("·" if open_ else self.words(token), style="dim" if open_ else "")
        return text
