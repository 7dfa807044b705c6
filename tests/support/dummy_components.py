"""Small components of the recipe tests' own, registered while a test runs, and a complete recipe of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import gin

from dlmrl_kit.core.validate import check

if TYPE_CHECKING:
    from nowhere import Unknown  # an annotation that cannot be evaluated


def noop() -> None: ...


class DummySampler:
    """Base class, no component."""


class DummySchedule:
    """Base class, no component."""


@dataclass
class DummyConfidence(DummySampler):
    completion_length: int
    temperature: float = 1.0


@dataclass
class DummyOrder(DummySampler):
    completion_length: int
    order: Literal["left", "right"] = "left"


@dataclass
class DummyTask:
    size: int = 4
    names: Sequence[str] = ()


@dataclass
class DummyPolicy:
    path: str | None = None


@dataclass
class DummyTopK:
    k: int = 2
    share: float = 0.5


@gin.configurable(module="dummies")
@dataclass
class DummyUniform:
    """Known to gin as well, whose configuration must change nothing in recipes."""

    k: int = 1
    replace: bool = False


@dataclass
class DummyMean:
    eps: float = 1e-6


@dataclass
class DummyOneStep:
    baseline: Any = None
    weights: tuple[float, ...] = ()


@dataclass
class DummyLikelihood:
    pair: tuple[int, str] = (1, "a")


class DummyLoss:
    def __init__(self, clip: float = 0.2, *, unknown: Unknown = 3, kind: str = "token") -> None:
        check(clip > 0, self, "clip", clip, "above 0")
        if kind == "broken":
            raise KeyError("no such kind")
        if kind == "vague":
            raise ValueError("cannot do this")
        self.clip, self.unknown, self.kind = clip, unknown, kind


class DummyTerm:
    def beside(self, loss: object) -> DummyTerm:
        return self


@dataclass
class DummyKL(DummyTerm):
    coefficient: float | DummySchedule = 0.1
    lengths: list[int] | None = None


@dataclass
class DummyEntropy(DummyTerm):
    coefficient: float = 0.0


@dataclass
class DummyConstant(DummySchedule):
    value: float = 1.0
    inner: DummySchedule | None = None


@dataclass
class DummyTrainer:
    learning_rate: float = 1e-4
    steps: int = 10
    extra: Any = None
    hook: Callable[[], None] = noop
    table: dict[str, float] = field(default_factory=dict)
    wrong: int = None  # type: ignore[assignment]


class DummyLogger:
    def __init__(self, folder: str = "runs", **options: Any) -> None:
        self.folder, self.options = folder, options


class DummyRoot:
    def __init__(self, task: Any = gin.REQUIRED, trainer: Any = gin.REQUIRED) -> None:
        self.task, self.trainer = task, trainer


DUMMIES = {
    DummyConfidence: "sampler",
    DummyOrder: "sampler",
    DummyTask: "task",
    DummyPolicy: "policy",
    DummyTopK: "selector",
    DummyUniform: "selector",
    DummyMean: "advantage",
    DummyOneStep: "advantage",
    DummyLikelihood: "likelihood",
    DummyLoss: "loss",
    DummyKL: "regulariser",
    DummyEntropy: "regulariser",
    DummyConstant: "schedule",
    DummyTrainer: "trainer",
    DummyLogger: "logger",
}
COMPLETE = """\
# A complete recipe.
LENGTH = 16

Algorithm.task = @DummyTask()
Algorithm.policy = @DummyPolicy()
Algorithm.sampler = @DummyConfidence()
Algorithm.selector = @DummyTopK()
Algorithm.advantage = @DummyOneStep()
Algorithm.likelihood = @DummyLikelihood()
Algorithm.loss = @DummyLoss()
Algorithm.regulariser = [@DummyKL(), @DummyEntropy()]
Algorithm.trainer = @DummyTrainer()

DummySampler.completion_length = %LENGTH
DummyTopK.k = 4
DummyOneStep.baseline = @DummyMean()
DummyMean.eps = 0.1
DummyLoss.clip = 0.3
DummyKL.coefficient = @DummyConstant()
"""
