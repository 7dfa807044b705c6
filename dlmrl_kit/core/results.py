"""What training and evaluation return, and the observer that the loops report to; imports no torch.

Updates are numbered from 0. Metrics at u are those of update u; an evaluation at u is of the policy after u updates, so
the first one, at 0, comes before training and the last one is at ``total_updates``. ``first_update`` is the next update
to run: 0 in a fresh run, u after a checkpoint of u updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

FEW = 30
"""Examples below which an evaluation says how little it means."""
_Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution


def wilson_interval(proportion: float, count: int) -> tuple[float, float]:
    """Computes the 95% Wilson score interval of a proportion measured on ``count`` trials; (0, 1) without trials."""
    if count <= 0:
        return (0.0, 1.0)
    shrink = 1 + _Z95**2 / count
    centre = (proportion + _Z95**2 / (2 * count)) / shrink
    half = _Z95 * math.sqrt(proportion * (1 - proportion) / count + _Z95**2 / (4 * count**2)) / shrink
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return (min(low, proportion), max(high, proportion))  # by rounding it would leave out 0 and 1


@dataclass(frozen=True)
class EvalResult:
    """The result of one evaluation.

    Attributes:
        split: the task's split.
        size: number of examples (not of completions: those of one example are not independent).
        accuracy: share of completions that solve their example.
        reward: mean reward.
        components: mean of each reward component, by name.
        pass_at_k: by k, the probability that at least one of k completions solves its example.
        decoding: how completions were generated: sampler, temperature, tokens per step, ...
        samples: a few completions, each with ``prompt``, ``completion``, ``answer``, ``solved`` and ``reward``.
        task: label of the task; "" in results of versions that did not write it.
    """

    split: str
    size: int
    accuracy: float
    reward: float
    components: dict[str, float] = field(default_factory=dict)
    pass_at_k: dict[int, float] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    task: str = ""

    def interval(self) -> tuple[float, float]:
        """Returns the 95% Wilson interval of ``accuracy``, with examples as trials."""
        return wilson_interval(self.accuracy, self.size)

    def temperature(self) -> str:
        """Says at what temperature completions were decoded: ``greedy``, or ``temperature 0.7``."""
        value = self.decoding.get("temperature", 0.0)
        return f"temperature {value:.4g}" if value else "greedy"

    def caution(self) -> str:
        """Says how little the accuracy means where there are few examples; "" if there are at least ``FEW``."""
        if self.size >= FEW:
            return ""
        low, high = self.interval()
        examples = "example" if self.size == 1 else "examples"
        return (
            f"only {self.size} {examples}: each is {100 / self.size:.3g} points, and the accuracy is anywhere from "
            f"{100 * low:.0f}% to {100 * high:.0f}%"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary that ``json`` can write, the interval included, and the caution if there is one."""
        data = asdict(self)
        data["pass_at_k"] = {str(k): value for k, value in self.pass_at_k.items()}
        caution = {"caution": self.caution()} if self.caution() else {}
        return {**data, "interval": list(self.interval()), **caution}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvalResult:
        """Rebuilds the result that ``to_json`` wrote."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        known["pass_at_k"] = {int(k): value for k, value in known.get("pass_at_k", {}).items()}
        return cls(**known)


@dataclass(frozen=True)
class RunResult:
    """The result of a finished training run.

    Attributes:
        folder: the run folder.
        before, after: evaluations on held-out examples before and after training.
        updates: of the whole run.
        seconds: training time of the process that finished the run.
        model: folder of the trained model.
        skipped: optimiser steps that were not taken because a loss or gradient was not finite.
    """

    folder: Path
    before: EvalResult
    after: EvalResult
    updates: int
    seconds: float
    model: Path
    skipped: int = 0


@dataclass(frozen=True)
class PretrainResult:
    """The result of a finished pre-training run.

    Attributes:
        folder: the run folder.
        model: folder of the trained model.
        steps: optimiser steps of the whole run.
        seconds: training time of the process that finished the run.
        loss: mean over the last steps.
        accuracy: on held-out examples, decoded greedily; None: none were decoded.
        sampled_accuracy, pass_at_8: on held-out examples, sampled at temperature 1; None, too.
        task: label of the task that these are examples of.
        heldout_loss_before, heldout_loss: of held-out demonstrations before and after, an estimate with the same masks;
            None: there are none.
    """

    folder: Path
    model: Path
    steps: int
    seconds: float
    loss: float
    accuracy: float | None
    sampled_accuracy: float | None
    pass_at_8: float | None
    task: str = ""
    heldout_loss_before: float | None = None
    heldout_loss: float | None = None


class RunObserver:
    """Receives the reports of a run of training or pre-training; this base class ignores them.

    Subclasses override the methods they need. One that holds something that must end with the run, such as a display,
    overrides ``stop``: whoever makes an observer uses it as a context manager around the run.
    """

    shown_samples = 0
    """How many samples of each update ``on_samples`` is to get, at least."""

    def __enter__(self) -> Self:
        """Returns the observer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Calls ``stop``."""
        self.stop()

    def stop(self) -> None:
        """Ends the observer when the run has ended or failed. May be called more than once."""

    def on_start(
        self, *, folder: Path, recipe: str, total_updates: int, first_update: int, info: Mapping[str, object]
    ) -> None:
        """Called when training starts, or goes on, with ``first_update``.

        Args:
            folder: the run folder.
            recipe: name of the recipe.
            total_updates: updates of the whole run, those done before a resume included.
            first_update: the next update to run; 0 in a fresh run.
            info: facts that a user may want to see (device, number of parameters, ...), by name.
        """

    def on_message(self, text: str) -> None:
        """Called with a message that is worth a line of its own."""

    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        """Called after update number ``update``, with its metrics by their names in ``metrics.csv``."""

    def on_samples(self, update: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Called after an update with some samples of its rollout, as ``completions.jsonl`` keeps them."""

    def on_eval(self, update: int, result: EvalResult) -> None:
        """Called after an evaluation of the policy as it is after ``update`` updates."""

    def on_end(self, result: RunResult | PretrainResult) -> None:
        """Called when training is done and everything it writes is on disk."""


Observer = RunObserver  # until the tests are renamed
