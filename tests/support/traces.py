"""Traces that no model made."""

from __future__ import annotations

from dlmrl_kit.training.trace import SampleTrace, StepTrace, TokenTrace, Trace


def long_trace(name: str, samples: int = 4, length: int = 512) -> Trace:
    """A trace of a long completion with all its details, which no model made."""

    def token(i: int) -> TokenTrace:
        others = tuple((f" word{(i * 7 + j) % 900}", 0.1234 / (j + 1)) for j in range(4))
        return TokenTrace(f" word{i % 900}", i // 2, 0.5, 1.2345 + i / length, others)

    steps = tuple(
        StepTrace(2, -1.0, 1.0, 0.5, float(t % 32 == 0), 0.1 if t % 32 == 0 else None) for t in range(length // 2)
    )
    sample = SampleTrace("text", 0.5, 0.0, tuple(token(i) for i in range(length)), steps)
    return Trace(name, "a </script><!-- prompt", "42", (sample,) * samples)
