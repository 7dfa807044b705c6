"""reasoning-gym: what is refused, examples and scores."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import json
import os
import pickle
import subprocess
import sys
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from support.task_makers import DATASETS, SIZES, dump, gym

from dlmrl_kit.scoring.pool import WorkerError
from dlmrl_kit.tasks import reasoning_gym
from dlmrl_kit.tasks.base import Example, prompt_text, split_of
from dlmrl_kit.tasks.gym_scorers import ACCEPTS_MORE, EVALUATES_TEXT, FULL_MARKS_ONLY, MARGIN, PAYS_CONSTANTS
from dlmrl_kit.tasks.mixture import Mixture
from dlmrl_kit.tasks.reasoning_gym import ReasoningGym
from dlmrl_kit.testing import check_component

# ---------------------------------------------------------------- reasoning-gym: what is refused


@functools.cache
def definitions(module: str) -> dict[str, list[ast.AST]]:
    """Functions and classes of a module by name."""
    found: dict[str, list[ast.AST]] = defaultdict(list)
    for node in ast.walk(ast.parse(Path(str(sys.modules[module].__file__)).read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name].append(node)
    return found


@functools.cache
def names_in(node: ast.AST) -> frozenset[str]:
    return frozenset(
        part.id if isinstance(part, ast.Name) else part.attr
        for part in ast.walk(node)
        if isinstance(part, (ast.Name, ast.Attribute))
    )


EVALUATORS = {
    "eval", "exec", "compile", "literal_eval", "parse_expr", "parse_latex", "sympify", "S", "lambdify", "__import__",
    "import_module", "system", "popen", "Popen", "check_output", "unsafe_load", "unpickle", "loads_pickle",
}  # fmt: skip


def evaluators_reached(cls: type) -> set[str]:
    """Names in EVALUATORS that ``score_answer`` uses, or a function or class of the package that it can call by name.

    Anything of the same name counts, so this finds too much rather than too little.
    """
    package = [base.__module__ for base in cls.__mro__ if base.__module__.startswith("reasoning_gym.")]
    owner = next(base for base in cls.__mro__ if "score_answer" in vars(base))
    reached: set[str] = set()
    seen: set[int] = set()
    todo = [
        (owner.__module__, node)
        for body in definitions(owner.__module__)[owner.__name__]
        for node in ast.walk(body)
        if isinstance(node, ast.FunctionDef) and node.name == "score_answer"
    ]
    assert todo
    while todo:
        module, node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for name in names_in(node):
            local = name in definitions(module)
            if name in EVALUATORS and not local:
                reached.add(name)
            if name == "score_answer":  # another dataset's scorer, whichever it is
                reached.add("score_answer of others")
                continue
            imported = getattr(sys.modules[module], name, None)
            home = getattr(imported, "__module__", None) or ""
            homes = {*package, module, *([home] if home.startswith("reasoning_gym.") else [])}
            todo += [(home, found) for home in homes for found in definitions(home).get(name, [])]
    return reached


def test_refused_are_exactly_the_datasets_whose_scorer_can_evaluate_text() -> None:
    """On the installed sources: a new version of reasoning-gym cannot bring another one in unnoticed."""
    from reasoning_gym.factory import DATASETS

    found = {name: reached for name, (cls, _) in DATASETS.items() if (reached := evaluators_reached(cls))}
    assert set(found) == EVALUATES_TEXT, found
    assert found["countdown"] == {"parse_expr"}
    assert found["composite"] == {"score_answer of others"}
    assert inspect.getsource(DATASETS["n_queens"][0].score_answer).count("eval(answer)") == 1


GUARDED = """
import json, os, sys
from reasoning_gym.factory import DATASETS
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.tasks.gym_worker import Gym

