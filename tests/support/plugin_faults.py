"""Faults of plugins: for every kind of component, a working class, and ways in which one of its methods goes wrong."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import inspect
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from support.collectors import Here
from support.pretraining import TINY as PRETRAINING
from support.runs import recipe
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise
from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.core.registry import register
from dlmrl_kit.corrections.truncated_importance import TruncatedImportance
from dlmrl_kit.demonstrators.answers import Answers
from dlmrl_kit.filters.success_range import SuccessRange
from dlmrl_kit.likelihoods.elbo import Elbo
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.loggers.metrics_csv import MetricsCSV
from dlmrl_kit.losses.ppo import StepPPO
from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.normalisers.means import PerToken
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.pretrainers.masked_diffusion import MaskedDiffusion
from dlmrl_kit.prompts.plain_prompt import PlainPrompt
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.regularisers.kl import KLK3, TokenKLK3
from dlmrl_kit.rewards.integer_answer import IntegerAnswer
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.margin_order import MarginOrder
from dlmrl_kit.schedules.curves import Linear
from dlmrl_kit.selectors.entropy_importance import EntropyImportance
from dlmrl_kit.selectors.top_k import EntropyTopK
from dlmrl_kit.step_schedules.even_steps import EvenSteps
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.trainers.trainer import Trainer
from dlmrl_kit.values.token_value import TokenValue


@functools.cache
def questions() -> str:
    """A file of questions and answers in the characters of the tiny policy."""
    folder = tempfile.mkdtemp(prefix="dlmrl-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rows = [{"question": f"{a}{b}{c}:", "answer": f"{c}{b}{a}"} for a, b, c in itertools.product("1234", repeat=3)]
    path = Path(folder) / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


class Place(NamedTuple):
    """A method of a working component, and a recipe in which it is called.

    Attributes:
        kind: of the component.
        base: its class.
        method: its name.
        name: of the recipe.
        uses, sets: of the recipe; ``{}`` stands for the component's name.
    """

    kind: str
    base: type
    method: str
    name: str = "egspo"
    uses: tuple[str, ...] = ("{kind}={name}",)
    sets: tuple[str, ...] = ()


LAM = ("OneStepDenoise.lam = @{name}()", "{name}.start = 0.1", "{name}.end = 0.5")
TRACE = ("SuccessRange.low = 0.0", "SuccessRange.high = 1.0")
ASKED = (
    f"Questions.data = {questions()!r}",
    "Questions.tags = False",
    "Questions.rewards = [@IntegerAnswer()]",
    "Questions.prompt = @PlainPrompt()",
    "PromptLayout.instruction = ''",
    "PromptLayout.prefix = ''",
)
PLACES = [
    Place("task", Sudoku4x4, "score"),
    Place("task", Sudoku4x4, "example"),
    Place("task", Sudoku4x4, "size"),
    Place("policy", Pretrained, "load", sets=("{name}.path = 'shipped:sudoku4x4'",)),
    Place("sampler", LowConfidence, "decide"),
    Place("sampler", LowConfidence, "action_log_prob", uses=("{kind}={name}", "likelihood=StepLogProb")),
    Place("sampler", LowConfidence, "forward"),
    Place("sampler", LowConfidence, "decode"),
    Place("sampler", MarginOrder, "scores"),
    Place("cache", DualCache, "window"),
    Place("correction", TruncatedImportance, "weights", uses=("cache=PrefixCache", "{kind}={name}")),
    Place("collector", Here, "collect"),
    Place("filter", SuccessRange, "keep", sets=("{name}.low = 0.0", "{name}.high = 1.0")),
    Place("selector", EntropyTopK, "kept"),
    Place("selector", EntropyImportance, "choose"),
    Place("advantage", GroupMean, "estimate"),
    Place("advantage", OneStepDenoise, "forward"),
    Place("likelihood", StepTokenLogProb, "estimate"),
    Place("likelihood", Elbo, "forward", "egspo", ("selector=WholeSequence", "{kind}={name}")),
    Place("value", TokenValue, "forward", "tracerl_value", ("{kind}={name}",), TRACE),
    Place("loss", StepPPO, "total"),
    Place("loss", StepPPO, "measures"),
    Place("loss", TokenPPO, "forward", "tracerl", ("{kind}={name}",), TRACE),
    Place("regulariser", KLK3, "forward"),
    Place("regulariser", KLK3, "values"),
    Place("regulariser", TokenKLK3, "per_token", "tracerl", ("{kind}={name}",), TRACE),
    Place("normaliser", PerToken, "shares", "tracerl", (), (*TRACE, "TokenPPO.normaliser = @{name}()")),
    Place("normaliser", PerToken, "count", "tracerl", (), (*TRACE, "TokenPPO.normaliser = @{name}()")),
    Place("schedule", Linear, "__call__", "egspo_sa", (), LAM),
    Place(
        "step_schedule",
        EvenSteps,
        "numbers",
        uses=(),
        sets=("Sampler.tokens_per_step = @{name}()", "{name}.steps = 4"),
    ),
    Place("logger", MetricsCSV, "open"),
    Place("logger", MetricsCSV, "log"),
    Place("logger", MetricsCSV, "close"),
    Place("demonstrator", Answers, "demonstrations", "pretrain_sudoku4x4"),
    Place("pretrainer", MaskedDiffusion, "objective", "pretrain_sudoku4x4"),
    Place("reward", IntegerAnswer, "value", uses=("task=Questions",), sets=(*ASKED, "Questions.rewards = [@{name}()]")),
    Place("prompt", PlainPrompt, "laid_out", uses=("task=Questions",), sets=(*ASKED, "Questions.prompt = @{name}()")),
]
OTHERS = [Place("trainer", Trainer, "")]
"""Kinds without a method of their own that is called."""


class Boom(Exception):
    """An error of a plugin's own."""


