"""The character tokenizer and small denoisers from scratch."""

from __future__ import annotations

from typing import Any

import pytest

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.policies.characters import CharacterLlama, character_tokenizer


def test_character_tokenizer_round_trips() -> None:
    tokenizer = character_tokenizer("ab (")
    assert tokenizer.decode(tokenizer("b (a")["input_ids"]) == "b (a"
    assert tokenizer("a?b")["input_ids"] == [4, tokenizer.unk_token_id, 5]
    ids = (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"characters": "aa"}, "characters must be distinct characters"),
        ({"characters": ""}, "characters must be distinct characters"),
        ({"hidden_size": 20, "num_heads": 4}, r"hidden_size must be a multiple of 2 \* num_heads, got 20"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
    ],
)
def test_small_denoisers_refuse_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"CharacterLlama.{message}"):
        CharacterLlama(**options)


def test_who_has_no_letters_is_told_where_they_are_named() -> None:
    told = "no tokens for 'a', in '1a'; those that it has are named by CharacterLlama.characters"
    with pytest.raises(RecipeError, match=told):
        CharacterLlama(hidden_size=16, num_layers=1).load().text_tokens(["1a"])
