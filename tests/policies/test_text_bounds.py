"""Ends of text of every family, one and several; how texts begin; what no token stands for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.block_checkpoints import diffusion_gemma_checkpoint, sdar_checkpoint
from support.checkpoints import fast_tokenizer
from support.families import FAMILIES, Reference
from support.policies import tiny_policy
from tensordict import TensorDict
from tokenizers import processors

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.likelihoods.segments import counted_positions
from dlmrl_kit.policies.characters import character_tokenizer
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.policies.saving import save_own_layout, save_transformers
from dlmrl_kit.policies.text_bounds import beginning, end_of_turn, unknown_tokens
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.rollout.rewards import Scorer
from dlmrl_kit.rollout.tokens import Tokens
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.tasks.base import Example, Task
from dlmrl_kit.values.base import segment_tokens

Made = Callable[[str], tuple[Path, Reference]]

MAKE: dict[str, Callable[[Path], Any]] = {
    **{name: FAMILIES[name] for name in ("llada", "llada_moe", "dream", "bert", "modernbert")},
    "sdar": sdar_checkpoint,
    "diffusion_gemma": diffusion_gemma_checkpoint,
}

ENDS = {
    "llada": ("<|endoftext|>", "<|eot_id|>"),
    "llada_moe": ("<|endoftext|>",),
    "dream": ("<|endoftext|>", "<|im_end|>"),
    "bert": ("[SEP]",),
    "modernbert": ("[SEP]",),
    "sdar": ("<|im_end|>", "<|endoftext|>"),
    "diffusion_gemma": ("<turn|>", "<eos>"),
}
"""What ends a text of each family, what fills behind it first."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TransformersPolicy]:
    """The policy of a family, for which the user adds "9" to the ends of text; loaded once."""
    done: dict[str, TransformersPolicy] = {}

    def get(family: str) -> TransformersPolicy:
        if family not in done:
            folder = tmp_path_factory.mktemp("checkpoint")
            MAKE[family](folder)
            nine = load_policy(folder).tokenizer.convert_tokens_to_ids("9")
            done[family] = Pretrained(str(folder), eos_ids=(nine,)).load()
        return done[family]

    return get


class Echo(Task):
    """Right is the text "12"."""

    def __init__(self) -> None:
        super().__init__(0, 1, 0)

    def candidate(self, number: int) -> Example | None:
        return Example("1", "12")

    def example(self, split: str, index: Any) -> Example:
        return Example("1", "12")

    def score(self, completion: str, example: Example) -> dict[str, float]:
        return {"reward": float(completion == "12"), "solved": float(completion == "12"), "length": len(completion)}


@pytest.mark.parametrize("family", MAKE)
def test_every_end_counts_the_same(family: str, loaded: Callable[[str], TransformersPolicy]) -> None:
    """In texts, rewards and metrics, in what is still denoised, in what is scored and has a value, and in fillings."""
    policy = loaded(family)
    one, two, nine = policy.tokenizer.convert_tokens_to_ids(["1", "2", "9"])
    ends = [*policy.tokenizer.convert_tokens_to_ids(list(ENDS[family])), nine]
    assert policy.eos_ids == tuple(ends)
    assert policy.eos_id == policy.filler_id == ends[0]
    assert not {*ends} & {*policy.forbidden_ids}, "what ends a text may be committed"
    rows = torch.tensor([[one, two, end, one, two, other] for end in ends for other in ends])
    rows = torch.cat([rows, torch.tensor([[one, two, one, two, one, two]])])
    for vocabulary in (policy, Tokens.of(policy)):
        assert vocabulary.completion_texts(rows) == ["12"] * len(ends) ** 2 + ["121212"]
        assert vocabulary.is_end(rows).sum(-1).tolist() == [2] * len(ends) ** 2 + [0]
    scores = Scorer(Echo(), "train", policy).components(rows, torch.zeros(len(rows), dtype=torch.int64))
    assert scores[:-1] == [{"reward": 1.0, "solved": 1.0, "length": 2}] * len(ends) ** 2
    assert scores[-1]["length"] == 6

    sampler = LeftToRight(6)
    masked = rows.clone()
    masked[:, 4:] = policy.mask_id  # behind the end of all rows but the last
    assert sampler.running(masked, policy).tolist() == [False] * len(ends) ** 2 + [True]
    assert LeftToRight(6, stop_at_eos=False).running(masked, policy).all()

    upto = torch.tensor([[True] * 3 + [False] * 3] * len(ends) ** 2 + [[True] * 6])
    assert torch.equal(counted_positions(rows, policy, after_eos=False), upto)
    assert counted_positions(rows, policy, after_eos=True).all()
    count = len(rows)
    batch = TensorDict(
        {
            "completion_ids": rows,
            "commit_step": torch.zeros(count, 6, dtype=torch.int16),
            "selected": {
                "step": torch.zeros(count, 1, dtype=torch.int64),
                "end": torch.ones(count, 1, dtype=torch.int64),
                "weight": torch.ones(count, 1),
            },
        },
        [count],
    )
    assert torch.equal(segment_tokens(batch, policy, after_eos=False)[:, 0], upto)


@pytest.mark.parametrize("family", MAKE)
def test_what_the_user_adds_is_saved(family: str, loaded: Callable[[str], TransformersPolicy], tmp_path: Path) -> None:
    policy = loaded(family)
    for save in (save_own_layout, save_transformers):
        save(policy, tmp_path / save.__name__)
        again = load_policy(tmp_path / save.__name__)
        assert {*again.eos_ids} == {*policy.eos_ids}
        assert again.filler_id == policy.filler_id


