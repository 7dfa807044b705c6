"""Rollouts of engines that are asked over HTTP, such as SGLang or vLLM behind a small server (docs/served-rollouts.md).

An engine gets the weights of each rollout by name, samples, and returns tokens, commit steps and log-probabilities with
the settings that it used. Whatever is missing, malformed, or of other settings or weights ends the run with one line.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors.torch import save
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.collectors.base import Collector, Sampling, Weights
from dlmrl_kit.collectors.protocol import (
    ALWAYS,
    DERIVED,
    FIELDS,
    PROTOCOL,
    described,
    difference_of,
    question,
    trajectories,
)
from dlmrl_kit.collectors.transport import ConflictError, Transport
from dlmrl_kit.core.errors import RecipeError, TrainingError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import cut, length_order, restored
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.mask import MaskSampler

KEPT = 2
"""How many versions of the weights stay in the folder, for rollouts that are under way."""


@register("collector")
class Served(Collector):
    """Asks engines for rollouts over HTTP.

    A rollout is cut into pieces of ``Trainer.rollout_batch_size``, or into one for each engine.

    Args:
        urls: of the engines, without a path; ``dlmrl serve`` starts one of the kit's own sampler.
        weights_folder: a folder that engines see under the same path: weights are written there as safetensors, and
            engines are told to load them; None: weights are sent over HTTP.
        timeout_seconds: that a request may take.
        retries: how often a request is sent again that failed, got status 429 or 5xx or half an answer.
        retry_seconds: the time before the first of them; each waits twice as long as the one before.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        urls: Sequence[str] = ("http://127.0.0.1:8765",),
        weights_folder: str | None = None,
        timeout_seconds: float = 600.0,
        retries: int = 3,
        retry_seconds: float = 1.0,
    ) -> None:
        several = not isinstance(urls, str) and len(urls) > 0
        web = several and all(isinstance(url, str) and url.startswith(("http://", "https://")) for url in urls)
        check(web, self, "urls", urls, 'a list of addresses such as ["http://127.0.0.1:8765"]')
        check(0 < timeout_seconds < float("inf"), self, "timeout_seconds", timeout_seconds, "positive and finite")
        check(retries >= 0, self, "retries", retries, "at least 0")
        check(0 <= retry_seconds < float("inf"), self, "retry_seconds", retry_seconds, "at least 0 and finite")
        self.urls = list(urls)
        self.weights_folder = weights_folder
        self.timeout_seconds = timeout_seconds
        self.retries = retries
        self.retry_seconds = retry_seconds
        self._open: _Open | None = None

    def open(self, sampling: Sampling, policy: Policy, processes: Processes) -> None:
        """Asks every engine for its settings.

        Raises:
            RecipeError: the sampler's trajectories cannot be sent, or an engine has other settings.
            TrainingError: an engine does not answer.
        """
        _check_sampler(sampling)
        run = processes.of_first(lambda: uuid.uuid4().hex[:12])
        engines = [Transport(url, self.timeout_seconds, self.retries, self.retry_seconds) for url in self.urls]
        settings = described(sampling, policy)
        for engine in engines:
            found = engine.ask("/v1/info")
            if odd := difference_of(settings, found.get("sampling")):
                raise RecipeError(f"the engine at {engine.url} does not sample as the recipe says: {odd}")
        folder = None if self.weights_folder is None else Path(self.weights_folder)
        self._open = _Open(sampling, policy, run, settings, engines, folder)

    def collect(self, prompts: TensorDictBase, weights: Weights, version: int) -> TensorDictBase:
        """Samples at the engines, at all of them at once.

        Raises:
            RuntimeError: it is not open.
            TrainingError: an engine does not answer, or answers what is not valid.
        """
        if self._open is None:
            raise RuntimeError("Served is not open: call open(sampling, policy, processes) before collect()")
        return self._open.collect(prompts, weights, version)

    def close(self) -> None:
        """Forgets the engines, which go on running, and removes the weights that were written for them."""
        if self._open is not None:
            self._open.clear(keep=0)
            self._open = None


def _check_sampler(sampling: Sampling) -> None:
    """Refuses samplers whose trajectories the protocol has no fields for.

    Raises:
        RecipeError: it is refused.
    """
    sampler = sampling.sampler
    name = type(sampler).__name__
    if not isinstance(sampler, MaskSampler) or sampler.group_size is not None:
        raise RecipeError(f"Served is for samplers that fill masks, each sample by itself, and {name} does not")
    odd = [key for key in sampler.recorded_keys(sampling.keys) if key not in (*FIELDS, *DERIVED)]
    if odd:
        raise RecipeError(f"Served has no field for {odd[0]!r}, which {name} records")


