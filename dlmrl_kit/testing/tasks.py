"""Checks of tasks: reproducible examples, disjoint splits, a reward that nothing breaks."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter

from dlmrl_kit.tasks.base import BaseTask, Example, normalised, prompt_text
from dlmrl_kit.testing.core import attempt, fail

FIRST = 25
"""Examples of each split that are looked at."""
CONSTANT_MARGIN = 0.2
"""By how much a constant may solve more examples than have the most frequent answer: some have several right ones."""
SECONDS = 1.0
"""Longest time that scoring one completion may take."""
JUNK: tuple[str, ...] = (
    "",
    " ",
    "\x00",
    "\n\n",
    "?",
    "0",
    "-1",
    "nan",
    "inf",
    "None",
    "1" * 20_000,
    "(" * 5_000 + ")" * 5_000,
    "1+" * 5_000 + "1",
    "9**9**9**9",
    "1/0",
    "1_000",
    "0x10",
    "__import__('os').getcwd()",
    "{}{0}%s%d",
    "é\u202e\ud800\U0001f600",
    "١٢٣٤",
    "\\boxed{1}",
    "<answer>1</answer>",
)
"""Completions that are (almost surely) wrong, some of them hostile."""


def _examples(name: str, task: BaseTask) -> dict[str, list[Example]]:
    fix = (
        "implement size and example as dlmrl_kit.tasks.base.BaseTask says, or inherit from Task and implement candidate"
    )
    with attempt(name, f"asked for the first {FIRST} examples of each split", fix):
        return {split: [task.example(split, i) for i in range(min(FIRST, task.size(split)))] for split in task.SPLITS}


def check_examples_reproducible(name: str, component: BaseTask) -> None:
    """The same task gives the same examples, in whatever order they are asked for."""
    twin = copy.deepcopy(component)
    found = _examples(name, component)
    for split in reversed(component.SPLITS):
        for index in reversed(range(len(found[split]))):
            if twin.example(split, index) != found[split][index]:
                fix = "let candidate(number) depend on number and the constructor's parameters only (seed included)"
                fail(name, f"gives another example {index} of {split} when asked in another order", fix)


def check_splits_disjoint(name: str, component: BaseTask) -> None:
    """No example is in two splits, and none twice in one, in whatever white space and form of Unicode."""
    home: dict[str, str] = {}
    for split, examples in _examples(name, component).items():
        for example in examples:
            text = normalised(component.canonical(example))
            if text in home:
                fix = "inherit from dlmrl_kit.tasks.base.Task, which divides examples by a hash of canonical(example)"
                fail(name, f"has the example {text!r} in {home[text]} and in {split}", fix)
            home[text] = split


def check_outside_of_splits(name: str, component: BaseTask) -> None:
    """An index out of range is an IndexError, an unknown split a ValueError."""
    split = component.SPLITS[0]
    asked: tuple[tuple[str, int, type[Exception]], ...] = (
        (split, -1, IndexError),
        (split, component.size(split), IndexError),
        ("no such split", 0, ValueError),
    )
    for which, index, expected in asked:
        try:
            component.example(which, index)
        except expected:
            continue
        except Exception as error:
            problem = f"raises {type(error).__name__} for example({which!r}, {index})"
            fail(name, problem, f"raise {expected.__name__}")
        fail(name, f"has an example({which!r}, {index})", f"raise {expected.__name__}")


def check_answer_scores_full(name: str, component: BaseTask) -> None:
    """The answer of every example is solved, with at least the reward of any junk."""
    for examples in _examples(name, component).values():
        for example in examples:
            score = _score(name, component, example.answer, example)
            if score["solved"] != 1:
                problem = f"scores its own answer {example.answer!r} to {example.prompt!r} as {score}"
                fail(name, problem, 'score a right answer "solved": 1.0, and give examples their right answer')
            junk = max(_score(name, component, text, example)["reward"] for text in JUNK[:5])
            if junk > score["reward"]:
                problem = f"rewards junk with {junk:g}, the answer with {score['reward']:g}"
                fail(name, problem, "reward right answers most")


def check_score_of_junk(name: str, component: BaseTask) -> None:
    """Whatever a model writes gets a finite score in bounded time, and raises nothing."""
    for split, examples in _examples(name, component).items():
        for example in examples[:3]:
            answer = example.answer
            for text in (
                *JUNK,
                prompt_text(example.prompt),
                answer[:-1],
                answer * 2,
                f"{answer} ",
                examples[-1].answer,
            ):
                start = time.perf_counter()
                score = _score(name, component, text, example)
                if time.perf_counter() - start > SECONDS:
                    problem = f"takes more than {SECONDS:g} s to score {text[:40]!r} ({split})"
                    fail(name, problem, "bound length, depth and size before evaluating what a model wrote")
                if score["solved"] not in (0, 1):
                    fail(name, f'scores {text[:40]!r} as "solved" = {score["solved"]}', "solved is 0.0 or 1.0")


def check_constants_solve_nothing(name: str, component: BaseTask) -> None:
    """No constant solves more examples than have it as their answer, or it would be all that a model learns."""
    for split, examples in _examples(name, component).items():
        if not examples:
            continue
        answers = Counter(example.answer for example in examples)
        most = max(answers.values()) / len(examples)
        for text in JUNK:
            solved = sum(_solves(component, text, example) for example in examples) / len(examples)
            if solved > most + CONSTANT_MARGIN:
                problem = f"the constant {text[:40]!r} (an answer or not) solves {solved:.0%} of {split}"
                fix = "score the whole completion; the most frequent answer is right for"
                fail(name, problem, f"{fix} {most:.0%} of them")


def _solves(task: BaseTask, text: str, example: Example) -> bool:
    try:
        return task.score(text, example)["solved"] == 1
    except Exception:  # check_score_of_junk reports it
        return False


def _score(name: str, task: BaseTask, text: str, example: Example) -> dict[str, float]:
    with attempt(name, f"scoring {text[:40]!r}", "score anything; what cannot be read is worth 0"):
        score = task.score(text, example)
    missing = [part for part in ("reward", "solved") if part not in score]
    if missing:
        fail(name, f"returns a score without {missing[0]!r}", 'return {"reward": ..., "solved": ...}')
    for part, value in score.items():
        if not (isinstance(value, (int, float)) and math.isfinite(value)):
            fail(name, f"scores {text[:40]!r} with {part} = {value!r}", "let every component be a finite number")
    return score


CHECKS = (
    check_examples_reproducible,
    check_splits_disjoint,
    check_outside_of_splits,
    check_answer_scores_full,
    check_score_of_junk,
    check_constants_solve_nothing,
)
