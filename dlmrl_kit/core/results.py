"""What training and evaluation return, and the observer that the loops report to; imports no torch.

Updates are numbered from 0. Metrics at update u are those of update u itself; an evaluation at u is of the policy
after u updates, so the one at 0 comes before training and the last one at ``total_updates``. ``first_update`` is the
next update to run: 0 in a fresh run, u where a checkpoint holds the state after u updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

_Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution


def wilson_interval(proportion: float, count: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion measured on ``count`` trials; (0, 1) for no trial."""
    if count <= 0:
        return (0.0, 1.0)
    shrink = 1 + _Z95**2 / count
    centre = (proportion + _Z95**2 / (2 * count)) / shrink
    half = _Z95 * math.sqrt(proportion * (1 - proportion) / count + _Z95**2 / (4 * count**2)) / shrink
    return (max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class EvalResult:
    """One evaluation.

    Args:
        split: the task's split.
        size: number of examples (not of completions: those of one example are not independent).
        accuracy: share of completions that solve their example.
        reward: mean reward.
        components: mean of each reward component.
        pass_at_k: k -> probability that one of k completions solves its example.
        decoding: how completions were generated: sampler, temperature, tokens per step, ...
        samples: a few completions, each with ``prompt``, ``completion``, ``answer``, ``solved`` and ``reward``.
    """

    split: str
    size: int
    accuracy: float
    reward: float
    components: dict[str, float] = field(default_factory=dict)
    pass_at_k: dict[int, float] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def interval(self) -> tuple[float, float]:
        """The 95% Wilson interval of ``accuracy`` over examples."""
        return wilson_interval(self.accuracy, self.size)

    def to_json(self) -> dict[str, Any]:
        """A dictionary that ``json`` can write; the interval is in it for the reader's convenience."""
        data = asdict(self)
        data["pass_at_k"] = {str(k): value for k, value in self.pass_at_k.items()}
        return {**data, "interval": list(self.interval())}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvalResult:
        """The inverse of ``to_json``."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        known["pass_at_k"] = {int(k): value for k, value in known.get("pass_at_k", {}).items()}
        return cls(**known)


@dataclass(frozen=True)
class RunResult:
    """A finished training run: its folder, held-out accuracy before and after, and the path of the trained model."""

    folder: Path
    before: EvalResult
    after: EvalResult
    updates: int
    seconds: float
    model: Path
    skipped: int = 0


@dataclass(frozen=True)
class PretrainResult:
    """A finished pre-training run: folder, model, steps, last loss, and held-out accuracy.

    ``accuracy`` is greedy; ``sampled_accuracy`` and ``pass_at_8`` are at temperature 1.
    """

    folder: Path
    model: Path
    steps: int
    seconds: float
    loss: float
    accuracy: float
    sampled_accuracy: float
    pass_at_8: float


class RunObserver:
    """What a run of training or pre-training reports to while it goes on. Nothing is done with the reports here.

    Subclasses override the methods they want, and give ``stop`` if they hold something, such as a display, that must
    end however the run ends: whoever makes an observer uses it as a context manager around the run.
    """

    def __enter__(self) -> Self:
        """Returns the observer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Calls ``stop``."""
        self.stop()

    def stop(self) -> None:
        """The run has ended, or failed: nothing more is reported. May be called more than once."""

    def on_start(
        self, *, folder: Path, recipe: str, total_updates: int, first_update: int, info: Mapping[str, object]
    ) -> None:
        """Training starts, or goes on, with ``first_update``.

        Args:
            folder: the run folder.
            recipe: name of the recipe.
            total_updates: updates of the whole run, those done before a resume included.
            first_update: the next update to run; 0 in a fresh run.
            info: what a user may want to know (device, number of parameters, ...), by what it is called.
        """

    def on_message(self, text: str) -> None:
        """Something worth a line of its own happened."""

    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        """Update ``update`` is done; ``metrics`` are numbers by their names in ``metrics.csv``."""

    def on_eval(self, update: int, result: EvalResult) -> None:
        """The policy as it is after ``update`` updates was evaluated."""

    def on_end(self, result: RunResult | PretrainResult) -> None:
        """Training is done, and everything it writes is on disk."""


Observer = RunObserver  # until the tests are renamed
