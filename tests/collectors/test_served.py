"""Served rollouts: training through an engine is training without it, and bad answers are errors of one line."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from support.collectors import ELSEWHERE
from support.paths import ROOT
from support.runs import metric_rows, new_run, recipe
from typer.testing import CliRunner

from dlmrl_kit.cli.app import app
from dlmrl_kit.collectors.engine import Engine
from dlmrl_kit.collectors.protocol import (
    ALWAYS,
    FIELDS,
    PROTOCOL,
    described,
    difference_of,
    question,
    trajectories,
)
from dlmrl_kit.collectors.served import Served
from dlmrl_kit.collectors.transport import Transport
from dlmrl_kit.core.errors import RecipeError, TrainingError
from dlmrl_kit.core.processes import ALONE
from dlmrl_kit.training import train
from dlmrl_kit.training.collecting import sampling_of
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.serving import engine_server
from dlmrl_kit.training.trajectory_checks import check_trajectory

FAST = ["Served.retries = 2", "Served.retry_seconds = 0.0", "Served.timeout_seconds = 60.0"]
ORDERS = [["sampler=EntropyOrder"], []]


@contextlib.contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """Runs a server in a thread; gives its address."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def engine(*sets: str, uses: list[str] | None = None, folder: Path | None = None) -> Iterator[str]:
    with running(engine_server(recipe(sets=sets, uses=uses or []), "127.0.0.1", 0, folder)) as url:
        yield url


def served(*urls: str) -> tuple[list[str], list[str]]:
    return [f"Served.urls = {list(urls)!r}", *FAST], ["collector=Served"]


def rows(folder: Path) -> list[str]:
    return [row for row in metric_rows(folder) if row.split(",")[1] not in ELSEWHERE]


@pytest.mark.parametrize("uses", ORDERS, ids=["entropy order", "egspo_sa"])
def test_training_through_an_engine_is_training_without_it(uses: list[str], tmp_path: Path) -> None:
    small = ["Trainer.updates = 2", "Trainer.eval_every = 0"]
    here = train(recipe(sets=small, uses=uses), tmp_path / "here")
    with engine(uses=uses) as url:
        sets, collector = served(url)
        there = train(recipe(sets=[*small, *sets], uses=[*uses, *collector]), tmp_path / "there")
    assert rows(tmp_path / "here") == rows(tmp_path / "there")
    assert here.after.to_json() == there.after.to_json()
    files = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("here", "there")]
    assert files[0] == files[1]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["grpo_steps", "dcolt", "agrpo", "d1"])
def test_other_recipes(name: str, tmp_path: Path) -> None:
    small = ["Trainer.updates = 2", "Trainer.eval_every = 0"]
    train(recipe(name, sets=small), tmp_path / "here")
    with running(engine_server(recipe(name, sets=small), "127.0.0.1", 0)) as url:
        sets, collector = served(url)
        train(recipe(name, sets=[*small, *sets], uses=collector), tmp_path / "there")
    assert rows(tmp_path / "here") == rows(tmp_path / "there")


@pytest.mark.parametrize("by_file", [False, True], ids=["http", "folder"])
def test_weights_of_each_update_and_of_several_engines(by_file: bool, tmp_path: Path) -> None:
    """The guard compares every rollout with the present weights: stale ones would end the run."""
    folder = tmp_path / "weights"
    with engine(folder=folder) as first, engine(folder=folder) as second:
        sets, uses = served(first, second)
        more = [f"Served.weights_folder = {str(folder)!r}"] if by_file else []
        run = new_run(tmp_path / "run", sets=[*sets, *more, "Trainer.guard_actions = 1000"], uses=uses)
        with run.update.opened():
            for number in range(3):
                metrics = run.update(number)
            assert len(list(folder.glob("*"))) == (2 if by_file else 0)
        assert metrics["recorded_difference_max"] < 1e-5
    assert not list(folder.glob("*"))


def test_an_engine_that_was_restarted_gets_the_weights_again(tmp_path: Path) -> None:
    run = new_run(tmp_path, sets=["Sampler.temperature = 1.0"])
    prompts, trained = run.update.prompts(0), dict(run.policy.trainable())
    with engine("Sampler.temperature = 1.0") as url:
        collector = Served([url], retries=1, retry_seconds=0.0)
        collector.open(sampling_of(run.algorithm, run.update.plan), run.policy, ALONE)
        once = collector.collect(prompts, trained, 0)
        other = Served([url])
        other.open(sampling_of(run.algorithm, run.update.plan), run.policy, ALONE)
        other.collect(prompts, {name: 0.9 * value for name, value in trained.items()}, 0)
        again = collector.collect(prompts, trained, 0)
    assert (once == again).all()


