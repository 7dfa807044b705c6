"""Tasks scored in worker processes (reasoning-gym datasets, JSON Lines files) and mixtures of tasks."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.tasks import reward_function
from dlmrl_kit.tasks import reward_worker as worker
from dlmrl_kit.tasks.base import BaseTask, Example, component_means, split_of
from dlmrl_kit.tasks.countdown import Countdown
from dlmrl_kit.tasks.json_lines import JsonLines
from dlmrl_kit.tasks.mixture import MixedExample, Mixture
from dlmrl_kit.tasks.reasoning_gym import EVALUATES_TEXT, REWARDS_ANYTHING, ReasoningGym
from dlmrl_kit.tasks.reward_worker import Failed, WorkerError, shared
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.testing import check_component

ROOT = Path(__file__).parents[1]
SIZES = {"num_pretrain": 30, "num_train": 30, "num_heldout": 30}

FUNCTIONS = '''
import os, subprocess, sys, time

def load():
    return work

def load_not():
    raise ValueError("cannot be loaded")

def load_dead():
    os._exit(7)

def work(item):
    if item == "hang":
        time.sleep(1000)
    if item == "loop":
        while True:
            pass
    if item == "exit":
        os._exit(3)
    if item == "abort":
        os.abort()
    if item == "raise":
        raise KeyError("gone")
    if item == "quit":
        raise SystemExit(0)
    if item == "print":
        print("x" * 10**6)
        os.write(1, b"y" * 10**6)
        print("z" * 10**6, file=sys.stderr)
    if item == "read":
        return input()
    if item == "huge":
        return "x" * (80 * 2**20)
    if item == "closure":
        return lambda: 1
    if item == "memory":
        return len(bytearray(4 * 2**30))
    if item == "modules":
        return sorted({"torch", "tensordict", "reasoning_gym"} & set(sys.modules))
    if item == "pid":
        return os.getpid()
    if item == "set":
        return list({"a", "b", "c", "d", "e", "f"})
    if item == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        open(os.environ["DLMRL_TEST_CHILD"], "w").write(str(child.pid))
        time.sleep(1000)
    return item


def length(completion, example):
    """Digits of the answer that are right, and whether it is short."""
    if completion == "hang":
        time.sleep(1000)
    if completion == "exit":
        os._exit(5)
    if completion == "raise":
        raise RuntimeError("not scored")
    if completion == "other":
        return {"right": 1.0}
    if completion == "not a number":
        return {"right": float("nan"), "short": 1.0}
    if completion == "text":
        return {"right": "1", "short": 1.0}
    if completion == "large":
        return {"right": 3.0, "short": -1.0}
    return {"right": float(completion == example.answer), "short": float(len(completion) < example.meta["limit"])}


def exact(completion, example):
    return completion == example.answer


def first_word(completion, example):
    return float(completion.split()[0] == example.answer)


class Scores:
    @staticmethod
    def half(completion, example):
        return {"reward": 0.5, "solved": 1}


NUMBER = 3
'''


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A module of scorers that misbehave."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "kit_test_scorers.py").write_text(FUNCTIONS)
    (folder / "kit_test_broken.py").write_text("import kit_test_no_such_module\n")
    sys.path.insert(0, str(folder))
    import kit_test_scorers

    yield kit_test_scorers
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def numbers_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "numbers.jsonl"
    lines = [json.dumps({"prompt": f"{n}+{n}=", "answer": str(2 * n), "limit": 4, "n": n}) for n in range(50)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def run(pool: worker.Pool, *items: Any, timeout: float = 20) -> list[Any]:
    return [f"{r.kind}: {r.message}" if isinstance(r, Failed) else r for r in pool.run(items, timeout)]


def gone(pid: int) -> bool:
    """Whether a process ends within a few seconds."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


# ---------------------------------------------------------------- worker processes


