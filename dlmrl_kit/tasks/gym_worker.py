"""What a ``ReasoningGym`` task does in its worker process: it makes entries and calls the dataset's scorer."""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
import time
from types import CodeType
from typing import Any, Literal, Protocol, TypeAlias

from dlmrl_kit.core.errors import UserError

CHUNK = 500
"""Entries of one reasoning-gym dataset; the stream is one dataset after another."""
BLOCK = 64
"""Most entries made for one request."""

Entry: TypeAlias = dict[str, Any]
"""An entry of a dataset: ``question``, ``answer``, ``metadata``."""
Made: TypeAlias = tuple[Entry, str] | str
"""An entry and its answer; or, in place of an unfit one, a text that says why it is unfit."""
Request: TypeAlias = tuple[Literal["make"], int] | tuple[Literal["score"], str, Entry]
"""To make entries from this number on; or to score a completion of an entry."""


class ScoredDataset(Protocol):
    """What is needed of a reasoning-gym dataset."""

    def __getitem__(self, number: int, /) -> Entry:
        """Returns an entry."""

    def score_answer(self, answer: str, entry: Entry) -> float:
        """Returns the score of an answer."""


class Gym:
    """A stream of entries of a reasoning-gym dataset, and its scorer.

    Some datasets end after ``size`` entries, and all seed entry n with ``seed + n``, so that seeds 0 and 1 would be
    one stream shifted by one. Here every ``CHUNK`` entries come from a dataset of their own with a hashed seed.

    Args:
        dataset, seed, config: of ``ReasoningGym``.
    """

    def __init__(self, dataset: str, seed: int, config: dict[str, Any]) -> None:
        self.dataset, self.seed, self.config = dataset, seed, config
        self._chunk = 0
        self._entries = self._scorer = self._dataset(0)
        self._guard = ExecGuard()
        for text in ("", "0", "[1]"):  # whatever is imported late is imported now, before the guard looks
            self._call(text, self._entry(0))

    def __call__(self, request: Request) -> list[Made] | float:
        """Does what is asked: returns what ``make`` or ``score`` returns."""
        if request[0] == "make":
            return self.make(request[1])
        return self.score(request[1], request[2])

    def make(self, first: int) -> list[Made]:
        """Makes entry ``first`` of the stream and some that follow, as many as a second allows."""
        found: list[Made] = []
        start = time.perf_counter()
        while len(found) < BLOCK and (not found or time.perf_counter() - start < 1):
            found.append(self._make(first + len(found)))
        return found

    def score(self, completion: str, entry: Entry) -> float:
        """Returns the scorer's value, clipped to [0, 1]; 0 where it raises.

        Raises:
            UserError: the scorer executed code that it made out of text.
        """
        with self._guard:
            value = self._call(completion, entry)
        if self._guard.caught:
            raise UserError(
                f"the scorer of reasoning-gym's {self.dataset!r} evaluates text; such datasets are refused, and this "
                "one is not listed in dlmrl_kit.tasks.gym_scorers.EVALUATES_TEXT (another version of reasoning-gym?)"
            )
        return value

    def _call(self, completion: str, entry: Entry) -> float:
        try:
            value = float(self._scorer.score_answer(completion, entry))
        except Exception:  # many scorers raise where they cannot read an answer
            return 0.0
        return 0.0 if math.isnan(value) else min(1.0, max(0.0, value))

    def _make(self, number: int) -> Made:
        try:
            entry = self._entry(number)
            answer = self._answer(entry)
        except Exception as error:  # a generator that gives up
            return f"{type(error).__name__}: {error}"
        return (entry, answer) if answer is not None else "the dataset's own answer does not get its full score"

    def _entry(self, number: int) -> Entry:
        chunk, index = divmod(number, CHUNK)
        if chunk != self._chunk:
            self._entries, self._chunk = self._dataset(chunk), chunk
        self._seed("puzzle", number)
        return self._entries[index]

    def _dataset(self, chunk: int) -> ScoredDataset:
        import reasoning_gym

        seed = self._seed("chunk", chunk)
        dataset: ScoredDataset = reasoning_gym.create_dataset(self.dataset, seed=seed, size=CHUNK, **self.config)
        return dataset

    def _seed(self, what: str, number: int) -> int:
        """Returns a hashed seed of 31 bits, and seeds the global generators with it, which a few datasets use."""
        text = f"{self.dataset} {self.seed} {what} {number}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed)
        return seed

    def _answer(self, entry: Entry) -> str | None:
        """Returns a text with the full score; "" where the dataset tells no answer, None where it tells a wrong one."""
        if entry["answer"] is not None:
            answer = str(entry["answer"]).strip()
            return answer if self._call(answer, entry) == 1 else None
        told = [value for name, value in entry["metadata"].items() if "answer" in name and value is not None]
        texts = [text for value in told for text in (str(value).strip(), json.dumps(value))]
        return next((text for text in texts if self._call(text, entry) == 1), None if texts else "")


class ExecGuard:
    """Within the context, code that was made out of text is not executed: whoever tries gets a ``RuntimeError``.

    It is a second line of defence behind the list of refused datasets: the interpreter announces every ``eval`` and
    ``exec``, wherever it comes from, to audit hooks. It is no sandbox. ``caught`` says whether somebody tried.
    """

    def __init__(self) -> None:
        self.caught = False
        self._active = False
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        self.caught, self._active = False, True

    def __exit__(self, *_: object) -> None:
        self._active = False

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._active or event != "exec" or not isinstance(arguments[0], CodeType):
            return
        file = arguments[0].co_filename
        if file.startswith("<") and not file.startswith("<frozen"):  # modules being imported come from files
            self.caught = True
            raise RuntimeError("text is not to be executed")
