"""The page that shows traces: one HTML file with everything in it, which needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.html_page import filled_page
from dlmrl_kit.training.trace import SampleTrace, Trace

DIGITS = 4
"""Significant digits of the numbers on the page."""
SHOWN = 40
"""Characters of a prompt that name its example in the list of examples."""


def write_page(path: Path, title: str, traces: Iterable[Trace]) -> None:
    """Writes the page, atomically.

    Args:
        path: of the file, such as ``trajectories.html``.
        title: of the page.
        traces: those with the same prompt and answer are shown side by side, in this order.

    Raises:
        FileError: the file cannot be written.
    """
    write_atomic(path, page(title, traces))


def page(title: str, traces: Iterable[Trace]) -> str:
    """Returns the text of the page; arguments as ``write_page``."""
    words: dict[str, int] = {}
    examples: dict[tuple[str, str], dict[str, Any]] = {}
    highest = 0.0
    for trace in traces:
        label = f"{len(examples) + 1}: {' '.join(trace.prompt.split())[-SHOWN:]}"
        example = {"label": label, "prompt": trace.prompt, "answer": trace.answer, "policies": []}
        found = examples.setdefault((trace.prompt, trace.answer), example)
        samples = [_sample(sample, words) for sample in trace.samples]
        found["policies"].append({"name": trace.name, "samples": samples})
        entropies = [token.entropy for sample in trace.samples for token in sample.tokens if token.entropy is not None]
        highest = max([highest, *entropies])
    data = {"title": title, "nats": _short(highest) or 1.0, "words": list(words), "examples": list(examples.values())}
    return filled_page("dlmrl_kit.training", "trace_page.html", data)


def _sample(sample: SampleTrace, words: dict[str, int]) -> dict[str, Any]:
    def word(text: str) -> int:
        return words.setdefault(text, len(words))

    tokens: list[list[Any]] = []
    for token in sample.tokens:
        others = [[word(text), _short(probability)] for text, probability in token.others]
        tokens.append([word(token.text), token.step, _short(token.probability), _short(token.entropy), others])
    steps = [
        {
            "entropy": _short(step.entropy),
            "reward": _short(step.reward),
            "weight": _short(step.weight),
            "advantage": _short(step.advantage),
        }
        for step in sample.steps
    ]
    canvases: Sequence[Sequence[int]] | None = None
    if sample.canvases is not None:
        canvases = [[word(text) for text in canvas] for canvas in sample.canvases]
    return {
        "reward": _short(sample.reward),
        "solved": _short(sample.solved),
        "tokens": tokens,
        "steps": steps,
        "canvases": canvases,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")