def test_results_and_one_process_for_many_items(functions: ModuleType) -> None:
    pool = shared(functions.load)
    assert run(pool) == []
    assert run(pool, 1, "a", None, [1], {"x": (1, 2)}, "\ud800", b"x" * 10**6) == [
        1, "a", None, [1], {"x": (1, 2)}, "\ud800", b"x" * 10**6
    ]  # fmt: skip
    assert len(set(run(pool, "pid", "pid") + run(pool, "pid"))) == 1
    assert run(pool, "pid")[0] != os.getpid()
    assert run(pool, "modules") == [[]]
    assert shared(functions.load) is pool
    assert shared(functions.load, 2) is not pool


@pytest.mark.parametrize(
    ("item", "result"),
    [
        ("hang", "timeout: took more than 0.5 s"),
        ("loop", "timeout: took more than 0.5 s"),
        ("exit", "crash: the worker process ended with exit code 3"),
        ("abort", "crash: the worker process was ended by signal 6"),
        ("raise", "error: KeyError: 'gone'"),
        ("quit", "error: SystemExit: 0"),
        ("print", "print"),
        ("read", "error: EOFError: EOF when reading a line"),
    ],
)
def test_items_that_misbehave_harm_no_other(functions: ModuleType, item: str, result: str) -> None:
    pool = shared(functions.load)
    run(pool, "warm")
    start = time.perf_counter()
    # Only what is meant to take too long may run into the short limit on a busy machine.
    limit = 0.5 if result.startswith("timeout") else 20
    assert run(pool, item, timeout=limit) == [result]
    assert time.perf_counter() - start < 10
    assert run(pool, 1, item, 2)[::2] == [1, 2] if not result.startswith("timeout") else run(pool, 1) == [1]


def test_results_that_cannot_be_sent(functions: ModuleType) -> None:
    huge, closure, after = run(shared(functions.load), "huge", "closure", 1)
    assert huge.startswith("error: a result of 838")
    assert "local object" in closure
    assert after == 1


def test_memory_is_limited(functions: ModuleType) -> None:
    if sys.platform != "linux":
        pytest.skip("no limit of address space")
    assert run(shared(functions.load, memory=2 * 2**30), "memory", 1) == ["error: MemoryError:", 1]


def test_several_workers_keep_the_order_and_share_the_wait(functions: ModuleType) -> None:
    pool = shared(functions.load, 3)
    run(pool, 1, 2, 3)
    start = time.perf_counter()
    results = run(pool, "hang", 1, "hang", 2, "hang", 3, timeout=2)
    late = "timeout: took more than 2 s"
    assert results == [late, 1, late, 2, late, 3]
    assert time.perf_counter() - start < 5.5  # 6 s one after another
    assert run(pool, *range(50)) == list(range(50))
    pool.close()
    assert run(pool, 1, 2) == [1, 2]
    pool.close()


def test_the_order_of_sets_does_not_depend_on_the_process(functions: ModuleType) -> None:
    pool = shared(functions.load)
    first = run(pool, "set")
    pool.close()
    assert run(pool, "set") == first


def test_functions_that_cannot_be_loaded(functions: ModuleType) -> None:
    for load, message in (
        (functions.load_not, r"the scorer cannot be loaded: ValueError: cannot be loaded\nTraceback(.|\n)*load_not"),
        (functions.load_dead, "the scorer cannot be loaded: the worker process ended with exit code 7"),
    ):
        with pytest.raises(WorkerError, match=message):
            shared(load).run([1], 20)
    assert issubclass(WorkerError, UserError)


