"""The work of each phase, counted: no phase needs over a tenth more than is recorded, and the counts are exact."""

from __future__ import annotations

import gc
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import instructions
from instructions import Operations, Parts, bytecode, recorded, slower


@pytest.mark.thorough
@pytest.mark.skipif(
    bool(instructions.other_versions()), reason=f"recorded with others: {instructions.other_versions()}"
)
def test_no_phase_needs_over_a_tenth_more_than_recorded() -> None:
    """A change that was meant is recorded with ``python benchmarks/instructions.py --record``."""
    assert slower(instructions.measure(), recorded()[1]) == []


PHASES = sorted(recorded()[1])


def test_all_phases_are_recorded() -> None:
    parts = ("between", "policy", "reference", "rollout")
    assert [f"{work}, {part}" for work in sorted(instructions.WORKS) for part in parts] == PHASES


@given(phase=st.sampled_from(PHASES), factor=st.floats(0.5, 2.0))
def test_a_phase_is_slow_from_a_tenth_more_on(phase: str, factor: float) -> None:
    known = recorded()[1]
    found = {**known, phase: {name: factor * value for name, value in known[phase].items()}}
    said = slower(found, known)
    assert len(said) == (factor > 1.1 + 1e-9) or abs(factor - 1.1) < 1e-9
    assert all(line.startswith(f"{phase}: ") for line in said)


def test_phases_that_are_gone_or_new_are_said() -> None:
    known = recorded()[1]
    less = {name: known[name] for name in PHASES[1:]}
    assert slower(less, known) == [f"{PHASES[0]}: not measured"]
    assert slower(known, less) == [f"{PHASES[0]}: not recorded"]


def looped(times: int) -> None:
    for _ in range(times):
        pass


def test_bytecode_is_counted_for_each_turn_of_a_loop() -> None:
    counts = {"bytecode": 0.0}
    found = {}
    gc.disable()  # what it ends runs bytecode, too
    for times in (0, 1, 7, 150):
        counts["bytecode"] = 0.0
        with bytecode(counts):
            looped(times)
        found[times] = counts["bytecode"]
    gc.enable()
    each = found[1] - found[0]
    assert each > 0
    assert all(value == found[0] + each * times for times, value in found.items())


def test_operations_are_counted_with_their_bytes_and_products() -> None:
    counts = dict.fromkeys(("operations", "bytes", "flops"), 0.0)
    parts = Parts(counts)
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    with Operations(counts), parts.part("all"):
        with parts.part("product"), torch.inference_mode():
            product = torch.nn.functional.linear(left, right.T)
        with parts.part("view"):
            product[:2]
        product.add(1.0)
    assert parts.found["product"] == {"operations": 3, "bytes": 4 * (15 + 35 + 21), "flops": 2 * 3 * 5 * 7}
    assert parts.found["view"] == {"operations": 1, "bytes": 0, "flops": 0}
    assert parts.found["all"] == {"operations": 1, "bytes": 4 * (21 + 21), "flops": 0}