def boom(*_: Any, **__: Any) -> Any:
    raise Boom("it went\nwrong")


def leave(*_: Any, **__: Any) -> Any:
    raise SystemExit(3)


def tensors_changed(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """A result with each of its tensors changed; of a TensorDict those that have a gradient, or one that does not."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, TensorDictBase):
        found = value.copy()
        for key, leaf in list(value.items(True, True)):
            if leaf.is_floating_point():
                found = _replaced(found, key, change(leaf))
        return found
    if isinstance(value, Mapping):
        return {key: tensors_changed(item, change) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(tensors_changed(item, change) for item in value)
    if dataclasses.is_dataclass(value):
        fields = {f.name: tensors_changed(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def _replaced(found: Any, key: Any, value: Any) -> Any:
    del found[key]
    return found.set(key, value)


def other_dtype(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.bool:
        return tensor.float()
    return tensor.to(torch.int16) if tensor.is_floating_point() else tensor.double()


def longer(tensor: Tensor) -> Tensor:
    return tensor[None].repeat(2, *([1] * tensor.dim())) if tensor.dim() else tensor[None].repeat(3)


RETURNS: dict[str, Callable[[Any], Any]] = {
    "None": lambda result: None,
    "a number": lambda result: 0.5,
    "a text": lambda result: "a lot",
    "a list": lambda result: [1.0],
    "an empty dict": lambda result: {},
    "an object": lambda result: object(),
    "an array": lambda result: tensors_changed(result, lambda t: t.detach().cpu().numpy()),
    "another dtype": lambda result: tensors_changed(result, other_dtype),
    "another shape": lambda result: tensors_changed(result, longer),
    "one row less": lambda result: tensors_changed(result, lambda t: t[:-1] if t.dim() else t[None][:0]),
    "another device": lambda result: tensors_changed(result, lambda t: t.to("meta")),
}
"""What a method returns in place of its result."""


def faulty(place: Place, fault: str) -> type:
    """Registers a class whose method goes wrong."""
    base, method = place.base, place.method
    original = getattr(base, method, None)
    members: dict[str, Any] = {"__module__": __name__, "__doc__": "Faulty."}

    def returns(self: Any, *given: Any, **named: Any) -> Any:
        return RETURNS[fault](original(self, *given, **named))

    def in_place(self: Any, *given: Any, **named: Any) -> Any:
        result = original(self, *given, **named)
        for value in (*given, *named.values()):
            for tensor in value.values(True, True) if isinstance(value, TensorDictBase) else [value]:
                if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.requires_grad:
                    tensor.add_(1)
                elif isinstance(tensor, Tensor) and tensor.dtype == torch.bool:
                    tensor.logical_not_()
        return result

    if fault in RETURNS:
        members[method] = _signed(returns, original)
    elif fault == "changes its arguments":
        members[method] = _signed(in_place, original)
    elif fault == "raises":
        members[method] = _signed(boom, original)
    elif fault == "exits":
        members[method] = _signed(leave, original)
    elif fault == "takes nothing":
        members[method] = lambda self: None
    elif fault == "takes one more":
        members[method] = lambda self, one, two, three, four, five, six, seven, eight, **_: None
    elif fault == "is no method":
        members[method] = 3
    else:
        raise ValueError(fault)
    name = f"Faulty{place.kind.title()}"
    return register(place.kind)(type(name, (base,), members))


def _signed(function: Callable[..., Any], original: Any) -> Callable[..., Any]:
    def method(self: Any, *given: Any, **named: Any) -> Any:
        return function(self, *given, **named)

    method.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    return method


OTHER_FAULTS = ["changes its arguments", "raises", "exits", "takes nothing", "takes one more", "is no method"]
FAULTS = [*RETURNS, *OTHER_FAULTS]
TENSORS = {"an array", "another dtype", "another shape", "one row less", "another device"}


def applies(place: Place, fault: str) -> bool:
    """Whether a fault is one at this place: not every method returns or is given tensors."""
    if place.method in ("open", "log", "close"):  # what loggers return is not read
        return fault in OTHER_FAULTS[1:] and (place.method, fault) != ("close", "takes nothing")
    if (place.method, fault) == ("load", "takes nothing"):  # it is given nothing
        return False
    if place.kind in ("task", "policy", "cache", "collector", "demonstrator", "step_schedule", "reward", "prompt"):
        return fault not in TENSORS | {"changes its arguments"}
    if fault == "changes its arguments":  # of a view or replayed steps, whose logits a sampler may change
        return place.method not in ("decide", "action_log_prob", "scores", "estimate") or place.kind == "advantage"
    if fault == "another dtype":  # any numbers are right
        return place.method not in ("count", "measures")
    if (place.method, fault) in (("values", "None"), ("measures", "an empty dict")):  # it knows nothing of segments
        return False
    return (
        fault != "an array" or place.method != "forward" or place.kind in ("loss", "regulariser", "likelihood", "value")
    )


def faulty_recipe(place: Place, cls: type, sets: Iterable[str] = ()) -> Recipe:
    """A tiny recipe that uses a class."""

    def named(texts: Iterable[str]) -> list[str]:
        return [text.format(kind=place.kind, name=cls.__name__) for text in texts]

    if place.name.startswith("pretrain"):
        small = [text.replace("MaskedDiffusion.steps = 9", "MaskedDiffusion.steps = 2") for text in PRETRAINING]
        if place.kind == "pretrainer":
            small = [text.replace("MaskedDiffusion", cls.__name__) for text in small]
        use = f"Pretraining.{place.kind} = @{cls.__name__}()"
        return load_recipe(place.name, sets=[*small, use, *sets])
    length = ["Trainer.updates = 1", "Trainer.eval_every = 0"] if place.kind != "trainer" else []
    return recipe(place.name, sets=[*length, *named(place.sets), *sets], uses=named(place.uses))
