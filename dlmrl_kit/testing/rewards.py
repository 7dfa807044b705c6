"""Checks of reward functions: finite numbers for whatever a model writes, in bounded time, the same one by one."""

from __future__ import annotations

import time

from dlmrl_kit.rewards.base import RewardFunction, values_fault
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.tasks import JUNK, SECONDS

PUZZLE, SOLUTION = "0234341221430000", "1234341221434321"
META = {"truth": "x+1", "numbers": [2, 3, 4], "target": 9, "puzzle": PUZZLE, "solution": SOLUTION, "question": "?"}
"""What rewards find of an example; those that need more are not checked on junk."""


def check_values_of_junk(name: str, component: RewardFunction) -> None:
    """Whatever a model writes earns a finite number in bounded time, raises nothing, and solves nothing."""
    if not set(component.needs) <= META.keys():
        return
    texts = [*JUNK, *(f"<answer>{text}</answer>" for text in JUNK)]
    with attempt(name, "asked for the values of junk", "return a number for every text, whatever it is"):
        component.value("<answer>first</answer>", META)  # what starts once, such as a worker, may take its time
        start = time.perf_counter()
        together = component.values(texts, [META] * len(texts))
    if time.perf_counter() - start > SECONDS * len(texts):
        fail(name, f"takes more than {SECONDS:g} s per completion", "bound length, depth and size before you evaluate")
    if fault := values_fault(together, len(texts)):
        fail(name, f"returned {fault}", "return a finite number for each completion")
    if component.decides and 1 in together:
        solved = texts[together.index(1)]
        fail(name, f"takes {solved[:40]!r} for right", "return 1 for right answers alone, or leave decides False")
    alone = [component.value(text, META) for text in texts[:5]]
    if alone != together[:5]:
        fail(name, "values completions otherwise one by one", "let values agree with value")


CHECKS = (check_values_of_junk,)
