"""Supervised fine-tuning on conversations: the gradient against a loop, ends of turns, long answers, held-out loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import dlmrl
from support.conversations import LAYOUTS, TALKS, alone, conversation, sft, write_talks
from support.runs import outcome
from support.text_checkpoints import text_checkpoint

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.core.seeding import uniforms
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.pretraining.demonstrations import batch_of
from dlmrl_kit.pretraining.run import PretrainRun, pretrain, step_noise


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, make in LAYOUTS.items():
        make(folder / name)
    return {name: folder / name for name in LAYOUTS}


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    return write_talks(tmp_path / "talks.jsonl")


def started(recipe: Any, folder: Path) -> tuple[PretrainRun, Any]:
    run = PretrainRun(recipe.build(), folder, "tiny", RunObserver())
    return run, run.start()


ENDS = {"llada": "<|eot_id|>", "dream": "<|im_end|>", "sdar": "<|im_end|>"}
HEADS = {"llada": "<|start_header_id|>assistant<|end_header_id|>\n\n", "dream": "<|im_start|>assistant\n"}
HEADS["sdar"] = HEADS["dream"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_answer_of_the_assistant_is_learned_with_the_end_of_its_turn(
    layout: str, checkpoints: dict[str, Path], talks: Path, tmp_path: Path
) -> None:
    run, data = started(sft(layout, checkpoints[layout], talks), tmp_path / "run")
    text = run.policy.tokenizer.decode
    said = [m["content"] for talk in TALKS[:4] for m in talk if m["role"] == "assistant"]
    assert [text(row) for (row,) in data.completions] == [answer + ENDS[layout] for answer in said]
    prompts = [text(row) for row in data.prompts]
    assert all(prompt.endswith(HEADS[layout]) for prompt in prompts)
    assert "Hello" in prompts[1]
    assert "4" not in prompts[1]  # the answer is not shown
    assert "Be brief" in prompts[2]


@pytest.mark.parametrize(
    ("filler", "width"),
    [
        ("learned", "longest"),
        ("masked", "longest"),
        pytest.param("learned", "completion", marks=pytest.mark.thorough),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_of_a_step_is_that_of_a_loop_over_answers(
    layout: str, filler: str, width: str, checkpoints: dict[str, Path], talks: Path, tmp_path: Path
) -> None:
    sets = (f"MaskedDiffusion.filler = '{filler}'", f"MaskedDiffusion.width = '{width}'")
    sets += ("Pretrained.attention = 'eager'",) if layout == "sdar" else ()  # the oracle's mask is added to scores
    sets += ("MaskedDiffusion.min_mask = 0.3", "MaskedDiffusion.batch_size = 7", "MaskedDiffusion.micro_batch_size = 3")
    run, data = started(sft(layout, checkpoints[layout], talks, *sets), tmp_path / "run")
    policy, settings = run.policy.double(), run.settings
    rows = torch.arange(7)
    seed, spread = step_noise(rows, 7, 0, 0)
    prompt, mask, completion, counted = batch_of(data, rows, seed, policy, settings, run.length)
    settings.objective(policy, prompt, mask, completion, seed, spread, counted).backward()
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()

    full = 18 if width == "completion" else max(len(row) for (row,) in data.completions)
    noise, total = uniforms(seed, full, purpose="mask"), torch.zeros((), dtype=torch.float64)
    for row in range(7):
        (own,) = data.completions[row]
        learned = full if filler == "learned" else len(own)
        clean = own + [policy.eos_ids[0]] * (full - len(own))
        level = max(float(spread[row]), 0.3)
        hidden = [float(noise[row, place]) < level for place in range(learned)]
        state = [policy.mask_id if place >= learned or hidden[place] else clean[place] for place in range(full)]
        # Positions that are not learned hold masks in the row's state and the answer's filler in earlier blocks.
        logits = alone(policy, data.prompts[row], clean, state)
        for place in range(learned):
            if hidden[place]:
                loss = -logits[place].log_softmax(-1)[clean[place]]
                total = total + loss / level / learned / 7
    total.backward()
    assert len(found) > 8
    for name, p in policy.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.thorough
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fine_tuning_lowers_the_held_out_loss_and_saves_what_loads(
    layout: str, rank: int, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """One answer to whatever is asked: twelve steps learn much of it."""
    data = write_talks(tmp_path / "same.jsonl", [conversation(f"Say {n}", "aaaa") for n in range(12)])
    sets = ("MaskedDiffusion.steps = 12", "MaskedDiffusion.checkpoint_every = 50")
    result = pretrain(sft(layout, checkpoints[layout], data, *sets, rank=rank), tmp_path / "run")
    assert result.heldout_loss_before is not None
    assert result.heldout_loss is not None
    assert result.heldout_loss < 0.8 * result.heldout_loss_before
    assert result.accuracy is None
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored["heldout_loss"] == {"before": result.heldout_loss_before, "after": result.heldout_loss}
    before, after = load_policy(str(checkpoints[layout])), load_policy(str(result.model))
    assert after.tokenizer.chat_template == before.tokenizer.chat_template
    assert (after.mask_id, after.eos_ids, after.block_size) == (before.mask_id, before.eos_ids, before.block_size)
    again = sft(layout, result.model, data, *sets, rank=rank)
    run, _ = started(again, tmp_path / "again")
    assert run._heldout_loss() == pytest.approx(result.heldout_loss, rel=1e-4)


def test_a_run_that_was_killed_goes_on_and_knows_the_first_held_out_loss(
    checkpoints: dict[str, Path], talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = sft("dream", checkpoints["dream"], talks, rank=2)
    whole = pretrain(recipe, tmp_path / "whole")
    step = PretrainRun._step

    def dies(self: PretrainRun, data: Any, number: int) -> float:
        if number == 2:
            raise KeyboardInterrupt
        return step(self, data, number)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainRun, "_step", dies)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, tmp_path / "run")
    result = pretrain(recipe, tmp_path / "run")
    assert (result.heldout_loss_before, result.heldout_loss) == (whole.heldout_loss_before, whole.heldout_loss)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


class Said(RunObserver):
    def __init__(self) -> None:
        self.text = ""

    def on_message(self, text: str) -> None:
        self.text += text + "\n"


def test_long_answers_are_refused_left_out_or_cut_and_counted(
    checkpoints: dict[str, Path], talks: Path, tmp_path: Path
) -> None:
    def begun(too_long: str) -> tuple[Any, str, Any]:
        sets = ("Sampler.completion_length = 6", f"MaskedDiffusion.too_long = '{too_long}'")
        told = Said()
        run = PretrainRun(sft("llada", checkpoints["llada"], talks, *sets).build(), tmp_path / "r", "tiny", told)
        return run.start(), told.text, run.policy

    with pytest.raises(RecipeError, match=r"talks.jsonl:3, message 2: a demonstration has 10 tokens, more than"):
        begun("refuse")
    data, said, _ = begun("leave_out")
    assert (len(data.completions), data.left_out) == (6, 1)
    assert "1 examples of pretrain have an answer of more than 6 tokens: left out" in said
    assert "1 examples of heldout have an answer of more than 6 tokens: left out" in said
    data, said, policy = begun("cut")
    assert policy.tokenizer.decode(data.completions[3][0]) == "A lett"  # without an end: it goes on
    assert "cut at the right" in said


def test_prompts_that_are_cut_are_counted(checkpoints: dict[str, Path], talks: Path, tmp_path: Path) -> None:
    told = Said()
    recipe = sft("llada", checkpoints["llada"], talks, "Conversations.max_prompt_tokens = 12")
    data = PretrainRun(recipe.build(), tmp_path / "run", "tiny", told).start()
    assert max(map(len, data.prompts)) == 12
    assert "Conversations: 7 of 7 prompts in pretrain are cut from the left" in told.text


def test_without_answers_there_is_no_held_out_loss(checkpoints: dict[str, Path], talks: Path, tmp_path: Path) -> None:
    told = Said()
    held = write_talks(tmp_path / "held.jsonl", [conversation("x", "ends <|eot_id|> here")])
    recipe = sft("llada", checkpoints["llada"], talks, f"Conversations.test_data = '{held}'")
    run = PretrainRun(recipe.build(), tmp_path / "run", "tiny", told)
    run.start()
    assert run._heldout_loss() is None
    assert "no held-out loss: " in told.text
    assert "has an end of text in it" in told.text


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("ends<|eot_id|>", "an end of text in it"),
        ("hidden <|mdm_mask|>", "the model's mask token"),
        ("umlaut ä", "no tokens for 'ä'"),
    ],
)
def test_answers_that_cannot_be_learned_are_refused_with_their_place(
    said: str, message: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    talks = write_talks(tmp_path / "bad.jsonl", [conversation("a", said), conversation("b", "c")])
    with pytest.raises(RecipeError, match=message) as error:
        started(sft("llada", checkpoints["llada"], talks, "Conversations.holdout = 1"), tmp_path / "run")
    assert "bad.jsonl:1, message 2" in str(error.value)


def test_a_template_that_writes_answers_otherwise_is_refused(talks: Path, tmp_path: Path) -> None:
    text_checkpoint(tmp_path / "model")
    about = tmp_path / "model" / "chat_template.jinja"
    about.write_text(about.read_text().replace("message['content'] | trim", "'<' + message['content'] | upper + '>'"))
    with pytest.raises(RecipeError, match="chat template writes an answer otherwise than it lets the model begin one"):
        started(sft("llada", tmp_path / "model", talks), tmp_path / "run")


@pytest.mark.thorough
def test_a_fine_tuned_model_is_sampled_and_trained_further(
    checkpoints: dict[str, Path], talks: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    pretrain(sft("llada", checkpoints["llada"], talks, rank=2), folder)
    (tmp_path / "q.csv").write_text("question,answer\n" + "".join(f"What is {n}?,{n}\n" for n in range(12)))
    sets = [f"Questions.data='{tmp_path}/q.csv'", "Questions.holdout=4", "Questions.tags=False"]
    sets += ["Questions.prompt=@ChatPrompt()", "ChatPrompt.prefix=''"]
    sets += [f"Pretrained.path='{folder}/model'", "Sampler.completion_length=8", "Selector.k=2"]
    sets += ["Trainer.updates=2", "Trainer.prompts_per_update=2", "Trainer.group_size=2", "Trainer.eval_size=2"]
    options = [part for binding in sets for part in ("--set", binding)]
    result = dlmrl("train", "egspo_sa", "--use", "task=Questions", *options, "--out", str(tmp_path / "rl"))
    assert result.exit_code == 0, result.output
    result = dlmrl("sample", str(tmp_path / "rl"), "What is 3?")
    assert result.exit_code == 0, result.output
