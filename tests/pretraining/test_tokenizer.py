"""A subword tokenizer from nothing, and a model of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.command_line import dlmrl

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.saving import save_transformers
from dlmrl_kit.policies.subwords import SMALLEST, SubwordLlama, train_tokenizer
from dlmrl_kit.pretraining.run import PretrainRun
from dlmrl_kit.recipe.load import load_recipe

RECIPE = """
Pretraining.task = @Questions()
Pretraining.demonstrator = @Answers()
Pretraining.policy = @SubwordLlama()
Pretraining.pretrainer = @MaskedDiffusion()
Pretraining.sampler = @LowConfidence()
Questions.data = 'data.jsonl'
Questions.holdout = 4
Questions.num_pretrain = 12
Questions.tags = False
Questions.prompt = @PlainPrompt()
PlainPrompt.prefix = ''
SubwordLlama.tokenizer_path = 'words'
SubwordLlama.hidden_size = 16
Sampler.completion_length = 4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"question": f"How many legs have {n} horses?", "answer": f"{4 * n} legs"} for n in range(20)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.gin").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_tokenizer_is_trained_on_prompts_and_answers_and_a_model_made_of_it(folder: Path) -> None:
    result = dlmrl("tokenizer", "words.gin", "--out", "words", "--vocab-size", "275")
    assert result.exit_code == 0, result.output
    assert "a tokenizer of 275 tokens: words" in result.stdout
    run = PretrainRun(load_recipe("words.gin").build_pretraining(), folder / "run", "words", RunObserver())
    data = run.start()
    prompt, answer = (
        run.policy.tokenizer.convert_ids_to_tokens(ids) for ids in (data.prompts[0], *data.completions[0])
    )
    assert answer[:2] == ["1", "6"]
    assert len(prompt) < 0.8 * len("How many legs have 4 horses?")
    save_transformers(run.policy, folder / "model")
    again = load_policy(str(folder / "model"))
    text = "Ünseen — \t 文 12\n legs"
    assert again.tokenizer.decode(*again.text_tokens([text])) == text
    assert again.text_tokens([text]) == run.policy.text_tokens([text])
    assert (again.mask_id, again.eos_id) == (run.policy.mask_id, run.policy.eos_id)
    ids = torch.tensor([data.prompts[0]])
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    torch.testing.assert_close(again(ids, everywhere, everywhere), run.policy(ids, everywhere, everywhere))


def test_the_same_texts_give_the_same_tokenizer() -> None:
    first, second = (train_tokenizer(["one two two", "two three"], 270) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert "two" in first.get_vocab()
    assert len(train_tokenizer([], 300)) == SMALLEST
    with pytest.raises(UserError, match="a vocabulary of 100 tokens is too small: bytes and special tokens are 259"):
        train_tokenizer([], 100)


def test_what_is_no_tokenizer_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*tokenizer.json; make one with: dlmrl tokenizer RECIPE --out"):
        SubwordLlama(str(folder)).load()
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        SubwordLlama(str(folder)).load()
    tokenizer = train_tokenizer(["a"], 260)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder / "maskless")
    with pytest.raises(UserError, match=r"has no mask_token"):
        SubwordLlama(str(folder / "maskless")).load()
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    result = dlmrl("tokenizer", "words.gin", "--out", "full")
    assert (result.exit_code, "full is not empty; choose another --out" in result.stderr) == (2, True)
    result = dlmrl("tokenizer", "words.gin", "--out", "new", "--vocab-size", "9")
    assert (result.exit_code, "too small" in result.stderr) == (2, True)
    assert not (folder / "new").exists()
