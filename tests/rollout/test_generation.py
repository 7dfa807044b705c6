"""From prompts to texts: batches, seeds and steps change nothing, files are read, and a chat remembers."""

from __future__ import annotations

import io
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support import runs
from support.block_checkpoints import sdar_checkpoint
from support.rollouts import SAMPLERS, make
from typer.testing import CliRunner

from dlmrl_kit.cli.app import app
from dlmrl_kit.core.errors import FileError, RecipeError
from dlmrl_kit.core.generation import prompt_rows
from dlmrl_kit.core.keys import COMPLETION_IDS
from dlmrl_kit.core.policy import completion_logits
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.report.chat import Chat
from dlmrl_kit.rollout.prompt_file import read_prompts
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.watching import watch

PROMPTS = ["12:", "1", "4321_:", "2_"]


@pytest.fixture(scope="module")
def policy() -> Any:
    return load_policy(runs.model_path())


def test_batches_change_no_text(policy: Any) -> None:
    sampler = LowConfidence(8, 2, temperature=1.0)
    whole = policy.generate(PROMPTS, sampler, samples=3, seed=4)
    assert [len(texts) for texts in whole] == [3] * 4
    assert len({text for texts in whole for text in texts}) > 4
    assert policy.generate(PROMPTS, sampler, samples=3, seed=4, batch_size=2) == whole
    assert policy.generate(PROMPTS, sampler, samples=3, seed=5) != whole
    assert policy.generate(PROMPTS[0], sampler, seed=4) == policy.generate(PROMPTS[:1], sampler, seed=4)
    assert policy.generate([], sampler) == []


@torch.no_grad()
def test_a_text_is_what_greedy_decoding_by_hand_gives(policy: Any) -> None:
    ids = policy.encode(["12:"])
    state = torch.full((1, 6), policy.mask_id)
    for _ in range(6):
        logits = completion_logits(policy, ids["prompt_ids"], ids["prompt_mask"], state, state == policy.mask_id)
        logits[:, list(policy.forbidden_ids)] = -torch.inf
        best, token = logits.softmax(-1).max(-1)
        place = (state == policy.mask_id).nonzero()[:, 1][best.argmax()]
        state[0, place] = token[best.argmax()]
    sampler = LowConfidence(6, 1, temperature=0.0, stop_at_eos=False)
    assert policy.generate("12:", sampler) == [policy.completion_texts(state)]


@pytest.mark.parametrize("cls", SAMPLERS)
def test_watched_states_lead_to_the_same_end(policy: Any, cls: type[Sampler]) -> None:
    sampler = make(cls, 8, 2, block_length=4)
    rows = prompt_rows(policy, PROMPTS, 8, seed=1)
    states = list(watch(sampler, rows, policy))
    assert states[-1].equal(sampler.decode(rows, policy=policy)[COMPLETION_IDS])
    for before, after in itertools.pairwise(states[:-1]):
        kept = before != policy.mask_id
        assert after[kept].equal(before[kept])
        assert (after != policy.mask_id).sum() > kept.sum()


def test_prompt_files(tmp_path: Path) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("one\n\ntwo {\n")
    assert read_prompts(plain) == ["one", "two {"]
    talk = [{"role": "user", "content": "hello"}]
    lines.write_text("\n".join(map(json.dumps, ["one", {"prompt": "two", "x": 1}, {"prompt": talk}])))
    assert read_prompts(lines) == ["one", "two", talk]


@pytest.mark.parametrize(
    ("name", "text"), [("a.txt", "one\u2028two\r\nthree\n"), ("a.jsonl", '"one\u2028two"\n"three"\n')]
)
def test_lines_of_prompts_end_where_lines_of_text_end(name: str, text: str, tmp_path: Path) -> None:
    """A byte order mark is no character of the first prompt, and a line separator in a text is no end of a line."""
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_prompts(tmp_path / name) == ["one\u2028two", "three"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("3", "expected a text"),
        ("{}", "expected a text"),
        ('{"prompt": []}', "expected a text"),
        ('{"prompt": [{"role": "user"}]}', "expected a text"),
        ('{"prompt": [{"role": "user", "content": 3}]}', "expected a text"),
        ('{"prompt": [{"role": "assistant", "content": "so"}]}', "ends with the assistant"),
    ],
)
def test_lines_that_hold_no_prompt(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'"good"\n{line}\n')
    with pytest.raises(FileError, match=f"line 2: .*{said}"):
        read_prompts(tmp_path / "a.jsonl")


