"""What the methods of samplers promise to return (``core.promises``), apart from decisions."""

from __future__ import annotations

from dlmrl_kit.core.keys import COMPLETION_IDS, GROUP, PROMPT_IDS
from dlmrl_kit.core.promises import Given, shown, tensor_fault


def one_each(result: object, given: Given) -> str:
    """Checks one log-probability for each row of a view."""
    allowed = given["view"].allowed
    return tensor_fault(result, "real", allowed.shape[:1], device=allowed.device)


def completed(result: object, given: Given) -> str:
    """Checks completions by key, as ``Sampler.resume`` returns them."""
    if not isinstance(result, dict) or COMPLETION_IDS not in result:
        return f"{shown(result)}; it should be a dict with {COMPLETION_IDS!r}"
    prompt = given["prompt"]
    shape = (len(prompt), given["self"].completion_length)
    device = prompt[PROMPT_IDS].device
    return tensor_fault(result[COMPLETION_IDS], "int64", shape, device=device, name=repr(COMPLETION_IDS))


def forks(result: object, given: Given) -> str:
    """Checks where the samples of a rollout part, as ``Sampler.last_fork`` returns it."""
    if not isinstance(result, tuple) or len(result) != 2:
        return f"{shown(result)}; it should be two tensors, of steps and of states"
    group = given["trajectory"][GROUP]
    faults = (tensor_fault(part, "int64", group.shape, device=group.device) for part in result)
    return next((fault for fault in faults if fault), "")


def canvas(result: object, given: Given) -> str:
    """Checks states of every row of a prompt."""
    prompt = given["prompt"]
    return tensor_fault(
        result, "int64", (len(prompt), given["self"].completion_length), device=prompt[PROMPT_IDS].device
    )


def counts(result: object, given: Given) -> str:
    """Checks a number of positions for each row of a view."""
    allowed = given["view"].allowed
    return tensor_fault(result, "int64", allowed.shape[:1], device=allowed.device)


def scored(result: object, given: Given) -> str:
    """Checks a score for each prediction of a view."""
    logits = given["view"].logits
    return tensor_fault(result, "real", logits.shape[:1], device=logits.device)


def places(result: object, given: Given) -> str:
    """Checks positions of a view."""
    allowed = given["view"].allowed
    return tensor_fault(result, "bool", allowed.shape, device=allowed.device)