@contextlib.contextmanager
def between(url: str, change: Callable[[str, int, dict[str, Any]], object]) -> Iterator[str]:
    """Stands between a run and an engine and changes answers: to other objects, raw bytes, a status, or None: nothing.

    ``change`` gets path, number of the request to that path, and answer; half an answer is announced as the whole.
    """
    counts: dict[str, int] = {}

    class Between(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
            path = self.path.split("?")[0]
            counts[path] = counts.get(path, 0) + 1
            content = self.headers.get("Content-Type", "application/json")
            answer = Transport(url, 60.0, 0, 0.0).ask(self.path, body, content)
            found = change(path, counts[path], answer)
            if found is None:
                return
            status = found if isinstance(found, int) else 200
            text = found if isinstance(found, bytes) else json.dumps(found if isinstance(found, dict) else {}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text) + (10 if found == HALF else 0)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Between)) as own:
        yield own


HALF = b'{"protocol": 1, "weights"'


def slow(answer: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.6)
    return answer


def other_temperature(answer: dict[str, Any]) -> dict[str, Any]:
    answer["sampling"]["sampler"]["temperature"] = 0.33
    return answer


ANSWERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "status": (lambda answer: 503, "does not answer, 3 times: status 503"),
    "refused": (lambda answer: 404, "refuses /v1/rollouts with status 404"),
    "conflict": (lambda answer: 409, "refuses to sample"),
    "half": (lambda answer: HALF, "does not answer, 3 times: IncompleteRead"),
    "nothing": (lambda answer: None, "does not answer, 3 times: Remote end closed connection without response"),
    "no JSON": (lambda answer: b"<html>", "is not valid: it is no JSON"),
    "a list": (lambda answer: b"[]", "is not valid: it is no JSON object but []"),
    "NaN": (lambda answer: b'{"protocol": NaN}', "is not valid: it holds NaN"),
    "another protocol": (lambda answer: {**answer, "protocol": 2}, "is not valid: its protocol is 2, not 1"),
    "other weights": (lambda answer: {**answer, "weights": "x/7"}, "is not valid: it is of the weights 'x/7', not "),
    "settings": (other_temperature, "is not valid: sampling.sampler.temperature is 0.33, not 0.9"),
    "late": (slow, "does not answer, 3 times: no answer within 0.3 seconds"),
}


SOME = ("half", "NaN", "other weights", "settings", "late")
"""Those that the default run tries."""


@pytest.mark.parametrize(
    "fault", [fault if fault in SOME else pytest.param(fault, marks=pytest.mark.thorough) for fault in ANSWERS]
)
def test_what_an_engine_answers(fault: str, tmp_path: Path) -> None:
    change, says = ANSWERS[fault]
    run = new_run(tmp_path, sets=["Sampler.temperature = 0.9"])
    timeout = 0.3 if fault == "late" else 60.0
    with (
        engine("Sampler.temperature = 0.9") as url,
        between(url, lambda path, number, answer: change(answer) if path == "/v1/rollouts" else answer) as bad,
    ):
        collector = Served([bad], timeout_seconds=timeout, retries=2, retry_seconds=0.0)
        collector.open(sampling_of(run.algorithm, run.update.plan), run.policy, ALONE)
        with pytest.raises(TrainingError) as caught:
            collector.collect(run.update.prompts(0), dict(run.policy.trainable()), 0)
        collector.close()
    assert says in str(caught.value)
    assert bad in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [503, pytest.param(HALF, marks=pytest.mark.thorough), 409], ids=str)
def test_what_passes_is_asked_again(bad: object, tmp_path: Path) -> None:
    run = new_run(tmp_path)

    def change(path: str, number: int, answer: dict[str, Any]) -> object:
        return bad if number == 2 and path == "/v1/rollouts" else answer

    with engine() as url, between(url, change) as own:
        collector = Served([own], retries=1, retry_seconds=0.0)
        collector.open(sampling_of(run.algorithm, run.update.plan), run.policy, ALONE)
        found = [collector.collect(run.update.prompts(0), dict(run.policy.trainable()), 0) for _ in range(3)]
    assert (found[0] == found[2]).all()


