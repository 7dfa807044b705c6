"""Final answers of mathematics: a table with verdicts, hostile answers, a time limit in whatever thread."""

from __future__ import annotations

import threading
import time

import pytest
from support.math_answers import PAIRS

from dlmrl_kit.rewards.correct_answer import CorrectAnswer
from dlmrl_kit.rewards.math_equal import MAX_LENGTH, plainly_equal


def right(reward: CorrectAnswer, *pairs: tuple[str, str]) -> list[float]:
    texts = [f"<answer>{answer}</answer>" for answer, _ in pairs]
    return reward.values(texts, [{"truth": truth} for _, truth in pairs])


def test_the_table_is_large_and_has_both_verdicts() -> None:
    assert len(PAIRS) >= 150
    assert min(sum(same for *_, same in PAIRS), sum(not same for *_, same in PAIRS)) >= 60
    assert len({(answer, truth) for answer, truth, _ in PAIRS}) == len(PAIRS)


def test_what_is_plain_is_never_wrong() -> None:
    plain = [plainly_equal(answer, truth) for answer, truth, _ in PAIRS]
    assert not [pair for pair, verdict in zip(PAIRS, plain, strict=True) if verdict not in (pair[2], None)]
    assert {*plain} == {True, False, None}


@pytest.mark.thorough
def test_every_pair_of_the_table_has_its_verdict() -> None:
    found = right(CorrectAnswer(timeout=60), *[(answer, truth) for answer, truth, _ in PAIRS])
    wrong = [pair for pair, value in zip(PAIRS, found, strict=True) if value != pair[2]]
    assert not wrong


@pytest.mark.parametrize(
    ("answer", "same"), [("72", 1), (" 72.0 ", 1), ("$72", 1), ("72 apples", 1), ("144/2", 1), ("27", 0), ("7", 0)]
)
def test_numbers_need_no_worker(answer: str, same: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmrl_kit.rewards.correct_answer.shared", None)
    assert right(CorrectAnswer(), (answer, "72")) == [same]


@pytest.mark.parametrize(
    "text", ["5 " + "a" * 900 + "!", "1," * 500, "1/" * 450, "_" * 900, "9" * 10**6, "5" + " " * 10**5]
)
def test_plain_answers_are_compared_in_no_time(text: str) -> None:
    began = time.process_time()
    assert plainly_equal(text, "6") in (False, None)
    assert time.process_time() - began < 0.2


@pytest.mark.thorough
def test_a_comparison_that_hangs_is_ended_in_a_thread_too_and_counts_as_wrong() -> None:
    reward, found = CorrectAnswer(timeout=2), []

    def score() -> None:
        hostile = [r"10^{10^{10}}", r"9^{9^{9^{9}}}", "(" * 400 + ")" * 400, r"\frac{1}{" * 90 + "2" + "}" * 90]
        with pytest.warns(RuntimeWarning, match="could not be scored and gets 0: took more than 2 s"):
            found.extend(right(reward, *[(text, "5") for text in hostile], (r"\frac{10}{2}+0", "5")))

    thread = threading.Thread(target=score)
    thread.start()
    thread.join(60)
    assert found == [0, 0, 0, 0, 1]
    assert reward.failures["timeout"] >= 1


def test_the_answer_is_looked_for_where_the_setting_says() -> None:
    text = r"<reasoning>\boxed{1}</reasoning><answer>so \boxed{2}</answer>"
    found = {
        where: [CorrectAnswer(answer_in=where).value(text, {"truth": n})] for where in ("any", "boxed") for n in "2"
    }
    assert found == {"any": [1], "boxed": [1]}
    assert CorrectAnswer(answer_in="any").value(r"the answer is \boxed{2}", {"truth": "2"}) == 1
    assert CorrectAnswer(answer_in="answer").value(r"the answer is \boxed{2}", {"truth": "2"}) == 0
    assert CorrectAnswer(answer_in="boxed").value("<answer>2</answer>", {"truth": "2"}) == 0


def test_an_answer_that_is_too_long_is_only_equal_to_itself() -> None:
    long = "x+" * MAX_LENGTH
    assert plainly_equal(long, long)
    assert plainly_equal(long, "x") is False