class _Open:
    """What ``Served`` holds while it is open."""

    def __init__(
        self,
        sampling: Sampling,
        policy: Policy,
        run: str,
        settings: dict[str, Any],
        engines: list[Transport],
        folder: Path | None,
    ) -> None:
        self.sampling, self.policy, self.run, self.settings = sampling, policy, run, settings
        self.engines, self.folder = engines, folder
        self.loaded: dict[str, str] = {}
        """By engine, the weights that it was sent last."""
        recorded = sampling.sampler.recorded_keys(sampling.keys)
        self.record = list(dict.fromkeys([*ALWAYS, *(key for key in recorded if key in FIELDS)]))

    def collect(self, prompts: TensorDictBase, weights: Weights, version: int) -> TensorDictBase:
        name, body, content = f"{self.run}/{version}", b"", "application/octet-stream"
        tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
        if self.folder is None:
            body = save(tensors)
        else:
            body, content = self._written(tensors, version), "application/json"
        size = self.sampling.batch_size or -(-len(prompts) // len(self.engines))
        rows, pieces = zip(*cut(prompts, size, length_order(prompts, size)), strict=True)

        def of_engine(index: int) -> list[tuple[Tensor, TensorDictBase]]:
            own = range(index, len(pieces), len(self.engines))
            return [(rows[i], self._sampled(self.engines[index], pieces[i], name, body, content)) for i in own]

        with ThreadPoolExecutor(len(self.engines)) as threads:
            found = [pair for part in threads.map(of_engine, range(len(self.engines))) for pair in part]
        return restored([piece for _, piece in found], [index for index, _ in found])

    def _sampled(
        self, engine: Transport, prompts: TensorDictBase, weights: str, body: bytes, content: str
    ) -> TensorDictBase:
        """Asks one engine; one that has lost the weights, or got those of another run in between, gets them again."""
        asked = json.dumps(question(prompts, weights, self.settings, self.record)).encode()
        for attempt in range(engine.retries + 1):
            if attempt or self.loaded.get(engine.url) != weights:
                self._load(engine, weights, body, content)
            try:
                answer = engine.ask("/v1/rollouts", asked)
                break
            except ConflictError:
                if attempt == engine.retries:
                    raise
        return self._read(engine, answer, prompts, weights)

    def _load(self, engine: Transport, weights: str, body: bytes, content: str) -> None:
        if content == "application/json":
            body = json.dumps({"protocol": PROTOCOL, "weights": weights, "path": body.decode()}).encode()
        answer = engine.ask(f"/v1/weights?name={weights}", body, content)
        if answer.get("weights") != weights:
            raise TrainingError(
                f"the engine at {engine.url} was sent the weights {weights!r} and has {answer.get('weights')!r}"
            )
        self.loaded[engine.url] = weights

    def _read(self, engine: Transport, answer: dict[str, Any], prompts: TensorDictBase, weights: str) -> TensorDictBase:
        def read() -> TensorDictBase:
            if answer.get("weights") != weights:
                raise TrainingError(f"it is of the weights {answer.get('weights')!r}, not {weights!r}")
            if odd := difference_of(self.settings, answer.get("sampling"), "sampling."):
                raise TrainingError(odd)
            return trajectories(answer, prompts, self.sampling, self.policy)

        found: TensorDictBase = engine.checked(read)
        return found

    def _written(self, tensors: dict[str, Tensor], version: int) -> bytes:
        """Writes weights to the folder, once; returns the path."""
        path = self._path(version)
        if not path.exists():
            write_atomic(path, save(tensors))
        self.clear(KEPT)
        return str(path.absolute()).encode()

    def _path(self, version: int) -> Path:
        assert self.folder is not None
        return self.folder / f"weights-{self.run}-{version:08}.safetensors"

    def clear(self, keep: int) -> None:
        """Removes all versions of the weights but the last ones."""
        if self.folder is None:
            return
        versions = sorted(self.folder.glob(f"weights-{self.run}-*.safetensors"))
        for path in versions[: len(versions) - keep]:
            with contextlib.suppress(OSError):
                path.unlink()