def test_other_settings_are_found_before_anything_is_sampled(tmp_path: Path) -> None:
    run = new_run(tmp_path, sets=["Sampler.temperature = 0.9"])
    with (
        engine("Sampler.temperature = 0.5") as url,
        pytest.raises(RecipeError, match=r"sampler.temperature is 0.5, not 0.9"),
    ):
        Served([url]).open(sampling_of(run.algorithm, run.update.plan), run.policy, ALONE)


def test_no_engine(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with pytest.raises(TrainingError, match=r"at http://127.0.0.1:9 does not answer, 2 times: .*Connection refused"):
        Served(["http://127.0.0.1:9"], retries=1, retry_seconds=0.0).open(
            sampling_of(run.algorithm, run.update.plan), run.policy, ALONE
        )


@pytest.mark.parametrize("name", ["sampler=EntropyBoundRenoising", "vrpo"])
def test_samplers_that_the_protocol_has_no_fields_for(name: str, tmp_path: Path) -> None:
    kind = {"uses": [name]} if "=" in name else {"name": name}
    run = new_run(tmp_path, **kind)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="Served is for samplers that fill masks, each sample by itself"):
        Served().open(sampling_of(run.algorithm, run.update.plan), run.policy, ALONE)


@pytest.mark.parametrize(
    "given",
    [{"urls": "http://here"}, {"urls": []}, {"urls": ["file:///etc"]}, {"timeout_seconds": 0}, {"retries": -1}],
)
def test_settings_out_of_range(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Served.{next(iter(given))} must be"):
        Served(**given)


def removed(name: str) -> Callable[[dict[str, Any]], None]:
    def change(answer: dict[str, Any]) -> None:
        del answer["completions"][1][name]

    return change


def replaced(name: str, value: object, index: int | None = None) -> Callable[[dict[str, Any]], None]:
    def change(answer: dict[str, Any]) -> None:
        entry = answer["completions"][1]
        if index is None:
            entry[name] = value
        else:
            entry[name][index] = value

    return change


def fewer(answer: dict[str, Any]) -> None:
    answer["completions"].pop()


def swapped(answer: dict[str, Any]) -> None:
    answer["completions"].reverse()


CONTENTS: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (fewer, "it has 5 completions for 6 prompts"),
    (swapped, r"completions\[0\].seed is .*in the order of prompts"),
    (lambda answer: answer.update(completions=None), "it has completions = None for 6 prompts"),
    (lambda answer: answer["completions"].insert(1, 3) or answer["completions"].pop(), r"completions\[1\] is 3"),
    *((removed(name), rf"completions\[1\] has no {name}") for name in ("tokens", "commit_step", "log_prob", "entropy")),
    *((removed(name), rf"completions\[1\] has no {name}") for name in ("token_log_prob", "order_log_prob")),
    (removed("greedy_ids"), r"completions\[1\] has no greedy_ids"),
    (replaced("tokens", [1, 2]), r"completions\[1\].tokens has 2 entries, not a list of 16"),
    (replaced("tokens", 1.5, 3), r"completions\[1\].tokens\[3\] is 1.5, not a whole number"),
    (replaced("tokens", True, 3), r"completions\[1\].tokens\[3\] is True, not a whole number"),
    (replaced("tokens", 2**40, 3), r"completions\[1\].tokens\[3\] is 1099511627776, not a whole number"),
    (replaced("commit_step", 99, 0), r"completions\[1\].commit_step\[0\] is 99, not null or a step from 0 to 3"),
    (replaced("log_prob", "0.1", 0), r"completions\[1\].log_prob\[0\] is '0.1', not a number"),
    (replaced("log_prob", [0.0] * 9), r"completions\[1\].log_prob has 9 entries, not a list of"),
    (replaced("log_prob", -50.0, 1), r"completions\[1\].log_prob\[1\] is -50, but its tokens have .* and its order"),
    (replaced("entropy", float("nan"), 0), r"completions\[1\].entropy\[0\] is nan, not a number"),
    (replaced("greedy_ids", [3], 0), r"completions\[1\].greedy_ids\[0\] has 1 entries, not a list of 16"),
]


@pytest.mark.parametrize(("change", "says"), CONTENTS, ids=[says[:40] for _, says in CONTENTS])
def test_contents(change: Callable[[dict[str, Any]], None], says: str) -> None:
    run, once = answered()
    answer = copy.deepcopy(once)
    sampling, prompts = sampling_of(run.algorithm, run.update.plan), run.update.prompts(0)
    assert len(trajectories(copy.deepcopy(answer), prompts, sampling, run.policy)) == 6
    change(answer)
    with pytest.raises(TrainingError, match=says):
        trajectories(answer, prompts, sampling, run.policy)


