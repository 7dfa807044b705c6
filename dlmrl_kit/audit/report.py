"""The report of an audit: numbers over several problems, a verdict in words, and the causes of the bias."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from dlmrl_kit.audit.attribution import Attribution, Interaction, Json, Spread
from dlmrl_kit.audit.later_steps import LaterStep
from dlmrl_kit.audit.measure import Measured
from dlmrl_kit.audit.regularisers import RegulariserAudit
from dlmrl_kit.audit.scale import TOLERANCE, matching
from dlmrl_kit.audit.scope import Scope


@dataclass
class AuditReport:
    """The result of an audit.

    Attributes:
        recipe: its name.
        measured: what was measured on each problem.
        attribution: the biases of single causes.
        scales: the known factors of the gradient on each problem, by their text.
        regularisers: what was found of each, by name.
        notes: what was scaled, and why groups were sampled.
        sampler: name of the recipe's sampler.
        group_size: G.
        prompts_per_update: groups of a batch.
        interaction: two causes that have more bias together than alone; None if none do.
        scope: what the verdict covers; None: not said.
        later_steps: the bias that optimiser steps after the first add, if they were audited.
        unlike: says why the recipe would be another algorithm on these problems, so that there is no verdict; "" if
            it would not.
    """

    recipe: str
    measured: list[Measured]
    attribution: list[Attribution] = field(default_factory=list)
    scales: list[dict[str, float]] = field(default_factory=list)
    regularisers: dict[str, RegulariserAudit] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sampler: str = ""
    group_size: int = 2
    prompts_per_update: int = 1
    interaction: Interaction | None = None
    unlike: str = ""
    scope: Scope | None = None
    later_steps: list[LaterStep] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether every number is exact, so that none is a Monte Carlo estimate."""
        return all(m.interval is None for m in self.measured)

    @property
    def relative_bias(self) -> float:
        """The largest relative bias over the problems; NaN if no problem has a gradient."""
        return _or_nan(Spread.of(m.relative_bias for m in self.measured).max)

    @property
    def relative_bias_after_scale(self) -> float:
        """The largest relative bias over the problems after the best scale; NaN if no problem has a gradient."""
        return _or_nan(Spread.of(m.relative_bias_after_scale for m in self.measured).max)

    @property
    def scale(self) -> float:
        """The mean scale over the problems; NaN if no problem has a gradient."""
        return _or_nan(Spread.of(m.scale for m in self.measured).mean)

    @property
    def known_scale(self) -> str | None:
        """The text of the claimed factor that the scale equals on every problem; None if there is none."""
        found = {
            matching(m.scale, known)
            for m, known in zip(self.measured, self.scales, strict=False)
            if m.scale is not None
        }
        return found.pop() if len(found) == 1 else None

    @property
    def unbiased(self) -> bool:
        """Whether the expected gradient is grad J up to rounding."""
        return self.exact and not self.unlike and not self.moving and self.relative_bias < TOLERANCE

    @property
    def refuted(self) -> bool:
        """Whether the audit found a bias for certain, which is more than that it could not rule one out."""
        if self.moving:
            return True
        if not self.exact:
            return any(m.interval is not None and m.interval[0] > TOLERANCE for m in self.measured)
        return self.relative_bias_after_scale > TOLERANCE

    @property
    def moving(self) -> list[Measured]:
        """The problems whose true gradient is 0, and on which the expected gradient certainly is not."""
        return [m for m in self.measured if m.moves]

    @property
    def undecided(self) -> bool:
        """Whether nothing can be said about the bias: problems are unlike training, or no true gradient is there."""
        return bool(self.unlike) or (not self.moving and math.isnan(self.relative_bias))

    @property
    def verdict(self) -> str:
        """Says whether the recipe is biased and how much, and which two causes interact."""
        said = f". {self.interaction.sentence}" if self.interaction is not None else ""
        return self._bias_words() + said

    @property
    def sentence(self) -> str:
        """The verdict, and which of the recipe's optimiser steps it is about, where there are several."""
        steps = 1 if self.scope is None else self.scope.optimiser_steps
        if steps == 1 or self.undecided:
            return self.verdict
        return f"{self.verdict}. This is the first of {steps} optimiser steps on a rollout{self._later_words()}"

    def _later_words(self) -> str:
        if not self.later_steps:
            return ""
        most = max(self.later_steps, key=lambda later: later.added)
        low, high = most.interval
        ends = f"95% interval {low:.2g} to {high:.2g}"
        return f"; later ones add a relative bias of {most.added:.2g} at most (step {most.step}, {ends})"

    def _bias_words(self) -> str:
        if self.unlike:
            return f"no verdict: {self.unlike}"
        if not self.moving:
            return self._words_where_defined()
        moved = f"|E g| = {max(m.mean_norm for m in self.moving):.3g} where the true gradient is 0"
        words = "" if math.isnan(self.relative_bias) else f"; elsewhere {self._words_where_defined()}"
        return f"biased, {moved}{words}"

    def _words_where_defined(self) -> str:
        if math.isnan(self.relative_bias):
            return "no verdict: the true gradient is zero on every problem (is the sampler greedy?)"
        if not self.exact:
            return self._sampled_verdict()
        if self.relative_bias < TOLERANCE:
            return "unbiased"
        if all(m.mean_norm < TOLERANCE and m.variance < TOLERANCE for m in self._defined):
            return "biased, relative bias 1: there is no gradient on any problem (does a filter leave out every group?)"
        if self.relative_bias_after_scale < TOLERANCE and min(m.scale or 0.0 for m in self._defined) > 0:
            return f"unbiased up to {self._scale_words()}"
        mean = _or_nan(Spread.of(m.relative_bias for m in self.measured).mean)
        after = _or_nan(Spread.of(m.relative_bias_after_scale for m in self.measured).mean)
        return (
            f"biased, relative bias {mean:.2g} on average, {self.relative_bias:.2g} at most; {after:.2g} on average "
            "after the best scale"
        )

    @property
    def _defined(self) -> list[Measured]:
        return [m for m in self.measured if m.relative_bias is not None]

    def _scale_words(self) -> str:
        spread = Spread.of(m.scale for m in self.measured)
        assert spread.max is not None
        assert spread.min is not None
        if self.known_scale is not None and self.known_scale != "1":
            return f"the known scale {self.known_scale} = {self.scale:.6g}"
        if spread.max - spread.min < TOLERANCE:
            return f"a scale of {self.scale:.6g}, which no component claims"
        return f"a scale between {spread.min:.3g} and {spread.max:.3g} that depends on the problem"

    def _sampled_verdict(self) -> str:
        low = max(m.interval[0] if m.interval else m.relative_bias or 0.0 for m in self._defined)
        high = max(m.interval[1] if m.interval else m.relative_bias or 0.0 for m in self._defined)
        if low > TOLERANCE:
            return (
                f"biased (Monte Carlo), relative bias {self.relative_bias:.2g} at most, 95% interval up to {high:.2g}"
            )
        return f"no bias found (Monte Carlo): relative bias below {high:.2g} with 95% confidence"

    def to_json(self) -> Json:
        """Returns everything for JSON, as ``dlmrl audit --json`` prints it."""
        return {
            "recipe": self.recipe,
            "verdict": self.verdict,
            "covers": "" if self.scope is None else self.scope.covers,
            "left_out": [] if self.scope is None else list(self.scope.left_out),
            "later_steps": [dataclasses.asdict(later) for later in self.later_steps],
            "exact": self.exact,
            "sampler": self.sampler,
            "group_size": self.group_size,
            "prompts_per_update": self.prompts_per_update,
            "relative_bias": Spread.of(m.relative_bias for m in self.measured).to_json(),
            "relative_bias_after_scale": Spread.of(m.relative_bias_after_scale for m in self.measured).to_json(),
            "scale": {**Spread.of(m.scale for m in self.measured).to_json(), "known": self.known_scale},
            "cosine": Spread.of(m.cosine for m in self.measured).to_json(),
            "variance": {
                "total": Spread.of(m.variance for m in self.measured).to_json(),
                "relative": Spread.of(m.relative_variance for m in self.measured).to_json(),
                "per_step": [m.step_variance for m in self.measured],
                "forwards": Spread.of(m.forwards for m in self.measured).to_json(),
                "relative_times_forwards": Spread.of(m.cost for m in self.measured).to_json(),
            },
            "where_gradient_is_zero": Spread.of(
                m.mean_norm for m in self.measured if m.relative_bias is None
            ).to_json(),
            "attribution": [cause.to_json() for cause in self.attribution],
            "interaction": None if self.interaction is None else self.interaction.to_json(),
            "unlike": self.unlike,
            "regularisers": {name: audit.to_json() for name, audit in self.regularisers.items()},
            "mdp": [_problem(m) for m in self.measured],
            "notes": self.notes,
        }


def _problem(m: Measured) -> Json:
    return {
        **m.problem.described(),
        "relative_bias": m.relative_bias,
        "interval": m.interval,
        "scale": m.scale,
        "cosine": m.cosine,
        "variance": m.variance,
        "gradient_norm": m.gradient_norm,
        "mean_norm": m.mean_norm,
        "method": "exact" if m.interval is None else "monte carlo",
        "groups": m.groups,
    }


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
