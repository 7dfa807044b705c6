"""Requests to an engine over HTTP: time-outs, and retries of what may succeed later."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from dlmrl_kit.collectors.protocol import parsed
from dlmrl_kit.core.errors import TrainingError
from dlmrl_kit.core.validate import clipped

CHUNK = 2**20
CONFLICT = 409
"""Status of an engine that holds other weights than it is asked to sample with."""
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # engines are near: no proxy stands between


class ConflictError(TrainingError):
    """The engine holds other weights than those that it is asked to sample with."""


class Transport:
    """Sends requests to one engine.

    Args:
        url: of the engine, without a path.
        timeout: seconds that a request may take.
        retries: how often a request is sent again that failed for a reason that may pass.
        wait: seconds before the first of them; each waits twice as long as the one before.
    """

    def __init__(self, url: str, timeout: float, retries: int, wait: float) -> None:
        self.url, self.timeout, self.retries, self.wait = url.rstrip("/"), timeout, retries, wait

    def ask(self, path: str, body: bytes | None = None, content: str = "application/json") -> dict[str, Any]:
        """Sends a request and returns the answer: POST with a body, else GET.

        Raises:
            ConflictError: the status is 409.
            TrainingError: no answer of status 200 that is whole and of this protocol has come; says why.
        """
        for attempt in range(self.retries + 1):
            try:
                return self._once(path, body, content)
            except _PassingError as error:
                if attempt == self.retries:
                    times = f", {attempt + 1} times" if attempt else ""
                    raise TrainingError(f"the engine at {self.url} does not answer{times}: {error}") from error
                time.sleep(self.wait * 2**attempt)
        raise AssertionError("unreachable")

    def checked(self, make: Callable[[], Any]) -> Any:
        """Returns what ``make`` reads of an answer; its errors name the engine."""
        try:
            return make()
        except TrainingError as error:
            raise TrainingError(f"the answer of the engine at {self.url} is not valid: {error}") from error

    def _once(self, path: str, body: bytes | None, content: str) -> dict[str, Any]:
        request = urllib.request.Request(self.url + path, data=body)
        if body is not None:
            request.add_header("Content-Type", content)
        deadline = time.monotonic() + self.timeout
        try:
            with _OPENER.open(request, timeout=self.timeout) as response:
                text = _read(response, deadline)
        except urllib.error.HTTPError as error:
            says = _error_of(error)
            if error.code == CONFLICT:
                raise ConflictError(f"the engine at {self.url} refuses to sample: {says}") from error
            if error.code >= 500 or error.code == 429:
                raise _PassingError(f"status {error.code}, {says}") from error
            raise TrainingError(f"the engine at {self.url} refuses {path} with status {error.code}: {says}") from error
        except TimeoutError as error:
            raise _PassingError(f"no answer within {self.timeout:g} seconds") from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            late = isinstance(reason, TimeoutError)
            raise _PassingError(f"no answer within {self.timeout:g} seconds" if late else _told(reason)) from error
        found: dict[str, Any] = self.checked(lambda: parsed(text))
        return found


class _PassingError(Exception):
    """A request failed for a reason that may pass."""


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Reads an answer to its end; one that drips ends at the deadline.

    Raises:
        TimeoutError: the time is over.
        IncompleteRead: it ended too early.
    """
    parts = []
    while part := response.read1(CHUNK):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _error_of(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read(CHUNK)
    except (OSError, http.client.HTTPException):
        return "without a reason"
    try:
        found = parsed(text).get("error")
    except TrainingError:
        found = None
    return _told(found if isinstance(found, str) else text.decode(errors="replace") or "without a reason")


def _told(reason: object) -> str:
    return clipped(" ".join(str(reason).split()) or type(reason).__name__, 200)
