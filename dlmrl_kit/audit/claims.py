"""A component against its own claims: alone among exact components, is its gradient what its registration promises?

unbiased=True, scale=s    means    E g = s * grad J
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlmrl_kit.advantages.step_gae import StepGAE
from dlmrl_kit.audit.audit import audit_algorithm
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.audit.report import AuditReport
from dlmrl_kit.audit.scale import TOLERANCE, evaluated
from dlmrl_kit.audit.variants import EXACT, claims_of, exact_algorithm
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import SELECTED_OLD_VALUE, SELECTED_TOKEN_ADVANTAGE, SEQUENCE_LENGTH
from dlmrl_kit.likelihoods.step_merge import StepMerge
from dlmrl_kit.likelihoods.step_token_log_prob import StepTokenLogProb
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.values.token_value import TokenValue

STEPS = 16
"""Steps of the sampler that a selector's ``k`` is meant for; on a small problem it is reduced in proportion."""

PROBLEMS = (
    Problem(vocab=2, length=3, policy="network", seed=5),
    Problem(vocab=2, length=4, block_length=2, reward="parity", seed=7),
)
GROUP_SIZE = 2


def audit_component(kind: str, component: Any, problems: Sequence[Problem] = PROBLEMS) -> AuditReport:
    """Audits one component among exact ones, with the most demanding sampler that its claim may be about.

    That is ``LowConfidence`` at temperature 0.8; ``EntropyOrder`` for a likelihood that is not exact there, and for
    what needs the log-probabilities of single tokens.

    Args:
        kind: ``"selector"``, ``"advantage"``, ``"likelihood"`` or ``"loss"``.
        component: an instance.
        problems: to measure on.

    Raises:
        RecipeError: the component does not fit the exact ones.
    """
    hard, easy = LowConfidence(STEPS, temperature=0.8), EntropyOrder(STEPS, temperature=0.8)
    others = companions(component)
    if "likelihood" in others:
        return _audit(easy, problems, others | {kind: component})
    try:
        report = _audit(hard, problems, others | {kind: component})
    except RecipeError:
        if kind == "likelihood":
            raise
        return _audit(easy, problems, {"likelihood": StepTokenLogProb(), kind: component})
    if kind == "likelihood" and not report.unbiased:
        return _audit(easy, problems, {kind: component})
    return report


def companions(component: Any) -> dict[str, Any]:
    """What a component needs beside the exact ones, by slot: a value model, advantages of single tokens, lengths."""
    reads = set(component.in_keys)
    if SELECTED_TOKEN_ADVANTAGE in reads:
        return {"likelihood": StepMerge(), "advantage": StepGAE(), "value": [TokenValue()]}
    if SEQUENCE_LENGTH in reads:
        return {"likelihood": StepMerge()}
    return {"value": [TokenValue()]} if SELECTED_OLD_VALUE in reads else {}


def _audit(sampler: Sampler, problems: Sequence[Problem], parts: dict[str, Any]) -> AuditReport:
    algorithm = exact_algorithm(sampler, **parts)
    return audit_algorithm(algorithm, problems=problems, group_size=GROUP_SIZE, attribution=False)


def broken_claim(kind: str, component: Any) -> str:
    """What a component claims and does not keep, in one sentence; empty where it keeps its claims or makes none.

    Only promises are held against it: a component that says it is biased may be unbiased here.
    """
    claims = claims_of(component)
    if kind not in EXACT or claims is None or not claims.unbiased:
        return ""
    report = audit_component(kind, component)
    name = type(component).__name__
    if not report.exact:
        certain = [m.interval[0] for m in report.measured if m.interval is not None and m.interval[0] > 0]
        return f"{name} claims to be unbiased; the audit finds: {report.verdict}" if certain else ""
    if report.relative_bias_after_scale > TOLERANCE:
        return f"{name} claims to be unbiased; the audit finds: {report.verdict}"
    claimed = evaluated(claims.scale, {"G": float(GROUP_SIZE)})
    if claimed is not None and abs(report.scale - claimed) > TOLERANCE:
        return f"{name} claims the scale {claims.scale} = {claimed:.6g}; the audit finds {report.scale:.6g}"
    return ""
