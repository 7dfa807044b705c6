"""Conformance checks for components: does it keep what the kit relies on?

In the spirit of scikit-learn's estimator checks: ``check_component(MyComponent)`` runs all that apply to its kind, and
``parametrize_with_checks`` makes a pytest case of each. A check of a kind that a plugin declares ends by ``fail``.
"""

from dlmrl_kit.testing.check import Check
from dlmrl_kit.testing.collect import check_component, checks_for, parametrize_with_checks
from dlmrl_kit.testing.core import ConformanceError, fail

__all__ = ["Check", "ConformanceError", "check_component", "checks_for", "fail", "parametrize_with_checks"]
