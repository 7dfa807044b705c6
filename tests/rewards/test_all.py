"""Rewards by hand, for right, wrong and hostile texts; and what holds for every reward."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dlmrl_kit.core.registry import registered
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.rewards.answer_format import soft_format, strict_format
from dlmrl_kit.rewards.base import RewardFunction
from dlmrl_kit.rewards.boxed_answer import boxed_answer
from dlmrl_kit.rewards.correct_answer import CorrectAnswer
from dlmrl_kit.rewards.countdown_value import CountdownValue, countdown_value
from dlmrl_kit.rewards.integer_answer import integer_answer
from dlmrl_kit.rewards.right_cells import right_cells
from dlmrl_kit.rewards.tag_count import tag_count
from dlmrl_kit.rewards.tags import final_answer, in_answer, in_box
from dlmrl_kit.testing.tasks import JUNK

WHOLE = "<reasoning>\n1 + 1\nis 2\n</reasoning>\n<answer>\n2\n</answer>\n"
ONE_LINE = "<reasoning>1+1</reasoning> <answer>2</answer>"


@pytest.mark.parametrize(
    ("text", "strict", "soft", "tags", "integer", "boxed"),
    [
        (WHOLE, 1, 1, 0.5, 1, 0.5),
        (WHOLE.rstrip("\n"), 1, 1, 0.501 - 0.001 * len(WHOLE.rstrip("\n")), 1, 0.5),
        (WHOLE + "12345", 0, 1, 0.5 - 0.005 - 0.005, 1, 0.5),
        (ONE_LINE, 0, 1, 0, 1, 0.5),
        ("so: " + WHOLE, 0, 0, 0.5, 1, 0.5),
        (WHOLE.replace("2\n</answer>", "\\boxed{2}\n</answer>"), 1, 1, 0.5, 0, 1),
        (WHOLE.replace("2\n</answer>", "two\n</answer>"), 1, 1, 0.5, 0, 0.5),
        (WHOLE.replace("2\n</answer>", "\x08oxed{2}\n</answer>"), 1, 1, 0.5, 0, 0.5),
        (WHOLE + WHOLE, 0, 1, 0, 1, 0.5),
        ("<answer>\n" * 2, 0, 0, 0.125 - 0.001 * 18, 0, 0.5),
        ("\n<answer>\n" + "x" * 400, 0, 0, 0.125 - 0.001 * 410, 0, 0.5),
        ("", 0, 0, 0, 0, 0),
        ("<answer>٢</answer>", 0, 0, 0, 0, 0.5),
    ],
)
def test_forms_by_hand(text: str, strict: float, soft: float, tags: float, integer: float, boxed: float) -> None:
    assert (strict_format(text), soft_format(text)) == (strict, soft)
    assert tag_count(text) == pytest.approx(tags)
    assert (integer_answer(text), boxed_answer(text)) == (integer, boxed)


PUZZLE, SOLUTION = "1030341221434300", "1234341221434321"


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("1234341221434321", 1),
        ("1 2 3 4\n3412\n2143\n4321", 1),
        ("1234341221434312", 0.5),
        ("1234341221434", 0.5),
        ("12343412214343219999", 1),
        ("1204341221434300", 0.5),
        ("4", 0),
        ("", 0),
        ("١234341221434321", 0),
    ],
)
def test_cells_by_hand(answer: str, value: float) -> None:
    assert right_cells(f"<answer>{answer}</answer>", PUZZLE, SOLUTION) == value


def test_cells_without_an_answer_or_without_a_question() -> None:
    assert right_cells(SOLUTION, PUZZLE, SOLUTION) == 0
    assert right_cells(f"<answer>{SOLUTION}</answer>", SOLUTION, SOLUTION) == 0


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("<answer>44-19+35</answer>", 1, 1),
        ("<answer>\n(35 + 44) - 19\n</answer>", 1, 1),
        ("<answer>44-19+35=60</answer>", 0.1, 1),
        ("<answer>\\boxed{44-19+35}</answer>", 0.1, 1),
        ("\\boxed{44 - 19 + 35 = 60}", 0, 1),
        ("first 44+19=63\n44-19+35 = 60\n", 0, 1),
        ("<answer>44 \\times 1</answer>", 0.1, 0.1),
        ("<answer>44-19+36</answer>", 0.1, 0.1),
        ("<answer>44-19+35+0</answer>", 0.1, 0.1),
        ("<answer>60</answer>", 0.1, 0.1),
        ("<answer>9**9**9**9</answer>", 0.1, 0.1),
        ("<answer>__import__('os').getcwd()</answer>", 0.1, 0.1),
        ("<answer></answer>", 0, 0),
        ("44-19+35", 0, 0),
        ("", 0, 0),
    ],
)
def test_countdown_by_hand(text: str, strict: float, lenient: float) -> None:
    assert countdown_value(text, [44, 19, 35], 60) == strict
    assert countdown_value(text, [44, 19, 35], 60, lenient=True) == lenient


def test_countdown_is_exact() -> None:
    assert countdown_value("<answer>1/3*3</answer>", [1, 3, 3], 1) == 1
    assert countdown_value("<answer>100000/3*3</answer>", [100000, 3, 3], 100000) == 1
    assert countdown_value("<answer>1/(3-3)</answer>", [1, 3, 3], 1) == 0.1


def test_where_an_answer_is() -> None:
    assert in_answer("<answer>1</answer><answer> 2 </answer>") == "2"
    assert in_answer("<answer>1") == "1"
    assert in_box(r"\boxed{1} and \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert in_box(r"\boxed{\{1,2\}}") == r"\{1,2\}"
    assert in_box(r"\boxed 7.") == "7."
    assert in_box(r"\boxed{1") is None
    assert final_answer(r"\boxed{3} <answer>4</answer>") == "4"
    assert final_answer("4") is None


META = {"truth": "5", "numbers": [1, 2, 3], "target": 6, "puzzle": PUZZLE, "solution": SOLUTION}
KIT = [e.cls for e in components("reward") if e.package == "dlmrl_kit" and set(e.cls.needs) <= META.keys()]


@pytest.mark.parametrize("cls", KIT, ids=lambda cls: cls.__name__)
def test_whatever_a_model_writes_earns_a_finite_number(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if cls is CorrectAnswer:  # the worker is tested by itself
        monkeypatch.setattr("dlmrl_kit.rewards.correct_answer.plainly_equal", lambda answer, truth: answer == truth)
    reward = cls()
    nested = ["<answer>" * 20_000, "\\boxed{" * 20_000, "{" * 50_000, "<reasoning>" * 20_000, "\\boxed " * 10_000]
    texts = [*JUNK, *nested, *[f"<answer>{text}</answer>" for text in JUNK]]
    values = reward.values(texts, [META] * len(texts))
    assert all(math.isfinite(value) for value in values)
    if reward.decides:
        assert max(values) < 1


@pytest.mark.parametrize("cls", KIT, ids=lambda cls: cls.__name__)
def test_a_reward_has_a_name_and_a_weight(cls: Any) -> None:
    reward = cls(-0.5, "mine")
    assert (reward.weight, reward.label) == (-0.5, "mine")
    assert cls().label == cls().label.lower()
    for name in ("solved", "reward", "two\nlines"):
        with pytest.raises(ValueError, match="name"):
            cls(1.0, name)
    with pytest.raises(ValueError, match="weight"):
        cls(float("inf"))


def test_labels_tell_the_rewards_of_the_kit_apart() -> None:
    labels = [cls().label for cls in KIT]
    assert len(set(labels)) == len(labels)
    assert CountdownValue().label == "countdown_value"
    assert all(issubclass(entry.cls, RewardFunction) for entry in registered("reward"))
