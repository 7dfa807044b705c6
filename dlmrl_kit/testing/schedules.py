"""Checks of schedules: a value for every fraction, of its shape and dtype."""

from __future__ import annotations

import copy
import pickle

import torch

from dlmrl_kit.schedules.base import Schedule
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.running import equal


def check_values(name: str, component: Schedule) -> None:
    """It keeps shape and dtype, is finite on [0, 1], changes nothing, and gives the same again."""
    for dtype in (torch.float32, torch.float64):
        for shape in ((), (0,), (5,), (2, 3)):
            fraction = torch.linspace(0, 1, max(1, torch.Size(shape).numel()), dtype=dtype)
            fraction = fraction[: torch.Size(shape).numel()].reshape(shape)
            before = fraction.clone()
            with attempt(name, f"called with fractions of shape {list(shape)}", "use operations that take any shape"):
                value, again = component(fraction), component(fraction)
            if not isinstance(value, torch.Tensor) or value.shape != before.shape or value.dtype != dtype:
                found = [value.dtype, list(value.shape)] if isinstance(value, torch.Tensor) else value
                problem = f"gives {found} for fractions {[dtype, list(shape)]}"
                fail(name, problem, "return a tensor like fraction (torch.full_like, arithmetic on fraction)")
            if not value.isfinite().all():
                fail(name, "gives values that are not finite", "every fraction from 0 to 1, both included, has a value")
            if not equal(fraction, before):
                fail(name, "changes the fractions it is given", "use no operation that ends in _ on them")
            if not equal(value, again):
                fail(name, "gives another value the second time", "make it a function of fraction alone")


def check_schedule_copies(name: str, component: Schedule) -> None:
    """Pickle and deepcopy give schedules with the same values."""
    fraction = torch.linspace(0, 1, 7)
    for how, twin in (("deepcopy", copy.deepcopy(component)), ("pickle", pickle.loads(pickle.dumps(component)))):
        if not equal(component(fraction), twin(fraction)):
            fail(name, f"has other values after {how}", "keep its parameters in ordinary attributes")


CHECKS = (check_values, check_schedule_copies)