def edit(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **changes}))


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    ("family", "listed", "expected"),
    [
        ("llada", [18, 5], (18, 5, 21)),
        ("llada", 5, (18, 5, 21)),
        ("llada", [], (18, 21)),
        ("llada", None, (18, 21)),
        ("llada_moe", [3, 17], (17, 3)),
        ("dream", [256, 7], (256, 7, 258)),
        ("bert", [19, 4], (19, 4)),
    ],
)
def test_lists_of_ends_in_files(file: str, family: str, listed: Any, expected: tuple[int, ...], tmp_path: Path) -> None:
    MAKE[family](tmp_path)
    for name in ("generation_config.json", "config.json"):
        if name == "generation_config.json" or (tmp_path / name).is_file():
            edit(tmp_path / name, eos_token_id=None)
    edit(tmp_path / file, eos_token_id=listed)
    assert load_policy(tmp_path).eos_ids == expected


def test_generation_settings_that_cannot_be_read(tmp_path: Path) -> None:
    MAKE["dream"](tmp_path)
    for content in ("{", "[1]"):
        (tmp_path / "generation_config.json").write_text(content)
        with pytest.raises(UserError, match=r"generation_config\.json"):
            load_policy(tmp_path)


def test_ends_that_are_no_tokens(tmp_path: Path) -> None:
    policy = tiny_policy()
    with pytest.raises(UserError, match="eos_ids: 99 is no token of the model, which has 14"):
        TransformersPolicy(policy.model, policy.tokenizer, eos_ids=(99,))
    with pytest.raises(UserError, match="eos_ids: 1 is the mask"):
        TransformersPolicy(policy.model, policy.tokenizer, eos_ids=(1,))
    for end, problem in ((99, "no token of the model"), (-1, "no token of the model"), (1, "the mask")):
        with pytest.raises(UserError, match=f"an end of text: {end} is {problem}"):
            TransformersPolicy(policy.model, policy.tokenizer, listed_ends=(3, end))
    assert TransformersPolicy(policy.model, policy.tokenizer, listed_ends=(3,)).eos_ids == (3, 2)


@pytest.mark.parametrize("name", ["eos_ids", "forbidden_ids"])
@pytest.mark.parametrize("value", [5, "5", (1.0,), (True,), (-1,), None])
def test_ids_are_lists_of_numbers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"Pretrained\.{name} must be a list of ids of tokens"):
        Pretrained("shipped:sudoku4x4", **{name: value})


TURN = "{% for m in messages %}<s>{{ m['role'] + ': ' + m['content'] }}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TURN + "<e>{% endfor %}", "<e>"),
        (TURN + "<e>\n{% endfor %}", "<e>"),
        (TURN + " <e>{% endfor %}<b>", "<e>"),  # and what every text ends with
        (TURN + "<e><b>{% endfor %}", "<e>"),
        (TURN + "<e>>{% endfor %}", "<e>>"),  # the longer of two tokens
        (TURN + "{{ eos_token }}{% endfor %}", "</s>"),
        (TURN + "{% if m['role'] == 'user' %}<b>{% else %}<e>{% endif %}{% endfor %}", "<e>"),
        (TURN + "\n{% endfor %}", None),
        (TURN + "1<e>{% endfor %}", None),  # a word first
        ("{{ raise_exception('no') }}", None),
        ("{{ messages[0]['content'] }}<e>", None),  # the answer is not there
        (None, None),
    ],
)
def test_the_end_of_a_turn_is_what_the_template_writes_behind_the_answer(
    template: str | None, expected: str | None
) -> None:
    tokenizer = fast_tokenizer(["<s>", "</s>", "<e>", "<e>>", "<b>"], eos_token="</s>")
    tokenizer.chat_template = template
    found = end_of_turn(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == expected


@pytest.mark.parametrize(
    ("single", "expected"),
    [(None, []), ("<s> $A", ["<s>"]), ("$A </s>", []), ("<s> $A </s>", ["<s>"]), ("<s> <b> $A", ["<s>", "<b>"])],
)
def test_how_texts_begin(single: str | None, expected: list[str]) -> None:
    """A plain prompt begins as the tokenizer begins a text by itself, and does not begin so twice."""
    tokenizer = fast_tokenizer(["<s>", "</s>", "<b>", "<mask>"], bos_token="<s>", eos_token="</s>", mask_token="<mask>")
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<s>", "</s>", "<b>")}
    if single is not None:
        used = [(name, index) for name, index in ids.items() if name in single]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=used)
    assert beginning(tokenizer) == tuple(ids[name] for name in expected)
    model = tiny_policy(characters="abcdefghijklmnop").model
    policy = TransformersPolicy(model, tokenizer, mask_id=tokenizer.mask_token_id)
    plain = tokenizer("1 2", add_special_tokens=False)["input_ids"]
    begins = [ids[name] for name in expected]
    assert policy.prompt_tokens("1 2") == [*begins, *plain]
    assert policy.prompt_tokens("".join(expected) + "1 2") == [*begins, *plain]
    assert policy.text_tokens(["1 2"]) == [plain]


def test_what_unknown_characters_become() -> None:
    """Declared or not: the tokenizer itself may know of an unknown token that transformers was not told of."""
    assert unknown_tokens(character_tokenizer("ab")) == (3,)
    undeclared = fast_tokenizer([])
    assert undeclared.unk_token_id is None
    assert unknown_tokens(undeclared) == (undeclared.convert_tokens_to_ids("_"),)
