"""What a ``ReasoningGym`` task does in its worker process: makes puzzles and calls the dataset's scorer."""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
import time
from typing import Any

from dlmrl_kit.core.errors import UserError

CHUNK = 500
"""Puzzles of one reasoning-gym dataset; the stream is one dataset after another."""
BLOCK = 64
"""Most puzzles made for one request."""

Puzzle = tuple[dict[str, Any], str]
"""An entry of a dataset and its answer."""


class Gym:
    """A stream of puzzles of a reasoning-gym dataset, and its scorer.

    Some datasets end after ``size`` puzzles, and all seed puzzle n with ``seed + n``, so that seeds 0 and 1 would be
    one stream shifted by one. Here every ``CHUNK`` puzzles come from a dataset of their own with a hashed seed.

    Args:
        dataset, seed, config: of ``ReasoningGym``.
    """

    def __init__(self, dataset: str, seed: int, config: dict[str, Any]) -> None:
        self.dataset, self.seed, self.config = dataset, seed, config
        self._chunk = 0
        self._puzzles = self._scorer = self._make(0)
        self._guard = ExecGuard()
        for text in ("", "0", "[1]"):  # whatever is imported late is imported now, before the guard looks
            self._call(text, self._entry(0))

    def __call__(self, request: tuple[Any, ...]) -> Any:
        """``("puzzles", first)``: a list of puzzles; ``("score", completion, entry)``: the score."""
        return getattr(self, request[0])(*request[1:])

    def puzzles(self, first: int) -> list[Puzzle | str]:
        """Puzzle ``first`` and some that follow: as many as a second allows. In place of an unfit one, why it is."""
        found: list[Puzzle | str] = []
        start = time.perf_counter()
        while len(found) < BLOCK and (not found or time.perf_counter() - start < 1):
            found.append(self._puzzle(first + len(found)))
        return found

    def score(self, completion: str, entry: dict[str, Any]) -> float:
        """The scorer's value, clipped to [0, 1]; 0 where it raises.

        Raises:
            UserError: the scorer executed code that it made out of text.
        """
        with self._guard:
            value = self._call(completion, entry)
        if self._guard.caught:
            raise UserError(
                f"the scorer of reasoning-gym's {self.dataset!r} evaluates text; such datasets are refused, and this "
                "one is not listed in dlmrl_kit.tasks.reasoning_gym.EVALUATES_TEXT (another version of reasoning-gym?)"
            )
        return value

    def _call(self, completion: str, entry: dict[str, Any]) -> float:
        try:
            value = float(self._scorer.score_answer(completion, entry))
        except Exception:  # many scorers raise where they cannot read an answer
            return 0.0
        return 0.0 if math.isnan(value) else min(1.0, max(0.0, value))

    def _puzzle(self, number: int) -> Puzzle | str:
        try:
            entry = self._entry(number)
            answer = self._answer(entry)
        except Exception as error:  # a generator that gives up
            return f"{type(error).__name__}: {error}"
        return (entry, answer) if answer is not None else "the dataset's own answer does not get its full score"

    def _entry(self, number: int) -> dict[str, Any]:
        chunk, index = divmod(number, CHUNK)
        if chunk != self._chunk:
            self._puzzles, self._chunk = self._make(chunk), chunk
        self._seed("puzzle", number)
        return self._puzzles[index]

    def _make(self, chunk: int) -> Any:
        import reasoning_gym

        return reasoning_gym.create_dataset(self.dataset, seed=self._seed("chunk", chunk), size=CHUNK, **self.config)

    def _seed(self, what: str, number: int) -> int:
        """A hashed seed of 31 bits; also the state of the global generators, which a few datasets use."""
        text = f"{self.dataset} {self.seed} {what} {number}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed)
        return seed

    def _answer(self, entry: dict[str, Any]) -> str | None:
        """A text of full score, "" where the dataset tells none, None where what it tells is wrong."""
        if entry["answer"] is not None:
            answer = str(entry["answer"]).strip()
            return answer if self._call(answer, entry) == 1 else None
        told = [value for name, value in entry["metadata"].items() if "answer" in name and value is not None]
        texts = [text for value in told for text in (str(value).strip(), json.dumps(value))]
        return next((text for text in texts if self._call(text, entry) == 1), None if texts else "")


class ExecGuard:
    """Refuses to execute code that was made out of text, while it is entered.

    A second line of defence behind the list of refused datasets: the interpreter announces every ``eval`` and ``exec``,
    wherever it comes from, to audit hooks. Not to be confused with a sandbox.
    """

    def __init__(self) -> None:
        self.caught = False
        self._active = False
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        self.caught, self._active = False, True

    def __exit__(self, *_: object) -> None:
        self._active = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active or event != "exec":
            return
        file = getattr(arguments[0], "co_filename", "")
        if file.startswith("<") and not file.startswith("<frozen"):  # modules being imported come from files
            self.caught = True
            raise RuntimeError("text is not to be executed")
