"""What a model would not see of a prompt is refused: characters, masks, messages, positions, in every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.block_checkpoints import diffusion_gemma_checkpoint, sdar_checkpoint
from support.checkpoints import LLADA_TEMPLATE, fast_tokenizer
from support.families import FAMILIES
from support.policies import tiny_policy
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.policy import Vocabulary
from dlmrl_kit.core.prompt import fault_of
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.rollout.tokens import Tokens

MAKE: dict[str, Callable[[Path], Any]] = {
    **{name: FAMILIES[name] for name in ("llada", "llada_moe", "dream", "bert", "roberta", "modernbert")},
    "sdar": sdar_checkpoint,
    "diffusion_gemma": diffusion_gemma_checkpoint,
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TransformersPolicy]:
    """The policy of a family, loaded once."""
    done: dict[str, TransformersPolicy] = {}

    def get(family: str) -> TransformersPolicy:
        if family not in done:
            folder = tmp_path_factory.mktemp("checkpoint")
            MAKE[family](folder)
            done[family] = load_policy(folder)
        return done[family]

    return get


def refused(policy: Vocabulary, prompt: Any, message: str, completion_length: int = 0) -> None:
    with pytest.raises(RecipeError, match=message):
        policy.prompt_tokens(prompt, completion_length)


@pytest.mark.parametrize("family", MAKE)
def test_what_a_model_would_not_see_is_refused(family: str, loaded: Callable[[str], TransformersPolicy]) -> None:
    whole = loaded(family)
    mask = whole.tokenizer.convert_ids_to_tokens(whole.mask_id)
    for policy in (whole, Tokens.of(whole)):
        begins = len(whole.prefix_ids)
        assert len(policy.prompt_tokens("1_2:")) == begins + 4
        refused(policy, "1\ud8342", r"half of a surrogate pair")
        refused(policy, f"1{mask}2", "the model's mask token '.*' stands in '1.*2'; write it differently")
        if family in ("dream", "sdar"):  # bytes are tokens: nothing is unknown
            assert len(policy.prompt_tokens("Zé字🙂")) == 1 + 2 + 3 + 4
        else:
            refused(policy, "1Z2é字", "the policy's tokenizer has no tokens for 'Z', 'é', '字', in '1Z2é字'")
        assert whole.max_length is not None
        room = whole.max_length - begins - 4
        assert policy.prompt_tokens("1_2:", room)
        longer = f"the prompt has {begins + 4} tokens and the completion {room + 1}, {whole.max_length + 1} in all, but"
        refused(policy, "1_2:", f"{longer} the model has {whole.max_length} positions; shorten", room + 1)


@pytest.mark.parametrize(
    "family", [name for name in MAKE if name not in ("bert", "roberta", "modernbert", "llada_moe")]
)
def test_conversations_are_seen_whole_or_refused(family: str, loaded: Callable[[str], TransformersPolicy]) -> None:
    policy = loaded(family)
    asked = [{"role": "user", "content": "1_2"}]
    assert policy.prompt_tokens(asked)
    answered = [*asked, {"role": "assistant", "content": "3"}]
    assert policy.prompt_tokens([*answered, *asked])
    refused(policy, answered, "the conversation ends with the assistant's answer, which the policy would see")
    mask = policy.tokenizer.convert_ids_to_tokens(policy.mask_id)
    refused(policy, [{"role": "user", "content": f"1{mask}"}], "mask token")
    refused(policy, [{"role": "user", "content": "1\udc00"}], "surrogate")
    if family in ("llada", "diffusion_gemma"):
        refused(policy, [{"role": "user", "content": "1Z"}], "no tokens for 'Z', in '1Z'")
    tokens = len(policy.prompt_tokens(asked))
    assert policy.max_length is not None
    refused(policy, asked, "positions", policy.max_length - tokens + 1)


def test_templates_that_leave_a_message_out() -> None:
    tokenizer = fast_tokenizer(["<s>", "<mask>"], mask_token="<mask>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] != 'system' %}1:{{ m['content'].split('b')[-1] | trim }}:{% endif %}"
        "{% endfor %}2:"
    )
    policy = TransformersPolicy(tiny_policy(characters="abcdefghijklmnop").model, tokenizer, mask_id=18)
    user, system = {"role": "user", "content": " 12 "}, {"role": "system", "content": "34"}
    thought = {"role": "assistant", "content": "33b4"}
    assert policy.prompt_tokens([user, thought, user])  # templates drop what earlier answers thought
    refused(policy, [system, user], "the tokenizer's chat template leaves out the message of the system")
    refused(policy, [{"role": "user", "content": "3b4"}], "leaves out the message of the user")


def dropping() -> TransformersPolicy:
    """A policy whose tokenizer drops, without a word, what it does not have: "byte pairs" without bytes."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE({"1": 0, "2": 1, "a": 2, "b": 3, "<mask>": 4}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="<mask>")
    return TransformersPolicy(tiny_policy(characters="a").model, fast, mask_id=4)


def test_characters_that_a_tokenizer_drops() -> None:
    policy = dropping()
    assert policy.unknown_ids == ()
    assert policy.prompt_tokens("1 á\tB\n2\x00") == [0, 2, 3, 1]  # accents, case and white space: it means to
    refused(policy, "1字2", "no tokens for '字', in '1字2'")
    refused(policy, "1🙂2", "no tokens for '🙂'")
    refused(policy, "1-2", "no tokens for '-'")
    refused(policy, "  ", "no tokens are left of the prompt '  '")


def test_a_character_that_is_itself_the_unknown_token_is_there(loaded: Callable[[str], TransformersPolicy]) -> None:
    policy = loaded("llada")
    assert policy.unknown_ids == (policy.tokenizer.convert_tokens_to_ids("_"),)
    assert policy.prompt_tokens("1_")[-1:] == list(policy.unknown_ids)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"max_position_embeddings": 64, "rope_parameters": {"rope_type": "linear", "factor": 4.0}}, 256),
        (
            {
                "max_position_embeddings": 256,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 64,
                },
            },
            256,
        ),
    ],
)
def test_how_many_positions_a_model_has(config: dict[str, Any], expected: int) -> None:
    if "rope_parameters" in config:
        config["rope_parameters"].setdefault("rope_theta", 1e4)
    assert tiny_policy(**config).max_length == expected


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("text", None),
        ("🙂", None),
        ("a\ud83d", "surrogate"),
        ([{"role": "user", "content": "a"}], None),
        ([{"role": "user", "content": "\udfff"}], "surrogate"),
        ([{"role": "assistant", "content": "a"}], "ends with the assistant's answer"),
        ([{"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}], None),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "a"}], None),
    ],
)
def test_prompts_that_no_policy_can_be_asked(prompt: Any, message: str | None) -> None:
    fault = fault_of(prompt)
    assert (fault is None) if message is None else message in str(fault)


def test_the_published_template_loses_nothing() -> None:
    tokenizer = fast_tokenizer(["<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<m>"])
    tokenizer.bos_token = "<|startoftext|>"
    tokenizer.chat_template = LLADA_TEMPLATE
    policy = TransformersPolicy(tiny_policy(characters="abcdefghijklmnopqrst").model, tokenizer, mask_id=21)
    assert policy.prompt_tokens([{"role": "system", "content": "1"}, {"role": "user", "content": " 2\n"}])
