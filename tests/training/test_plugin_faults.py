"""Faults of plugins, for every kind: one line that names component, package, version and method, and a traceback."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.plugin_faults import FAULTS, OTHERS, PLACES, Place, applies, faulty, faulty_recipe
from tensordict import TensorDict

from dlmrl_kit.algorithm.bases import BASE_CLASSES
from dlmrl_kit.core import blame
from dlmrl_kit.core.errors import ComponentError, RecipeError, RegistryError, UserError
from dlmrl_kit.core.registry import KINDS, register
from dlmrl_kit.loggers.base import Logger
from dlmrl_kit.loggers.metrics_csv import MetricsCSV
from dlmrl_kit.loggers.tensorboard import TensorBoard
from dlmrl_kit.pretraining.run import pretrain
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.margin_order import MarginOrder
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.training.runs import train

pytestmark = pytest.mark.usefixtures("registrations_end")

SEEN_AT_BUILD = ("takes nothing", "takes one more", "is no method")
CASES = [(place, fault) for place in PLACES for fault in FAULTS if applies(place, fault)]
IDS = [f"{place.kind}-{place.base.__name__}.{place.method}-{fault}" for place, fault in CASES]
FIRST = {place.kind: number for number, place in reversed(list(enumerate(PLACES)))}
"""The first place of each kind."""
QUICK = [
    next((PLACES[i], f) for f in [*FAULTS[5 + n % 7 :], *FAULTS] if applies(PLACES[i], f))
    for n, i in enumerate(FIRST.values())
]
"""One case of each kind, with faults in turn."""
SAME_PATH = {"a number", "a text", "a list", "an empty dict", "an object", "one row less", "takes nothing"}
"""Faults that are found as others are: what is no tensor as None is, for example."""


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blame, "distribution_of", lambda package: "acme-steps 0.2")


def run(place: Place, cls: type, folder: Path, sets: list[str] | None = None) -> None:
    recipe = faulty_recipe(place, cls, sets or ())
    (pretrain if place.name.startswith("pretrain") else train)(recipe, folder)


def check(place: Place, fault: str, folder: Path) -> None:
    cls = faulty(place, fault)
    with pytest.raises(UserError) as info:
        run(place, cls, folder)
    line = str(info.value)
    assert cls.__name__ in line
    assert "acme-steps 0.2" in line
    assert "may be in what" not in line
    assert "\n" not in line
    if fault in SEEN_AT_BUILD:
        assert isinstance(info.value, RecipeError)
        assert not folder.exists()
    elif isinstance(info.value, ComponentError) and folder.exists():
        assert line.endswith(f"; the traceback is in {folder / 'traceback.txt'}")
        assert "Traceback" in (folder / "traceback.txt").read_text()
    # tensordict and torchrl refuse some of what forward does before the kit sees it: the component has raised then.
    if fault not in ("raises", "exits") and place.method != "forward":
        told = (f"{place.method} ", f"{place.method}(", "writes", "forward", "returns")
        assert any(word in line for word in told)


@pytest.mark.parametrize(("place", "fault"), QUICK, ids=[f"{place.kind}-{fault}" for place, fault in QUICK])
def test_a_fault_of_every_kind_names_the_component(place: Place, fault: str, tmp_path: Path) -> None:
    check(place, fault, tmp_path / "run")


@pytest.mark.thorough
@pytest.mark.parametrize(("place", "fault"), [case for case in CASES if case[1] not in SAME_PATH])
def test_every_fault_of_every_kind_names_the_component(place: Place, fault: str, tmp_path: Path) -> None:
    check(place, fault, tmp_path / "run")


WHOLE = ("normaliser", "schedule", "prompt", "reward")
"""Kinds whose recipes are whole with the settings of their place alone."""


def test_every_kind_is_attacked() -> None:
    assert {place.kind for place in [*PLACES, *OTHERS]} == {*KINDS}


# ------------------------------------------------------------------------------------------------------ numbers


def altered(base: type, method: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    original = getattr(base, method)
    return {method: lambda self, *given, **named: change(original(self, *given, **named))}


def with_nan(value: Any) -> Any:
    return value * math.nan


def in_total(change: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    return lambda result: change(*result)


NUMBERS: dict[str, tuple[str, str, Callable[[Any], Any], str]] = {
    "advantage": ("advantage", "estimate", with_nan, "'advantage' has NaN or infinite values, although what"),
    "weights": ("selector", "choose", lambda r: (r[0], r[1] / 0), r"\('selected', 'weight'\) has NaN or infinite"),
    "loss": ("loss", "total", in_total(lambda t, d: (t * math.nan, d)), "'loss_objective' has NaN or infinite"),
    "detached": ("loss", "total", in_total(lambda t, d: (t.detach(), d)), "returns a loss without gradient"),
    "an extra key": ("loss", "total", in_total(lambda t, d: (t, {**d, "odd": t})), "returns 'odd', which is not in"),
    "a missing key": (
        "loss",
        "total",
        in_total(lambda t, d: (t, {})),
        "does not return '.*', which is in its",
    ),
    "no number": ("loss", "total", in_total(lambda t, d: (t, dict.fromkeys(d, "many"))), "total returned 'many' as"),
    "share": ("normaliser", "shares", with_nan, "'loss_objective' has NaN or infinite values"),
    "lambda": ("schedule", "__call__", lambda r: torch.where(r > 0.3, r, torch.nan), "OneStepDenoise.lam must be"),
    "a score": ("task", "score", lambda r: {**r, "reward": math.inf}, "score returned reward = inf"),
    "no score": ("task", "score", lambda r: {**r, "solved": None}, "score returned solved = None"),
    "a component": ("task", "score", lambda r: {**r, "more": "1"}, "score returned more = '1', which is no finite"),
    "no name": ("task", "score", lambda r: {**r, 3: 1.0}, "components are named by texts, not by 3"),
    "a prompt": ("task", "example", lambda r: Example(5, r.answer), "example returned an Example of the prompt 5"),
    "an answer": ("task", "example", lambda r: Example(r.prompt, None), "its answer should be a text"),
    "a size": ("task", "size", lambda r: -1, "size returned -1; it should be a whole number, at least 0"),
    "unsure": ("demonstrator", "demonstrations", lambda r: [(t, 0.3) for t, _ in r], r"probabilities \[0.3\]; they"),
    "a loss": ("pretrainer", "objective", lambda r: r.detach(), "objective returned .* without gradient"),
}


QUICK_NUMBERS = ("weights", "detached", "a score", "unsure")


@pytest.mark.parametrize(
    "what", [what if what in QUICK_NUMBERS else pytest.param(what, marks=pytest.mark.thorough) for what in NUMBERS]
)
def test_numbers_that_are_none_name_the_component(what: str, tmp_path: Path) -> None:
    kind, method, change, message = NUMBERS[what]
    place = next(place for place in PLACES if place.kind == kind and (place.method == method or method == "choose"))
    members = {"__module__": __name__, **altered(place.base, method, change)}
    cls = register(kind)(type(f"Faulty{kind.title()}", (place.base,), members))
    with pytest.raises(UserError, match=message) as info:
        run(place, cls, tmp_path / "run")
    assert what == "lambda" or f"{cls.__name__}" in str(info.value)


# ------------------------------------------------------------------------------------------------ what is built


ATTRIBUTES: list[tuple[str, str, Any]] = [
    ("sampler", "max_steps", "many"),
    ("sampler", "records_tokens", "yes"),
    ("selector", "nested", "yes"),
    ("selector", "segments", 2.5),
    ("filter", "learning_rate", "high"),
    ("advantage", "not_sizes", 3),
    ("likelihood", "redraw", 0.5),
    ("likelihood", "recorded", None),
    ("value", "requires", None),
    ("correction", "single_steps", None),
    ("cache", "to_end", "no"),
    ("loss", "factor", "1"),
    ("regulariser", "mean_key", 3),
    ("normaliser", "segmentwise", "yes"),
    ("task", "main_thread", "no"),
    ("task", "in_order", "train"),
    ("trainer", "precision", 16),
    ("pretrainer", "precision", None),
]


@pytest.mark.parametrize(("kind", "name", "value"), ATTRIBUTES)
def test_an_attribute_of_another_type_is_refused_at_build(kind: str, name: str, value: Any) -> None:
    place = next(place for place in [*PLACES, *OTHERS] if place.kind == kind)
    members: dict[str, Any] = {name: value, "__module__": __name__}
    if name in ("precision", "factor", "mean_key", "redraw"):  # of instances

        def construct(self: Any, *given: Any, **named: Any) -> None:
            place.base.__init__(self, *given, **named)  # type: ignore[misc]
            setattr(self, name, value)

        members = {"__init__": construct, "__module__": __name__}
    cls = register(kind)(type("Odd", (place.base,), members))
    with pytest.raises(UserError, match=rf"Odd.*acme-steps 0\.2.*{name} is .*; it should be|NoneType"):
        cls() if kind == "trainer" else faulty_recipe(place, cls).build()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("trainer", "cache", "sampler")])
def test_a_class_that_implements_nothing_is_refused_at_build(kind: str) -> None:
    place = next(place for place in PLACES if place.kind == kind)
    sets = ({"step_schedule": place.sets[:1]} | dict.fromkeys(WHOLE, place.sets)).get(kind, ())
    cls = register(kind)(type("Empty", (BASE_CLASSES[kind],), {"__module__": __name__}))
    with pytest.raises(UserError, match=r"Empty.*(abstract|implements none of|not set)"):
        faulty_recipe(place._replace(sets=sets), cls).build()


def test_samplers_that_implement_nothing_are_refused_at_build() -> None:
    for base in (LowConfidence, MarginOrder):
        parent = next(cls for cls in base.__mro__[1:] if cls.__name__ in ("MaskSampler", "StateScoreSampler"))
        cls = register("sampler")(type(f"Empty{parent.__name__}", (parent,), {"__module__": __name__}))
        with pytest.raises(TypeError, match=r"abstract|implements none of the methods scores, committed, decide"):
            cls(4)


@pytest.mark.parametrize("claims", [{"unbiased": "yes"}, {"scale": 2}, {"under": None}, {"paper": 5}])
def test_claims_of_another_type_are_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(RegistryError, match="unbiased should be True, False or None, and the others texts"):
        register("logger", **claims)(type("Claims", (MetricsCSV,), {"__module__": __name__}))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", FIRST)
def test_what_is_right_passes(kind: str, tmp_path: Path) -> None:
    """Classes that define a method again and change nothing run to their end."""
    place = PLACES[FIRST[kind]]
    members = {"__module__": __name__, **altered(place.base, place.method, lambda result: result)}
    run(place, register(place.kind)(type("Right", (place.base,), members)), tmp_path / "run")
    assert (tmp_path / "run" / "result.json").is_file()


# --------------------------------------------------------------------------------------------------- loggers, threads


def test_every_logger_is_closed_and_the_first_error_told(tmp_path: Path) -> None:
    closed = []

    def close(self: Any) -> None:
        closed.append(type(self).__name__)
        raise ValueError("close")

    def nothing(self: Any, first: Any, second: Any) -> None: ...

    for name in ("One", "Two"):
        members = {"open": nothing, "log": nothing, "close": close, "__module__": __name__}
        register("logger")(type(name, (Logger,), members))
    place = next(place for place in PLACES if place.kind == "logger")
    with pytest.raises(ComponentError, match=r"(One|Two) of .* failed with ValueError: close"):
        run(place._replace(uses=("logger=One+Two",)), type("None", (), {}), tmp_path / "run")
    assert closed == ["Two", "One"]


def test_a_thread_that_a_full_disk_ends_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    place = next(place for place in PLACES if place.kind == "logger")
    before = threading.excepthook
    with pytest.raises(UserError, match=r"TensorBoard cannot write metrics into .*: No space left on device"):
        run(place, TensorBoard, tmp_path / "run")
    assert threading.excepthook is before
    assert "Traceback" not in "".join(capfd.readouterr())


def test_padding_may_hold_anything() -> None:
    from dlmrl_kit.training.not_finite import blame_term

    cls = register("loss")(type("Padded", (PLACES[[p.base.__name__ for p in PLACES].index("StepPPO")].base,), {}))
    weight = torch.tensor([[1.0, 0.0]])
    selected = {"weight": weight, "log_prob": torch.tensor([[0.1, math.nan]]), "old_log_prob": torch.zeros(1, 2)}
    batch = TensorDict({"selected": selected, "advantage": torch.ones(1)}, [1])
    batch["selected", "advantage"] = torch.tensor([[1.0, math.inf]])
    with pytest.raises(ComponentError, match=r"Padded of .*: 'loss_objective' has NaN"):
        blame_term(cls(), batch, {"loss_objective": torch.tensor(math.nan)})