@functools.cache
def answered() -> tuple[Run, dict[str, Any]]:
    """A run, and what the engine of the kit answers for its first rollout."""
    run = new_run(Path("not written"))
    sampling = sampling_of(run.algorithm, run.update.plan)
    source = Engine(sampling, torch.device("cpu"))
    source.load("a/0", {name: value.detach() for name, value in run.policy.trainable()})
    keys = [key for key in (*ALWAYS, *sampling.keys) if key in FIELDS]
    asked = question(run.update.prompts(0), "a/0", described(sampling, run.policy), keys)
    return run, json.loads(json.dumps(source.sample(asked)))


REQUESTS: list[tuple[str, bytes, str, str]] = [
    ("/v1/none", b"{}", "application/json", "its protocol is None, not 1"),
    ("/v1/none", b'{"protocol": 1}', "application/json", "status 404: there is no /v1/none"),
    ("/v1/rollouts", b"{}", "text/plain", "Content-Type must be application/json"),
    ("/v1/rollouts", b'{"protocol": 1}', "application/json", "prompts is no list, or empty"),
    ("/v1/rollouts", b'{"protocol": 1, "record": ["x"]}', "application/json", "'x' cannot be recorded"),
    ("/v1/rollouts", b'{"protocol": 1, "prompts": [{"tokens": [1]}]}', "application/json", "lacks tokens or a seed"),
    ("/v1/rollouts", b'{"protocol": 1, "prompts": [{"tokens": [9999], "seed": "1"}]}', "application/json", "no tokens"),
    ("/v1/weights?name=x", b"junk", "application/octet-stream", "the weights are no safetensors"),
    (
        "/v1/weights",
        b'{"protocol": 1, "path": "/etc/passwd"}',
        "application/json",
        "/etc/passwd is no .safetensors file",
    ),
]


def test_requests_that_an_engine_refuses() -> None:
    with engine() as url:
        transport = Transport(url, 60.0, 0, 0.0)
        for path, body, content, says in REQUESTS:
            with pytest.raises(TrainingError, match=says):
                transport.ask(path, body, content)
        with pytest.raises(TrainingError, match="it has the weights None"):
            transport.ask("/v1/rollouts", b'{"protocol": 1, "weights": "a", "prompts": [{"tokens": [5], "seed": "1"}]}')


def test_the_example_of_the_page_is_what_is_sent_and_answered(tmp_path: Path) -> None:
    """The fields of the page's JSON are those of the kit, and its answer can be read."""
    page = (ROOT / "docs" / "served-rollouts.md").read_text()
    request, answer = (json.loads(text) for text in re.findall(r"^```json\n(.*?)^```$", page, re.M | re.S))
    assert request["protocol"] == answer["protocol"] == PROTOCOL
    uses = ["sampler=EntropyOrder", "selector=AllSteps", "advantage=LeaveOneOut", "likelihood=StepLogProb"]
    sets = ["Sampler.completion_length = 4", "Sampler.tokens_per_step = 2", "Sampler.temperature = 0.9"]
    run = new_run(tmp_path, uses=uses, sets=[*sets, "Sampler.block_length = 4", "Trainer.prompts_per_update = 1"])
    sampling = sampling_of(run.algorithm, run.update.plan)
    settings = described(sampling, run.policy)
    assert difference_of(settings, request["sampling"]) == difference_of(settings, answer["sampling"]) == ""
    prompts = run.update.prompts(0)[:1]
    prompts["seed"][0] = int(request["prompts"][0]["seed"])
    made = question(prompts, "3f2a91c0d4e5/12", settings, ALWAYS)
    assert {**made, "prompts": None} == {**request, "prompts": None}
    assert made["prompts"][0].keys() == request["prompts"][0].keys()
    found = trajectories(answer, prompts, sampling, run.policy)
    check_trajectory(found, sampling.sampler, run.policy)


def test_the_command_serves_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: ThreadingHTTPServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", interrupted)
    result = CliRunner().invoke(app, ["serve", "egspo_sa", "--port", "0"])
    assert result.exit_code == 0
    assert re.search(r"egspo_sa: serving at http://127.0.0.1:\d+, until Ctrl-C", result.output)
    taken = CliRunner().invoke(app, ["serve", "egspo_sa", "--host", "256.0.0.1"])
    assert taken.exit_code == 2
    assert "error: cannot serve at 256.0.0.1:8765" in taken.output
