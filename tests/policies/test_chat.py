"""Prompts of families: chat templates, conversations, and what a plain text begins with."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import dream_checkpoint, llada_checkpoint, masked_checkpoint
from support.number_task import Numbers
from support.policies import tiny_policy
from torch import Tensor

from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.core.policy import Vocabulary
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.saving import save_own_layout, save_transformers
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.rollout.services import check_prompts, cut_prompts, prompt_batch
from dlmrl_kit.rollout.tokens import Tokens
from dlmrl_kit.tasks.base import Example, prompt_text, question_text, split_of
from dlmrl_kit.tasks.json_lines import JsonLines

CONVERSATION = [
    {"role": "user", "content": "1 2"},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "4 5"},
]
LLADA = (
    "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n1 2<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n3<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n4 5<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
DREAM = (
    "<|im_start|>user\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n"
    "<|im_start|>user\n4 5<|im_end|>\n<|im_start|>assistant\n"
)


def rows(encoded: dict[str, Tensor]) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(encoded["prompt_ids"], encoded["prompt_mask"], strict=True)]


def plain(policy: TransformersPolicy, text: str) -> list[int]:
    ids: list[int] = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize(("make", "expected"), [(llada_checkpoint, LLADA), (dream_checkpoint, DREAM)])
def test_conversations_follow_the_familys_template(make: Any, expected: str, tmp_path: Path) -> None:
    make(tmp_path)
    policy = load_policy(tmp_path)
    encoded = policy.encode([CONVERSATION, "1 2", CONVERSATION[:1]])
    found = rows(encoded)
    assert found[0] == plain(policy, expected)
    assert found[1] == plain(policy, "1 2")  # a text stays as it is
    assert encoded["prompt_mask"][:, -1].all()  # padded on the left
    special = plain(policy, "<|eot_id|>" if make is llada_checkpoint else "<|im_end|>")
    assert len(special) == 1
    assert found[0].count(special[0]) == 3


@pytest.mark.parametrize("make", [llada_checkpoint, dream_checkpoint])
def test_texts_as_messages_of_the_user(make: Any, tmp_path: Path) -> None:
    """With ``chat_template`` a text is what a user says; saved too, and the caller has the last word."""
    make(tmp_path / "base")
    policy = Pretrained(str(tmp_path / "base"), chat_template=True).load()
    message = [{"role": "user", "content": "1 2"}]
    assert rows(policy.encode(["1 2"])) == rows(policy.encode([message]))
    assert rows(Tokens.of(policy).encode(["1 2"])) == rows(policy.encode([message]))  # type: ignore[arg-type]
    for save in (save_own_layout, save_transformers):
        save(policy, tmp_path / save.__name__)
        again = load_policy(tmp_path / save.__name__)
        assert rows(again.encode(["1 2"])) == rows(policy.encode([message]))
        assert load_policy(tmp_path / save.__name__, chat_template=False).chat_template is False


def test_masked_language_models_begin_with_their_class_token(tmp_path: Path) -> None:
    masked_checkpoint(tmp_path, "bert")
    policy = load_policy(tmp_path)
    assert rows(policy.encode(["12", "1"])) == [[18, 1, 2], [18, 1]]


def test_what_cannot_be_formatted_is_refused(tmp_path: Path) -> None:
    policy = tiny_policy()
    with pytest.raises(
        RecipeError, match="the prompt is a conversation, but the policy's tokenizer has no chat template"
    ):
        policy.encode([CONVERSATION])
    with pytest.raises(UserError, match="chat_template = True, but the tokenizer has no chat template"):
        TransformersPolicy(policy.model, policy.tokenizer, chat_template=True)
    llada_checkpoint(tmp_path)
    refusing = load_policy(tmp_path)
    refusing.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RecipeError, match="chat template refuses a conversation: roles must alternate"):
        refusing.encode([CONVERSATION])


def write(path: Path, *lines: dict[str, Any]) -> JsonLines:
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return JsonLines(str(path), "math:sqrt")


def test_conversations_in_a_file(tmp_path: Path) -> None:
    lines = [{"prompt": [{"role": "user", "content": str(number)}], "answer": "7"} for number in range(40)]
    task = write(tmp_path / "a.jsonl", *lines, lines[3], {"prompt": "text"})
    sizes = {split: task.size(split) for split in task.SPLITS}
    assert sum(sizes.values()) == 41  # the repeated one counts once
    assert min(sizes.values()) > 2
    example = task.example("train", 0)
    assert example.prompt in [line["prompt"] for line in lines] or example.prompt == "text"
    assert split_of(question_text(example.prompt)) == "train"
    assert task.canonical(example) == prompt_text(example.prompt)

    llada_checkpoint(tmp_path / "base")
    policy = load_policy(tmp_path / "base")
    heldout = next(i for i in range(task.size("heldout")) if not isinstance(task.example("heldout", i).prompt, str))
    batch = prompt_batch(task, "heldout", [heldout, heldout], policy, group_size=2)
    message = task.example("heldout", heldout).prompt[0]["content"]
    text = f"<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n{message}<|eot_id|>"
    text += "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert batch["prompt_ids"].tolist() == [plain(policy, text)] * 4
    assert torch.equal(batch["group"], torch.tensor([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "'prompt' is empty"),
        ({"role": "user"}, "'prompt' must be a text, got an object"),
        (["hello"], "a message of 'prompt' must be an object with the texts 'role' and 'content'"),
        ([{"role": "user"}], "a message of 'prompt' must be"),
        ([{"role": "user", "content": 3}], "a message of 'prompt' must be"),
        ([{"role": "user", "content": "a", "name": "b"}], "a message of 'prompt' must be"),
    ],
)
def test_prompts_that_are_no_conversations(prompt: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f":1: {message}"):
        write(tmp_path / "a.jsonl", {"prompt": prompt})


class Bare(Vocabulary):
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.pad_id, self.mask_id, self.device = tokenizer, 0, 1, torch.device("cpu")


def test_a_policy_without_templates_needs_none() -> None:
    """Whatever has a tokenizer and padding can encode texts."""
    policy = tiny_policy()
    assert rows(Bare(policy.tokenizer).encode(["ab", "c"])) == rows(policy.encode(["ab", "c"]))


@pytest.mark.parametrize("make", [llada_checkpoint, dream_checkpoint])
def test_an_answer_begins_with_its_prefix_and_a_prompt_is_cut_from_the_left(make: Any, tmp_path: Path) -> None:
    make(tmp_path)
    policy = load_policy(tmp_path)
    whole = policy.prompt_tokens(CONVERSATION)
    begun = policy.prompt_tokens(CONVERSATION, prefix="9 9")
    assert begun == [*whole, *plain(policy, "9 9")]
    assert policy.prompt_tokens("1 2", prefix=" 3") == policy.prompt_tokens("1 2 3")
    assert policy.prompt_tokens(CONVERSATION, prefix="9 9", most=4) == begun[-4:]
    assert policy.prompt_tokens(CONVERSATION, most=len(whole)) == whole
    with pytest.raises(RecipeError, match=r"has no tokens for|mask token"):
        policy.prompt_tokens(CONVERSATION, prefix=policy.tokenizer.convert_ids_to_tokens(policy.mask_id))


def test_batches_hold_prefixes_and_cut_prompts_and_a_run_says_how_many(tmp_path: Path) -> None:
    llada_checkpoint(tmp_path)
    policy = load_policy(tmp_path)

    class Begun(Numbers):
        at_hand = True

        def __init__(self) -> None:
            super().__init__(8)

        def example(self, split: str, index: Any) -> Example:
            return replace(super().example(split, index), prefix="_9", most=4)

    batch = prompt_batch(Begun(), "train", [0, 5], policy)
    assert rows(batch) == [plain(policy, "0_9"), plain(policy, "55_9")]
    check_prompts(Begun(), "train", policy, 1)
    lengths = [len(policy.whole_prompt(e.prompt, e.prefix)) for e in map(partial(Begun().example, "train"), range(8))]
    long = [length for length in lengths if length > 4]
    (note,) = cut_prompts(Begun(), "train", policy)
    assert note == (
        f"Begun: {len(long)} of 8 prompts in train are cut from the left, {sum(long) / len(long):.0f} tokens long on "
        f"average, {max(long)} at most"
    )
    assert cut_prompts(Numbers(), "train", policy) == []
