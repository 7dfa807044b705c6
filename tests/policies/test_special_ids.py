"""Special tokens that a checkpoint's files name: tokens of the model, and the same in all of them, or it is said."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.block_checkpoints import diffusion_gemma_checkpoint, sdar_checkpoint
from support.families import FAMILIES

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.loading import load_policy

MAKE: dict[str, Callable[[Path], Any]] = {
    **{name: FAMILIES[name] for name in ("llada", "llada_moe", "dream", "bert")},
    "sdar": sdar_checkpoint,
    "diffusion_gemma": diffusion_gemma_checkpoint,
}
LATER = [pytest.param(n, marks=pytest.mark.thorough) for n in ("llada_moe", "dream", "bert", "sdar", "diffusion_gemma")]
ROLES = ("mask", "eos", "pad", "bos")
FILES = ("config.json", "generation_config.json", "text_config")
PLACES = [
    pytest.param(family, file, marks=() if family == "llada" else pytest.mark.thorough)
    for family in MAKE
    for file in (FILES if family == "diffusion_gemma" else FILES[:2])
]


def say(folder: Path, file: str, **ids: Any) -> str:
    """Writes ids into a file of a checkpoint; returns how messages call the place."""
    path = folder / ("config.json" if file == "text_config" else file)
    content = json.loads(path.read_text()) if path.is_file() else {}
    if file == "text_config":
        content[file] = {**content.get(file, {}), **ids}
    else:
        content = {name: value for name, value in (content | ids).items() if value is not None}
    path.write_text(json.dumps(content))
    return f"{path}: text_config" if file == "text_config" else str(path)


def rows_of(folder: Path) -> int:
    return load_policy(folder).vocab_size


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("family", "file"), PLACES)
def test_an_id_that_is_no_token_is_refused(family: str, file: str, role: str, tmp_path: Path) -> None:
    MAKE[family](tmp_path)
    rows = rows_of(tmp_path)
    wrong: list[tuple[Any, str]] = [(rows, str(rows)), (-2, "-2")]
    wrong += [([0, rows + 7, -3], f"{rows + 7}, -3")] if role == "eos" else []
    wrong += [(-1, "-1")] if role in ("mask", "eos") else []
    for value, named in wrong:
        where = say(tmp_path, file, **{f"{role}_token_id": value})
        with pytest.raises(UserError, match=re.escape(f"{where}: {role}_token_id names {named}, and the model has")):
            load_policy(tmp_path)
    for other in ("</s>", 2.0, {"a": 1}, True, [True]):
        where = say(tmp_path, file, **{f"{role}_token_id": other})
        with pytest.raises(UserError, match=re.escape(f"{role}_token_id")):
            load_policy(tmp_path)
    say(tmp_path, file, **{f"{role}_token_id": None})
    if role in ("pad", "bos"):
        say(tmp_path, file, **{f"{role}_token_id": -1})
    if role != "mask" or family not in ("llada", "dream"):
        load_policy(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("family", ["llada", *LATER[1:4]])
def test_masks_that_differ_are_refused_unless_the_caller_says_which(family: str, file: str, tmp_path: Path) -> None:
    MAKE[family](tmp_path)
    own = load_policy(tmp_path).mask_id
    where = say(tmp_path, file, mask_token_id=3)
    tokenizer = load_policy(tmp_path, mask_id=own).tokenizer
    if tokenizer.mask_token_id is None and file == "config.json":
        assert load_policy(tmp_path).mask_id == 3  # nothing else names one
        return
    with pytest.raises(UserError, match=rf"the mask of the checkpoint is .*3 \({re.escape(where)}\).*say with mask_id"):
        load_policy(tmp_path)
    for mask_id in (3, own, 4):
        with pytest.warns(RuntimeWarning, match=f"mask_id = {mask_id} counts, but the mask of the checkpoint is"):
            assert load_policy(tmp_path, mask_id=mask_id).mask_id == mask_id


@pytest.mark.parametrize("family", ["llada", *LATER[:4]])  # DiffusionGemma names no mask
def test_a_mask_of_the_callers_that_the_checkpoint_does_not_name_is_said(family: str, tmp_path: Path) -> None:
    MAKE[family](tmp_path)
    own = load_policy(tmp_path).mask_id
    with pytest.warns(RuntimeWarning, match="mask_id = 4 counts, but the mask of the checkpoint is"):
        assert load_policy(tmp_path, mask_id=4).mask_id == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert load_policy(tmp_path, mask_id=own).mask_id == own


@pytest.mark.parametrize(("role", "what"), [("pad", "padding"), ("bos", "beginning of text")])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("family", ["llada", *LATER[1:4]])
def test_of_padding_and_beginning_the_tokenizers_count(
    family: str, file: str, role: str, what: str, tmp_path: Path
) -> None:
    MAKE[family](tmp_path)
    before = load_policy(tmp_path)
    own = getattr(before.tokenizer, f"{role}_token_id")
    where = say(tmp_path, file, **{f"{role}_token_id": 3})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        after = load_policy(tmp_path)
    told = [str(w.message) for w in caught if w.category is RuntimeWarning]
    text = f"the tokenizer's {what} {own} counts, but {where}: {role}_token_id = 3"
    assert told == ([] if own is None else [text])
    assert (after.pad_id, after.prefix_ids, after.eos_ids) == (before.pad_id, before.prefix_ids, before.eos_ids)


@pytest.mark.parametrize("family", ["llada", *LATER])
def test_an_end_that_is_the_mask_or_no_token_of_the_tokenizer_is_refused(family: str, tmp_path: Path) -> None:
    MAKE[family](tmp_path)
    policy = load_policy(tmp_path)
    unwritten = {*range(policy.vocab_size)} - {*policy.tokenizer.get_vocab().values()}
    cases = {policy.mask_id: "the mask", **dict.fromkeys(sorted(unwritten)[:1], "a token that the tokenizer does not")}
    for end, problem in cases.items():
        where = say(tmp_path, "generation_config.json", eos_token_id=[2, end])
        said = f"{where}: eos_token_id names {end}, which is {problem}"
        if family == "diffusion_gemma" and end == policy.mask_id:  # no file names its mask, which is the padding
            said = f"an end of text: {end} is the mask"
        with pytest.raises(UserError, match=re.escape(said)):
            load_policy(tmp_path)


def test_padding_from_which_positions_are_counted_is_the_tokenizers(tmp_path: Path) -> None:
    FAMILIES["roberta"](tmp_path)
    own = load_policy(tmp_path).pad_id
    for other in (0, own - 1, -1):
        say(tmp_path, "config.json", pad_token_id=other)
        with pytest.raises(UserError, match=f"counts positions from pad_token_id = {other} .* padding is {own}"):
            load_policy(tmp_path)
