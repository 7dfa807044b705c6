"""The exact gradient audit: is the expected update of a recipe the gradient of its expected reward?

Its problems are so small that every trajectory can be listed, so that bias, scale, cosine and variance are exact.
"""

from dlmrl_kit.audit.actions import AuditError
from dlmrl_kit.audit.auditing import audit_algorithm, audit_recipe
from dlmrl_kit.audit.claims import audit_component, broken_claim
from dlmrl_kit.audit.enumeration import enumerate_trajectories
from dlmrl_kit.audit.exact import exact_estimator
from dlmrl_kit.audit.problem import Problem, random_problems
from dlmrl_kit.audit.report import AuditReport

__all__ = [
    "AuditError",
    "AuditReport",
    "Problem",
    "audit_algorithm",
    "audit_component",
    "audit_recipe",
    "broken_claim",
    "enumerate_trajectories",
    "exact_estimator",
    "random_problems",
]