stdout = os.dup(1)
os.dup2(2, 1)  # some datasets print
caught, generous, answerless = [], [], []
for name in sorted(set(DATASETS) - {"composite"}):
    gym = Gym(name, 0, {})
    entry = gym._entry(0)
    scores = []
    try:
        scores = [gym.score(text, entry) for text in ("1+1", "[1,2]", '["1", "2"]')]
    except UserError as error:
        assert "evaluates text" in str(error)
        caught.append(name)
    if scores and min(scores) == 1:
        generous.append(name)
    if gym._answer(entry) == "":
        answerless.append(name)
streams = [[entry[0]["question"] for entry in Gym("chain_sum", seed, {}).make(0)] for seed in (0, 1)]
os.write(stdout, json.dumps([caught, generous, answerless, streams]).encode())
"""


@pytest.mark.thorough
def test_every_dataset_in_its_worker() -> None:
    done = subprocess.run([sys.executable, "-c", GUARDED], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    caught, generous, answerless, streams = json.loads(done.stdout)
    assert set(caught) == EVALUATES_TEXT - {"composite"}
    assert generous == ["game_of_life_halting"]
    assert answerless == ["boxnet", "rush_hour"]  # as the docstring says; others tell theirs in the metadata
    assert len(set(streams[0]) & set(streams[1])) < 3  # another seed, another stream: none that is shifted by one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "countdown"}, "'countdown' is refused: its scorer evaluates text.*use the task Countdown"),
        ({"dataset": "composite"}, "'composite' is refused.*use the task Mixture"),
        ({"dataset": "n_queens"}, "'n_queens' is refused: its scorer evaluates text"),
        ({"dataset": "game_of_life_halting"}, "is refused: its scorer gives full marks for every text"),
        ({"dataset": "coin_flip"}, "'coin_flip' is refused: its scorer gives full marks for '0'"),
        ({"dataset": "complex_arithmetic"}, "is refused: its scorer gives full marks for 'nan'"),
        ({"dataset": "propositional_logic"}, "is refused: its scorer gives full marks for one formula"),
        ({"dataset": "graph_color"}, "is refused: its scorer gives full marks for one colouring"),
        ({"dataset": "chainsum"}, "no dataset 'chainsum'; did you mean 'chain_sum'"),
        ({"dataset": ""}, "has no dataset ''; available: ab, acre"),
        ({"dataset": 3}, "ReasoningGym.dataset must be a text, got 3"),
        ({"config": {"min_term": 2}}, "chain_sum has no 'min_term'; did you mean 'min_terms'"),
        ({"config": {"seed": 2}}, "must not have 'seed': set the task's own seed"),
        ({"config": {"size": 2}}, "must not have 'size': set the task's own num_pretrain"),
        ({"config": {"min_terms": -1}}, r"ReasoningGym.config of chain_sum: .*min_terms.*got \{'min_terms': -1\}"),
        ({"config": [1]}, "ReasoningGym.config must be a dict"),
        ({"seed": -1}, "ReasoningGym.seed must be an integer"),
        ({"num_train": -1}, "ReasoningGym.num_train must be"),
        ({"timeout": 0}, "ReasoningGym.timeout must be a number of seconds, above 0 and at most 3600, got 0"),
        ({"timeout": float("nan")}, "timeout must be"),
        ({"timeout": float("inf")}, "timeout must be"),
        ({"workers": 0}, "workers must be"),
        ({"prompt_suffix": 1}, "prompt_suffix must be a text"),
        ({"score_weight": 0}, "score_weight . solved_weight must be positive"),
    ],
)
def test_reasoning_gym_parameter_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReasoningGym(**{"dataset": "chain_sum", **arguments})


# ---------------------------------------------------------------- reasoning-gym: examples and scores


DELICATE = ["isomorphic_strings", "list_functions"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", DATASETS)
def test_reasoning_gym_conforms(name: str) -> None:
    task = gym(name)
    check_component(task)
    examples = [task.example(split, index) for split in task.SPLITS for index in range(30)]
    for example, score in zip(examples, task.score_many([e.answer for e in examples], examples), strict=True):
        assert score == {"score": 1, "solved": 1, "failed": 0, "reward": 1}
        assert split_of(example.prompt) == next(s for s in task.SPLITS if example in task._found[s])
    assert len({example.prompt for example in examples}) == 90
    assert task.label() == name


@pytest.mark.thorough
def test_reasoning_gym_makes_the_same_examples_in_another_process() -> None:
    code = (
        "import json, sys\n"
        "from dlmrl_kit.tasks.reasoning_gym import ReasoningGym\n"
        f"tasks = [ReasoningGym(name, **{SIZES}) for name in {DELICATE}]\n"
        "examples = lambda t: [t.example(s, i) for s in reversed(t.SPLITS) for i in range(20)]\n"
        "print(json.dumps([sorted([e.prompt, e.answer] for e in examples(t)) for t in tasks]))\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [sorted(dump(gym(name))) for name in DELICATE]


def test_reasoning_gym_scores() -> None:
    task = ReasoningGym("chain_sum", DATASETS["chain_sum"], prompt_suffix="\nAnswer:", solved_weight=1, **SIZES)
    example = task.example("train", 0)
    assert example.prompt.endswith("\nAnswer:")
    assert example.prompt.removesuffix("\nAnswer:") == gym("chain_sum").example("train", 0).prompt
    assert task.score(f"  {example.answer}.0\n", example)["solved"] == 1
    assert task.score("x", example) == {"score": 0, "solved": 0, "failed": 0, "reward": 0}
    near = task.score(f"It is {example.answer}", example)
    assert 0 < near["score"] < 1
    assert near["solved"] == 0
    assert near["reward"] == pytest.approx(near["score"] / 2)
    for completion in (None, 3, b"1"):
        assert task.score(completion, example)["reward"] == 0  # type: ignore[arg-type]


@pytest.mark.thorough
def test_reasoning_gym_bounds_the_time_of_a_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasoning_gym, "PAYS_CONSTANTS", {})
    task = ReasoningGym("coin_flip", timeout=1, **SIZES)
    example = task.example("train", 0)
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # reasoning-gym makes a Fraction of the text: a number of 10**11 digits. Memory or time ends it.
        scores = task.score_many(["1e99999999999", example.answer, "1e88888888"], [example] * 3)
    assert time.perf_counter() - start < 25
    assert [score["solved"] for score in scores] == [0, 1, 0]
    assert scores[2] == {"score": 0, "solved": 0, "failed": 1, "reward": 0}
    assert task.failures["timeout"] >= 1
    assert len([w for w in caught if "took more than 1 s" in str(w.message)]) == 1
    assert pickle.loads(pickle.dumps(task)).failures == task.failures


def test_reasoning_gym_shortage_says_why() -> None:
    class Unfit(ReasoningGym):
        max_misses = 40

        def _pool(self) -> Any:
            class Fake:
                def run(self, items: Any, timeout: float) -> Any:
                    return [["IndexError: exhausted"] * 64]

            return Fake()

    with pytest.raises(ValueError, match=r"only 0 distinct.*widen config; the last.*left out: IndexError: exhausted"):
        Unfit("chain_sum").example("train", 0)


def test_reasoning_gym_generator_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    task = ReasoningGym("zebra_puzzles")
    monkeypatch.setattr(reasoning_gym, "GENERATE_SECONDS", 0.001)
    with pytest.raises(WorkerError, match=r"making entry 0 of 'zebra_puzzles': took more than 0\.001 s"):
        task.example("train", 0)


# ---------------------------------------------------------------- reasoning-gym: what a scorer pays for


def examples_of(name: str, number: int = 50) -> tuple[ReasoningGym, list[Example]]:
    """A task and its first training examples, fewer where the dataset has no more."""
    task = ReasoningGym(name, num_pretrain=0, num_train=number, num_heldout=0)
    found: list[Example] = []
    with contextlib.suppress(ValueError):
        for index in range(number):
            found.append(task.example("train", index))
    return task, found


CONSTANTS = [
    "", " ", "0", "1", "-1", "2", "5", "10", "100", "0.5", "1/2", "1e999", "nan", "NaN", "-nan", "n a n", "nan+nanj",
    "inf", "None", "True", "False", "yes", "no", "Yes", "No", "A", "B", "?", ".", "\n", "[]", "{}", "[[]]", "[0]",
    '""', "()", "0,0", "0 days", "00:00:00", "2020-01-01", "Monday", "the", "impossible", "No solution",
    "P", "x", "LRUD" * 20, "9" * 400,
    "<answer>0</answer>", "\\boxed{0}", "\uff10",
]  # fmt: skip
LONG = ["0" * 20_000, "1 " * 10_000, "yes no " * 3_000, "\n".join(map(str, range(2_000))), "[0," * 5_000, "(" * 5_000]
JUNK = ["{} junk", "junk {}", "{}\nI think so", "junk " * 2_000 + "{}", "{}" + " junk" * 2_000]


def pays_constants(name: str) -> list[str]:
    """Texts that earn more than a constant may: constants, the prompt itself, and the answers of other examples."""
    task, examples = examples_of(name)
    answers = [example.answer for example in examples]
    counts = Counter(answer.casefold() for answer in answers)
    most = max(counts.values()) / len(answers)
    texts = [(text[:40], [text] * len(answers)) for text in [*CONSTANTS, *LONG, *dict.fromkeys(answers)]]
    texts += [
        ("the prompt", [prompt_text(example.prompt) for example in examples]),
        ("the next answer", [*answers[1:], answers[0]]),
        ("all answers", ["\n".join(dict.fromkeys(answers))] * len(answers)),
    ]
    found = []
    for text, completions in texts:
        scores = task.score_many(completions, examples)
        earned = max(sum(score[part] for score in scores) / len(scores) for part in ("score", "solved"))
        if earned > most + MARGIN:
            found.append(f"{name} pays {earned:.2f} for {text!r}, and its most frequent answer is right for {most:.2f}")
    return found


def accepts_more(name: str) -> bool:
    task, examples = examples_of(name)
    texts = [(form.replace("{}", example.answer), example) for form in JUNK for example in examples if example.answer]
    return any(score["solved"] for score in task.score_many(*zip(*texts, strict=True))) if texts else False


PARTS = 12


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_accepted_dataset_pays_a_constant(part: int) -> None:
    from reasoning_gym.factory import DATASETS

    accepted = sorted(set(DATASETS) - EVALUATES_TEXT - PAYS_CONSTANTS.keys())
    for name in accepted[part::PARTS]:
        assert pays_constants(name) == []
        assert accepts_more(name) == (name in ACCEPTS_MORE), name


@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [*PAYS_CONSTANTS, *FULL_MARKS_ONLY])
def test_what_is_refused_or_wrapped_pays_a_constant(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(reasoning_gym, "PAYS_CONSTANTS", {})
    monkeypatch.setattr(reasoning_gym, "FULL_MARKS_ONLY", {})
    assert pays_constants(name) != []


def test_entries_that_hold_fractions_arrive_from_the_worker() -> None:
    _, examples = examples_of("gsm_symbolic", 50)
    assert len(examples) == 50
    assert any("Fraction" in repr(example.meta["entry"]) for example in examples)


def test_partial_marks_that_pay_a_constant_do_not_count() -> None:
    task, examples = examples_of("rectangle_count", 10)
    scores = task.score_many([str(int(example.answer) + 1) for example in examples], examples)
    assert scores == [{"score": 0, "solved": 0, "failed": 0, "reward": 0}] * 10
    assert [score["reward"] for score in task.score_many([e.answer for e in examples], examples)] == [1] * 10
    assert task.notes() == ["only full marks count: '5' gets 0.45, for it is never far off"]


@pytest.mark.parametrize("name", ACCEPTS_MORE)
def test_tasks_say_what_their_scorer_accepts_beside_the_answer(name: str) -> None:
    notes = ReasoningGym(name).notes()
    assert notes[0] == f"its scorer gives full marks to the answer with {ACCEPTS_MORE[name]}"
    assert Mixture([ReasoningGym(name)]).notes() == [f"{name}: {note}" for note in notes]
