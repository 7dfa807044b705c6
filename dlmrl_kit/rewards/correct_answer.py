"""Pays a final answer that is mathematically the right one."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.math_equal import load_verifier, plainly_equal
from dlmrl_kit.rewards.tags import ANSWER_IN, AnswerIn, final_answer
from dlmrl_kit.scoring.pool import Failures, shared
from dlmrl_kit.scoring.process import Failed


@register("reward", paper="arXiv 2504.12216; arXiv 2603.12554")
class CorrectAnswer(RewardFunction):
    r"""1 if the final answer equals the right one, else 0.

    Numbers are compared exactly; fractions, units, percentages, sets, intervals, matrices and formulas by math-verify,
    in a worker process with a time limit, in whatever thread the task is asked. An answer that exceeds the limit counts
    as wrong; ``failures`` counts these, and the first is a warning.

    Args:
        answer_in: where the final answer stands: in ``<answer>`` (``answer``), in the last ``\boxed{}`` (``boxed``),
            or in either, a box inside ``<answer>`` included (``any``); or it is the whole text (``text``).
        timeout: seconds for the comparison of one answer.
        workers: processes that compare.

    Other arguments, raises as ``RewardFunction``.
    """

    needs = ("truth",)
    decides = True

    def __init__(
        self,
        weight: float = 1.0,
        name: str = "",
        answer_in: AnswerIn = "any",
        timeout: float = 5.0,
        workers: int = 1,
    ) -> None:
        super().__init__(weight, name)
        check(answer_in in ANSWER_IN, self, "answer_in", answer_in, f"one of {', '.join(ANSWER_IN)}")
        check(0 < timeout <= 3600, self, "timeout", timeout, "a number of seconds, above 0 and at most 3600")
        check(1 <= workers <= 64, self, "workers", workers, "an integer from 1 to 64")
        self.answer_in, self.timeout, self.workers = answer_in, timeout, workers
        self.failures = Failures()

    def require(self) -> None:
        """Checks that math-verify is installed.

        Raises:
            UserError: it is not.
        """
        if importlib.util.find_spec("math_verify") is None:
            raise UserError("CorrectAnswer needs the package math-verify: pip install 'dlmrl-kit[tasks]'")

    def versions(self) -> dict[str, str]:
        """Returns the version of math-verify, which decides what counts as right."""
        return {"math-verify": metadata.version("math-verify")}

    def value(self, text: str, meta: Mapping[str, Any]) -> float:
        """Returns 1 or 0."""
        return self.values([text], [meta])[0]

    def values(self, texts: Sequence[str], metas: Sequence[Mapping[str, Any]]) -> list[float]:
        """Returns 1 or 0 for each completion; those whose answer is not plain go to the workers together."""
        found = [final_answer(text, self.answer_in) or "" for text in texts]
        pairs = [(answer, str(meta["truth"])) for answer, meta in zip(found, metas, strict=True)]
        right = [plainly_equal(*pair) for pair in pairs]
        asked = [number for number, verdict in enumerate(right) if verdict is None]
        if asked:
            pool = shared(load_verifier, self.workers, memory=4 * 2**30)
            results = pool.run([pairs[number] for number in asked], self.timeout)
            for number, result in zip(asked, results, strict=True):
                if isinstance(result, Failed):
                    self.failures.note("CorrectAnswer", result, pairs[number][0])
                right[number] = result is True
        return [float(bool(verdict)) for verdict in right]
