"""How the assistant's answer is written in a policy's tokens: by its chat template, with the end of its turn."""

from __future__ import annotations

from itertools import pairwise

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.policy import Vocabulary
from dlmrl_kit.core.validate import clipped
from dlmrl_kit.tasks.base import Example


def answer_tokens(policy: Vocabulary, example: Example, text: str) -> list[int]:
    """Tokenises an answer to an example, as the model is to write it behind the prompt.

    Where the prompt goes through the tokenizer's chat template, the answer does, too, and ends with what the template
    writes at the end of the assistant's turn (LLaDA's ``<|eot_id|>``); what the template writes behind that is left
    out. Any other answer is its text alone.

    Raises:
        RecipeError: what ``Vocabulary.text_tokens`` refuses, an end of text within the answer, or a chat template that
            does not begin an answer as it lets the model begin one.
    """
    (plain,) = policy.text_tokens([text])
    ends = {*policy.eos_ids}
    if isinstance(example.prompt, str) and not policy.chat_template:
        if any(token in ends and behind not in ends for token, behind in pairwise(plain)):
            raise RecipeError(f"the demonstration {text!r} has an end of text in its middle")
        return plain
    if not ends.isdisjoint(plain):
        raise RecipeError(f"the answer {clipped(text)!r} has an end of text in it, which the chat template writes")
    ids: list[int] = policy.tokenizer(_turn(policy, example, text), add_special_tokens=False)["input_ids"]
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: end + 1]


def _turn(policy: Vocabulary, example: Example, text: str) -> str:
    """Returns what the chat template writes from where the model goes on, the answer's prefix, to the end."""
    prompt = example.prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    answered = [*messages, {"role": "assistant", "content": example.prefix + text}]
    try:
        begun = policy.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        whole = policy.tokenizer.apply_chat_template(answered, tokenize=False)
    except Exception as error:  # templates raise whatever jinja, or they themselves, like
        raise RecipeError(f"the tokenizer's chat template refuses a conversation: {error}") from error
    head, content = begun + example.prefix, (example.prefix + text).strip()
    if not whole.startswith(head) or content not in whole[len(begun) :]:
        raise RecipeError(
            "the tokenizer's chat template writes an answer otherwise than it lets the model begin one: "
            f"{clipped(whole[len(begun) - 20 :])!r} behind {clipped(begun[-20:])!r}"
        )
    return str(whole[len(head) :])
