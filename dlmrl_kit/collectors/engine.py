"""An engine of the kit's own sampler: a small HTTP server of the protocol of served rollouts, for one machine or tests.

It samples with the recipe that it was started with, whatever a request says, and answers with its settings.
"""

from __future__ import annotations

import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.collectors.base import Sampling
from dlmrl_kit.collectors.protocol import ALWAYS, FIELDS, PROTOCOL, completions, described, parsed
from dlmrl_kit.collectors.replica import Replica
from dlmrl_kit.collectors.transport import CONFLICT
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.keys import GROUP, SEED, STEP_TOKEN_LOG_PROB, TOKEN_LOG_PROB, Key

KEYS_BY_FIELD = {name: key for key, name in FIELDS.items()}


class OtherWeightsError(UserError):
    """A request is for other weights than those that are loaded."""


class Engine:
    """Samples with weights that it is sent.

    Args:
        sampling: what with.
        device: where.
        weights_folder: the folder whose files it may be told to load; None: it loads none.

    Raises:
        UserError: the policy cannot be loaded.
    """

    def __init__(self, sampling: Sampling, device: torch.device, weights_folder: Path | None = None) -> None:
        keys = dict.fromkeys([*sampling.keys, TOKEN_LOG_PROB, STEP_TOKEN_LOG_PROB])
        given = {**vars(sampling), "keys": tuple(keys)}
        self._replica = Replica(Sampling(**given), device)
        sampler = self._replica.sampler
        sampler.attach(self._replica.policy)  # makes the modules that it trains, whose weights will be sent
        sampler.to(device)
        self._recorded = (*ALWAYS, *sampler.recorded_keys(self._replica.sampling.keys))
        self._described = described(sampling, self._replica.policy)
        self._folder = weights_folder
        self._lock = threading.Lock()
        self._name: str | None = None
        self._weights: dict[str, Tensor] = {}
        self._times = 0

    def info(self) -> dict[str, Any]:
        """Returns the settings, and the name of the weights that are loaded."""
        return {"engine": "dlmrl_kit", "weights": self._name, "sampling": self._described}

    def load(self, name: str, weights: dict[str, Tensor]) -> dict[str, Any]:
        """Takes weights, by the names of ``Collector.collect``, for the requests that follow."""
        with self._lock:
            self._name, self._weights, self._times = name, weights, self._times + 1
        return {"weights": name}

    def load_file(self, name: str, path: str) -> dict[str, Any]:
        """Takes weights of a file in the weights folder."""
        file = Path(path).resolve()
        if self._folder is None or file.parent != self._folder.resolve() or file.suffix != ".safetensors":
            raise UserError(f"{path} is no .safetensors file of the folder that this engine was given for weights")
        try:
            return self.load(name, load_file(file))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error

    def sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers a request for completions.

        Raises:
            OtherWeightsError: it is for other weights than those loaded.
            UserError: it is not of the form that it must have.
        """
        asked: list[Key] = []
        for name in request.get("record", []):
            if KEYS_BY_FIELD.get(name) not in self._recorded:
                raise UserError(f"{name!r} cannot be recorded: this engine serves another recipe")
            asked.append(KEYS_BY_FIELD[name])
        prompts = self._prompts(request.get("prompts"))
        with self._lock:
            if self._name is None or request.get("weights") != self._name:
                raise OtherWeightsError(f"it has the weights {self._name!r}, not {request.get('weights')!r}")
            name = self._name
            found = self._replica.sample(prompts, self._weights, self._times)
            self._weights = {}  # the replica has taken them
        keys = dict.fromkeys([*ALWAYS, *asked])
        return {"weights": name, "sampling": self._described, "completions": completions(found.cpu(), keys)}

    def _prompts(self, given: object) -> TensorDict:
        if not isinstance(given, list) or not given:
            raise UserError("prompts is no list, or empty")
        policy, rows, seeds = self._replica.policy, [], []
        for index, prompt in enumerate(given):
            try:
                tokens, seed = [int(token) for token in prompt["tokens"]], int(prompt["seed"])
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"prompts[{index}] lacks tokens or a seed") from error
            if not tokens or not all(0 <= token < policy.vocab_size for token in tokens) or abs(seed) >= 2**63:
                raise UserError(f"prompts[{index}] holds no tokens of the vocabulary, or a seed of more than 63 bits")
            rows.append(tokens)
            seeds.append(seed)
        numbers = {SEED: torch.tensor(seeds), GROUP: torch.arange(len(rows))}
        return TensorDict({**policy.padded(rows), **numbers}, [len(rows)])


class _Handler(BaseHTTPRequestHandler):
    """Answers requests; subclasses say for which engine."""

    engine: ClassVar[Engine]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(lambda: self.engine.info() if self.path == "/v1/info" else None)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        body = self.rfile.read(int(length)) if length.isdecimal() else b""
        self._answer(lambda: self._posted(body))

    def _posted(self, body: bytes) -> dict[str, Any] | None:
        url, content = urllib.parse.urlsplit(self.path), self.headers.get("Content-Type")
        if url.path == "/v1/weights" and content == "application/octet-stream":
            try:
                weights = load(body)
            except SafetensorError as error:
                raise UserError(f"the weights are no safetensors: {error}") from error
            return self.engine.load(urllib.parse.parse_qs(url.query).get("name", [""])[0], weights)
        if content != "application/json":  # a web page may not send this without being asked
            raise UserError("Content-Type must be application/json, or application/octet-stream for weights")
        request = parsed(body)
        if url.path == "/v1/weights":
            return self.engine.load_file(str(request.get("weights")), str(request.get("path")))
        return self.engine.sample(request) if url.path == "/v1/rollouts" else None

    def _answer(self, make: Any) -> None:
        try:
            found = make()
            status, answer = (404, {"error": f"there is no {self.path}"}) if found is None else (200, found)
        except OtherWeightsError as error:
            status, answer = CONFLICT, {"error": str(error)}
        except UserError as error:
            status, answer = 400, {"error": str(error)}
        except Exception as error:
            status, answer = 500, {"error": f"{type(error).__name__}: {error}"}
        text = json.dumps({"protocol": PROTOCOL, **answer}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""


def server_of(engine: Engine, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """Returns a server of an engine, which ``serve_forever`` runs; port 0 is any that is free.

    Raises:
        UserError: the address cannot be used.
    """
    handler = type("EngineHandler", (_Handler,), {"engine": engine})
    try:
        server = ThreadingHTTPServer((host, port), handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot serve at {host}:{port}: {error}") from error
    server.daemon_threads = True
    return server