def test_the_command(tmp_path: Path) -> None:
    how = ["sample", runs.model_path(), "--recipe", "egspo", "--length", "6", "--steps", "3", "--temperature", "0"]
    result = CliRunner().invoke(app, [*how, "12:", "1"])
    assert result.exit_code == 0, result.output
    expected = load_policy(runs.model_path()).generate(["12:", "1"], LowConfidence(6, 2, temperature=0.0))
    assert result.output.splitlines() == [text for (text,) in expected]
    out = tmp_path / "out.jsonl"
    assert CliRunner().invoke(app, [*how, "--file", "-", "--out", str(out)], input="12:\n1\n").exit_code == 0
    assert [json.loads(line)["completions"] for line in out.read_text().splitlines()] == expected
    for wrong, said in (
        ([*how, "12:", "--out", str(out)], "exists already"),
        (how, "no prompt"),
        ([*how, "é"], "no tokens for"),
        ([*how, "--length", "5", "1"], "that it divides"),
        ([*how, "--file", str(tmp_path / "none")], "cannot read"),
    ):
        result = CliRunner().invoke(app, wrong)
        assert result.exit_code == 2
        assert said in result.output


class Heard:
    """A decoder's prompts, as texts."""

    def __init__(self, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        decode = LowConfidence.decode

        def heard(sampler: Any, prompt: Any, *, policy: Any) -> Any:
            ids = prompt["prompt_ids"][0][prompt["prompt_mask"][0]]
            self.texts.append(policy.tokenizer.decode(ids))
            return decode(sampler, prompt, policy=policy)

        monkeypatch.setattr(LowConfidence, "decode", heard)


def test_a_chat_remembers_and_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdar_checkpoint(tmp_path)
    policy = load_policy(tmp_path)
    heard, out = Heard(policy, monkeypatch), io.StringIO()
    chat = Chat(Console(file=out), policy, LowConfidence(8, 2, block_length=4, temperature=0.0), system="be brief")
    first = chat.say("hello")
    chat.say("again")
    assert "hello" in heard.texts[1]
    assert first in heard.texts[1]
    assert "be brief" in heard.texts[1]
    chat.begin()
    assert chat.say("hello") == first
    assert heard.texts[2] == heard.texts[0]
    assert first in out.getvalue()
    with pytest.raises(RecipeError):
        chat.say("\ud800")
    assert [message["content"] for message in chat.messages] == ["be brief", "hello", first]


def test_without_a_template_each_message_stands_alone(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(policy, monkeypatch)
    chat = Chat(Console(file=io.StringIO()), policy, LowConfidence(8, 2))
    for text in ("12:", "1"):
        chat.say(text)
    assert heard.texts == ["12:", "1"]


def test_answers_appear_on_a_terminal(policy: Any) -> None:
    out = io.StringIO()
    chat = Chat(Console(file=out, force_terminal=True, width=80), policy, LowConfidence(8, 2, temperature=0.0))
    answer = chat.say("12:")
    assert "·" in out.getvalue()
    assert answer in out.getvalue()


def test_the_chat_command(tmp_path: Path) -> None:
    how = ["chat", runs.model_path(), "--recipe", "egspo", "--length", "6"]
    result = CliRunner().invoke(app, how, input="12:\n/new\né\n1\n/quit\n")
    assert result.exit_code == 0, result.output
    assert "no tokens for" in result.output
    assert CliRunner().invoke(app, how, input="12:\n").exit_code == 0  # the end of the input ends it


def test_prompts_in_a_device_or_a_pipe_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(FileError, match=f"cannot read {path}: it is a device, pipe or socket"):
            read_prompts(path)
    (tmp_path / "lines.txt").write_bytes(b"one\r\ntwo\rthree\n")
    assert read_prompts(tmp_path / "lines.txt") == ["one", "two", "three"]