def test_what_a_scorer_started_ends_with_it(
    functions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLMRL_TEST_CHILD", str(tmp_path / "pid"))
    pool = shared(functions.load, memory=2**40)  # a pool of its own: the environment is read at the start
    run(pool, 1)
    assert run(pool, "child", timeout=2)[0].startswith("timeout")
    assert gone(int((tmp_path / "pid").read_text()))


def test_ctrl_c_does_not_mix_up_replies(functions: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = shared(functions.load)
    run(pool, 1)

    class Interrupted:
        def get(self, timeout: float) -> bytes:
            raise KeyboardInterrupt

        def put(self, message: bytes | None) -> None: ...

    monkeypatch.setattr(pool._workers[0], "_replies", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        pool.run(["late"], 20)
    assert run(pool, "next") == ["next"]


def test_least_used_pools_give_way(functions: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_POOLS", 1)
    first = shared(functions.load)
    (pid,) = run(first, "pid")
    shared(functions.load, 2)
    assert gone(pid)
    assert run(first, 1) == [1]  # a task that still holds it goes on
    first.close()


def test_no_process_outlives_its_parent(functions: ModuleType) -> None:
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(str(functions.__file__))!r})\n"
        "import os, signal, kit_test_scorers\n"
        "from dlmrl_kit.tasks.reward_worker import shared\n"
        "pool = shared(kit_test_scorers.load)\n"
        "print(*pool.run(['pid'], 20), flush=True)\n"
        "if len(sys.argv) > 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.fork() == 0:\n"
        "    print(*shared(kit_test_scorers.load).run(['pid'], 20), flush=True)\n"
        "    sys.exit()\n"
        "os.wait(); print(*pool.run(['pid'], 20))\n"
    )
    for arguments in ([], ["kill"]):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True, timeout=60
        )
        pids = [int(word) for word in done.stdout.split()]
        assert done.stderr == ""
        assert done.returncode == (-signal.SIGKILL if arguments else 0)
        if not arguments:  # the fork has a worker of its own
            assert len(pids) == 3
            assert pids[0] == pids[2] != pids[1]
        assert all(map(gone, pids))


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
streams = [[puzzle[0]["question"] for puzzle in Gym("chain_sum", seed, {}).puzzles(0)] for seed in (0, 1)]
os.write(stdout, json.dumps([caught, generous, answerless, streams]).encode())
"""


def test_every_dataset_in_its_worker() -> None:
    done = subprocess.run([sys.executable, "-c", GUARDED], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    caught, generous, answerless, streams = json.loads(done.stdout)
    assert set(caught) == EVALUATES_TEXT - {"composite"}
    assert set(generous) == REWARDS_ANYTHING
    assert answerless == ["boxnet", "rush_hour"]  # as the docstring says; others tell theirs in the metadata
    assert len(set(streams[0]) & set(streams[1])) < 3  # another seed, another stream: none that is shifted by one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "countdown"}, "'countdown' is refused: its scorer evaluates text.*use the task Countdown"),
        ({"dataset": "composite"}, "'composite' is refused.*use the task Mixture"),
        ({"dataset": "n_queens"}, "'n_queens' is refused: its scorer evaluates text"),
        ({"dataset": "game_of_life_halting"}, "is refused: its scorer gives full marks to any text"),
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


# ---------------------------------------------------------------- reasoning-gym: puzzles and scores


DATASETS = {
    "chain_sum": {"min_terms": 2, "max_terms": 3},
    "isomorphic_strings": {},  # depends on the order of sets
    "list_functions": {},  # draws from Python's global generator, and ends after `size` puzzles
}


DELICATE = ["isomorphic_strings", "list_functions"]


@functools.cache
def gym(name: str) -> ReasoningGym:
    return ReasoningGym(name, DATASETS.get(name), **SIZES)


def dump(task: BaseTask, number: int = 20) -> list[Any]:
    examples = [task.example(split, index) for split in task.SPLITS for index in range(min(number, task.size(split)))]
    return [[example.prompt, example.answer] for example in examples]


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


def test_reasoning_gym_makes_the_same_puzzles_in_another_process() -> None:
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


def test_reasoning_gym_bounds_the_time_of_a_scorer() -> None:
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
    from dlmrl_kit.tasks import reasoning_gym

    task = ReasoningGym("zebra_puzzles")
    monkeypatch.setattr(reasoning_gym, "GENERATE_SECONDS", 0.001)
    with pytest.raises(WorkerError, match=r"making puzzle 0 of 'zebra_puzzles': took more than 0\.001 s"):
        task.example("train", 0)


# ---------------------------------------------------------------- JSON Lines


def test_json_lines_splits_and_scores(functions: ModuleType, numbers_file: str) -> None:
    task = JsonLines(numbers_file, "kit_test_scorers:length", {"right": 0.8, "short": 0.2}, timeout=20)
    assert task.label() == "numbers"
    prompts = [f"{n}+{n}=" for n in range(50)]
    for split in task.SPLITS:
        mine = [task.example(split, index) for index in range(task.size(split))]
        assert [example.prompt for example in mine] == [p for p in prompts if split_of(p) == split]
        assert all(example.answer == str(2 * example.meta["n"]) for example in mine)
    example = task.example("train", 0)
    full = {"right": 1, "short": 1, "reward": 1, "solved": 1, "failed": 0}
    assert task.score(example.answer, example) == full
    assert task.score("12345", example) == {**full, "right": 0, "short": 0, "reward": 0, "solved": 0}
    assert task.score("1", example)["reward"] == pytest.approx(0.2)
    copied = pickle.loads(pickle.dumps(task))
    assert dump(copied) == dump(task)
    assert copied.score(example.answer, example) == full
    check_component(task)


def test_json_lines_bad_calls_are_zero_counted_and_warned_of_once(functions: ModuleType, numbers_file: str) -> None:
    task = JsonLines(numbers_file, "kit_test_scorers:length", {"right": 1}, timeout=1, workers=2)
    example = task.example("train", 0)
    bad = ["hang", "exit", "raise", "other", "not a number", "text"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = task.score_many([*bad, "large", example.answer], [example] * 8)
        assert task.score("raise", example)["failed"] == 1
    zero = {"right": 0, "short": 0, "reward": 0, "solved": 0, "failed": 1}
    assert scores[:6] == [zero] * 6
    assert scores[6] == {"right": 1, "short": 0, "reward": 1, "solved": 1, "failed": 0}
    assert scores[7]["solved"] == 1
    assert task.failures == Counter(error=5, timeout=1, crash=1)
    messages = sorted(str(warning.message) for warning in caught)
    assert len(messages) == 4
    assert any("exit code 5" in message for message in messages)
    assert any("RuntimeError: not scored" in message and "line" in message for message in messages)
    assert any("returned right = 3; components are clipped" in message for message in messages)


def test_json_lines_rewards_of_one_number(functions: ModuleType, numbers_file: str) -> None:
    task = JsonLines(numbers_file, "kit_test_scorers:exact", timeout=20)
    example = task.example("heldout", 0)
    assert task.score(example.answer, example) == {"reward": 1, "solved": 1, "failed": 0}
    assert task.score("", example) == {"reward": 0, "solved": 0, "failed": 0}
    half = JsonLines(numbers_file, "kit_test_scorers:Scores.half", timeout=20)
    assert half.score("", example) == {"reward": 0.5, "solved": 1, "failed": 0}


@pytest.mark.parametrize(
    ("reward", "weights", "message"),
    [
        ("kit_test_scorers:exakt", None, "no function 'exakt' in kit_test_scorers; did you mean 'exact'"),
        ("kit_test_scorers:Scores.whole", None, "no function 'whole' in kit_test_scorers.Scores; .*half"),
        ("kit_test_scorers:NUMBER", None, "kit_test_scorers:NUMBER is no function, but int 3"),
        ("kit_test_broken:f", None, "No module named 'kit_test_no_such_module'\n(.|\n)*kit_test_broken.py"),
        ("dlmrl_kit.tasks.arithmatic:f", None, "no module named 'dlmrl_kit.tasks.arithmatic'.*mean 'arithmetic'"),
        ("kit_test_scorers:first_word", None, "fails on an empty completion: IndexError.*\n(.|\n)*first_word"),
        ("kit_test_scorers:length", None, "no component 'reward' .return it, or set JsonLines.weights.*right, short"),
        ("kit_test_scorers:length", {"rigth": 1}, "no component 'rigth' .JsonLines.weights.*did you mean 'right'"),
        ("kit_test_scorers:work", None, "empty completion: TypeError: work.. takes 1 positional argument"),
    ],
)
def test_reward_functions_that_do_not_work_end_the_run(
    functions: ModuleType, numbers_file: str, reward: str, weights: Any, message: str
) -> None:
    task = JsonLines(numbers_file, reward, weights, timeout=20)
    with pytest.raises(WorkerError, match=message):
        task.score("1", task.example("train", 0))


def test_the_reward_module_is_imported_in_the_worker_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "imported"
    Path("kit_test_local.py").write_text(f"open({str(marker)!r}, 'a').write('x')\nreward = lambda text, example: 1\n")
    Path("one.jsonl").write_text('{"prompt": "a", "split": "train"}')
    task = JsonLines("one.jsonl", "kit_test_local:reward", timeout=20)  # found in the current folder
    assert not marker.exists()
    assert task.score("", task.example("train", 0))["reward"] == 1
    assert marker.read_text() == "x"
    assert "kit_test_local" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("length", "written 'module:function', got 'length'"),
        ("a:b:c", "written 'module:function'"),
        ("os.system('x'):f", "written 'module:function'"),
        (None, "written 'module:function', got None"),
        ("__main__:f", "main script"),
        ("kit_test_scorer:f", "no module named 'kit_test_scorer' .*did you mean 'kit_test_scorers'.*current folder"),
    ],
)
def test_names_of_reward_functions(functions: ModuleType, numbers_file: str, name: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward_function.check_name(name)
    with pytest.raises(ValueError, match=rf"JsonLines\.reward: .*{message}"):
        JsonLines(numbers_file, name)


GOOD = '{"prompt": "a", "answer": "b"}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"data\.jsonl has no puzzles; write one JSON object"),
        (["", "  "], "has no puzzles"),
        ([GOOD, "{"], r"data\.jsonl:2: not JSON: .* at column 2"),
        ([GOOD, "", "[1]"], r":3: a line must be an object with a 'prompt', got a list"),
        (["3"], r":1: a line must be an object with a 'prompt', got a number"),
        (['{"promt": "a"}'], r":1: no field 'prompt'; did you mean 'promt'"),
        (["{}"], r":1: no field 'prompt'; it is empty"),
        (['{"prompt": 1}'], r":1: 'prompt' must be a text, got a number"),
        (['{"prompt": ""}'], r":1: 'prompt' is empty"),
        (['{"prompt": "a", "answer": null}'], r":1: 'answer' must be a text, got null"),
        (['{"prompt": "a", "split": "test"}'], r":1: no split 'test'; available: heldout, pretrain, train"),
        (['{"prompt": "a", "split": 1}'], r":1: no split 1"),
        ([GOOD, '{"prompt": "c", "split": "train"}'], r":2: either all lines have a 'split' or none"),
        (
            ['{"prompt": "a", "split": "train"}', GOOD.replace("}", ', "split": "heldout"}')],
            r":2: the prompt of line 1, which is in train, is in heldout here",
        ),
        (["[" * 100000], r":1: n"),
        ([b"\xff"], r":1: not UTF-8"),
    ],
)
def test_json_lines_malformed_files(functions: ModuleType, tmp_path: Path, lines: list[Any], message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    with pytest.raises(ValueError, match=rf"JsonLines.path: .*{message}"):
        JsonLines(str(path), "kit_test_scorers:exact")


def test_json_lines_explicit_splits_and_duplicates(functions: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [{"prompt": f"p{n % 6}", "split": "heldout" if n % 6 == 5 else "train", "x": n} for n in range(12)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, lines)).encode())
    task = JsonLines(str(path), "kit_test_scorers:exact")
    assert [task.size(split) for split in task.SPLITS] == [0, 5, 1]
    assert task.example("heldout", 0) == Example("p5", "", {"x": 5})
    for index in (-1, 5):
        with pytest.raises(IndexError, match="has 5 examples"):
            task.example("train", index)
    with pytest.raises(ValueError, match=r"JsonLines\.split must be one of"):
        task.example("test", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "/no/such.jsonl"}, "JsonLines.path '/no/such.jsonl' cannot be read: No such file"),
        ({"path": "/"}, "cannot be read: Is a directory"),
        ({"path": ""}, "JsonLines.path must be"),
        ({"weights": {"a": -1}}, r"JsonLines.weights\['a'\] must be a finite number"),
        ({"weights": {}}, "must be positive"),
        ({"weights": [1]}, "JsonLines.weights must be a dict"),
        ({"timeout": -1}, "JsonLines.timeout must be"),
        ({"workers": 1.5}, "JsonLines.workers must be"),
    ],
)
def test_json_lines_parameter_errors(
    functions: ModuleType, numbers_file: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        JsonLines(**{"path": numbers_file, "reward": "kit_test_scorers:exact", **arguments})


# ---------------------------------------------------------------- mixtures


def mixture(**arguments: Any) -> Mixture:
    return Mixture([Sudoku4x4(**SIZES), Countdown(**SIZES)], **arguments)


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [0.2, 0.8], [1, 2, 4], [5, 0, 1]])
def test_every_beginning_of_a_mixture_has_its_shares(weights: list[float]) -> None:
    tasks = [Sudoku4x4(num_train=10), Countdown(num_train=10), Sudoku4x4(seed=1, num_train=10)][: len(weights)]
    task = Mixture(tasks, weights, num_train=200)
    names = list(task.tasks)
    counts: Counter[str] = Counter()
    for index in range(200):
        example = task.example("train", index)
        name = example.meta["task"]
        assert example.source == task.tasks[name].example("train", counts[name] % 10)
        counts[name] += 1
        for other, weight in zip(names, weights, strict=True):
            assert abs(counts[other] - weight / sum(weights) * (index + 1)) <= 1.01
    assert task.example("train", 7) == Mixture(tasks, weights, num_train=200).example("train", 7)


def test_sizes_of_a_mixture() -> None:
    tasks = [
        Sudoku4x4(num_pretrain=30, num_train=0, num_heldout=30),
        Countdown(num_pretrain=10, num_train=5, num_heldout=10),
    ]
    task = Mixture(tasks)
    # They alternate, Sudoku first: its example 30 is at position 58, Countdown's example 11 would be at 21.
    assert [task.size(split) for split in task.SPLITS] == [59, 5, 21]
    prompts = {s: [task.example(s, index).prompt for index in range(task.size(s))] for s in task.SPLITS}
    assert [len(set(prompts[split])) for split in task.SPLITS] == [40, 5, 21]
    assert {task.example("train", index).meta["task"] for index in range(5)} == {"Countdown"}
    assert Mixture(tasks, [3, 1]).size("pretrain") == 40  # every example once
    assert Mixture(tasks, num_heldout=7).size("heldout") == 7
    assert Mixture([Countdown(num_train=0)]).size("train") == 0
    with pytest.raises(IndexError, match="Mixture: split 'train' has 5 examples"):
        task.example("train", 5)
    with pytest.raises(ValueError, match=r"Mixture\.split must be one of"):
        task.size("test")


def test_a_mixture_scores_each_example_by_its_own_task() -> None:
    task = mixture()
    examples = [task.example("train", index) for index in range(6)]
    answers = [example.answer for example in examples]
    scores = task.score_many(answers, examples)
    assert scores == [task.score(answer, example) for answer, example in zip(answers, examples, strict=True)]
    own = {"Sudoku4x4": {"format", "cells", "solved", "reward"}, "Countdown": {"format", "solved", "reward"}}
    for example, score in zip(examples, scores, strict=True):
        name = example.meta["task"]
        assert set(score) == {"reward", "solved"} | {f"{name}/{component}" for component in own[name]}
        assert set(score.values()) == {1}
        plain = Example(example.prompt, example.answer, example.meta)
        assert task.score(example.answer, plain) == score
        assert task.canonical(example) == task.tasks[name].canonical(example.source)
    assert {example.meta["task"] for example in examples} == set(own)
    assert "numbers" in next(e for e in examples if e.meta["task"] == "Countdown").meta


def test_component_means_are_over_the_samples_that_have_a_component() -> None:
    scores = [
        {"reward": 1.0, "solved": 1.0, "a/x": 0.5},
        {"reward": 0.0, "solved": 0.0, "b/x": 0.25},
        {"reward": 0.5, "solved": 0.5, "a/x": 0.0},
    ]
    assert component_means(scores) == {"reward": 0.5, "solved": 0.5, "a/x": 0.25, "b/x": 0.25}
    assert component_means([]) == {}


def test_mixtures_of_everything(functions: ModuleType, numbers_file: str) -> None:
    file = JsonLines(numbers_file, "kit_test_scorers:exact", timeout=20)
    task = Mixture([gym("chain_sum"), file, mixture(), Sudoku4x4(seed=5, **SIZES), Sudoku4x4(**SIZES)])
    assert list(task.tasks) == ["chain_sum", "numbers", "Mixture", "Sudoku4x4", "Sudoku4x4_2"]
    examples = [task.example("heldout", index) for index in range(10)]
    scores = task.score_many([example.answer for example in examples], examples)
    assert [score["solved"] for score in scores] == [1] * 10
    assert {"chain_sum/failed", "numbers/reward", "Mixture/Sudoku4x4/cells"} <= set().union(*scores)
    copied = pickle.loads(pickle.dumps(task))
    assert [copied.example("heldout", index) for index in range(10)] == examples
    assert isinstance(examples[0], MixedExample)


def test_mixtures_conform() -> None:
    check_component(mixture())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": []}, "Mixture.tasks must be a list of tasks"),
        ({"tasks": Countdown()}, "Mixture.tasks must be a list of tasks"),
        ({"tasks": [Countdown]}, r"Mixture.tasks\[0\] must be a task, in a recipe @Name\(\) with brackets"),
        ({"tasks": [3]}, r"Mixture.tasks\[0\] must be a task"),
        ({"weights": [1]}, "Mixture.weights must be a list of 2 numbers"),
        ({"weights": 1}, "Mixture.weights must be a list of 2 numbers"),
        ({"weights": [1, -1]}, r"Mixture.weights\[1\] must be a finite number"),
        ({"weights": [0, 0]}, "must be positive"),
        ({"num_train": -1}, "Mixture.num_train must be an integer"),
        ({"tasks": [Countdown(num_train=0)], "num_train": 3}, "num_train must be 0: no task .* has examples in train"),
    ],
)
def test_mixture_parameter_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(**{"tasks": [Sudoku4x4(), Countdown()], **arguments})


def test_weights_that_are_far_apart_need_a_size() -> None:
    task = Mixture([Sudoku4x4(), Countdown()], [1, 1e-9])
    with pytest.raises(ValueError, match=r"Mixture\.num_train must be set"):
        task.size("train")
    assert Mixture([Sudoku4x4(), Countdown()], [1, 1e-9], num_train=100).size("train") == 100


# ---------------------------------------------------------------- recipes


def test_recipes_with_mixtures(functions: ModuleType, numbers_file: str, tmp_path: Path) -> None:
    sets = [
        "Algorithm.task = @Mixture()",
        "Mixture.tasks = [@easy/Sudoku4x4(), @Countdown(), @JsonLines(), @ReasoningGym()]",
        "Mixture.weights = [1, 2, 1, 1]",
        "easy/Sudoku4x4.max_empty = 6",
        f"JsonLines.path = {numbers_file!r}",
        "JsonLines.reward = 'kit_test_scorers:length'",
        "JsonLines.weights = {'right': 1.0}",
        "ReasoningGym.dataset = 'chain_sum'",
        "ReasoningGym.config = {'max_terms': 3}",
    ]
    loaded = load_recipe("egspo", sets=sets)
    task = loaded.build().task
    assert isinstance(task, Mixture)
    assert list(task.tasks) == ["Sudoku4x4", "Countdown", "numbers", "chain_sum"]
    assert task.tasks["Sudoku4x4"].max_empty == 6
    assert task.weights["Countdown"] == 2
    path = tmp_path / "resolved.gin"
    path.write_text(loaded.text())
    assert load_recipe(path).text(header=False) == loaded.text(header=False)
    with pytest.raises(RecipeError, match=r"ReasoningGym.dataset.*'countdown' is refused"):
        load_recipe("egspo", sets=[*sets, "ReasoningGym.dataset = 'countdown'"]).build()
    with pytest.raises(RecipeError, match=r"ReasoningGym.dataset .* is required"):
        load_recipe("egspo", uses=["task=ReasoningGym"])


def test_modules_of_tasks_are_cheap_to_import() -> None:
    code = (
        "import sys\n"
        "from dlmrl_kit.tasks import json_lines, mixture, reasoning_gym\n"
        "assert not {'torch', 'tensordict', 'reasoning_gym', 'sympy', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)
