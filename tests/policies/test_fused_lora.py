"""LoRA layers in one product: peft's values and gradients, and peft's own computation where that does not apply."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from support.policies import tiny_policy
from support.rollouts import prompts
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlmrl_kit.policies import fused_lora
from dlmrl_kit.policies.recompute import recompute_blocks
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Kernels(TorchDispatchMode):
    """Counts matrix products, and all operations that a GPU starts a kernel for in a linear layer with LoRA."""

    products = number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        self.products += name in ("mm", "addmm")
        self.number += name in ("mm", "addmm", "mul", "add", "cat", "_to_copy")
        return func(*args, **(kwargs or {}))


def adapted(rank: int = 3, dtype: torch.dtype = torch.float64, **options: Any) -> TransformersPolicy:
    policy = tiny_policy(layers=2, attn_implementation="sdpa", attention_bias=True)
    torch.manual_seed(1)
    policy.add_adapter(LoraConfig(r=rank, init_lora_weights=False, target_modules=TARGETS, **options))
    return policy.to(dtype)


def outcome(policy: TransformersPolicy) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the gradients of a weighted sum of them."""
    given = prompts(policy, rows=4)
    mask = given["prompt_mask"]
    logits = policy(given["prompt_ids"], mask, mask)
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    return logits.detach(), list(torch.autograd.grad((logits * weight).sum(), [p for _, p in policy.trainable()]))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the products that were fused."""
    found: list[int] = []
    original = fused_lora._Product.apply
    monkeypatch.setattr(fused_lora._Product, "apply", lambda *given: (found.append(1), original(*given))[1])
    return found


@pytest.mark.parametrize("options", [{}, {"lora_alpha": 5}, {"use_rslora": True}], ids=str)
def test_values_and_gradients_are_those_of_peft(options: dict[str, Any], calls: list[int]) -> None:
    policy = adapted(**options)
    logits, gradients = outcome(policy)
    with policy.fused():
        own, found = outcome(policy)
    assert len(calls) == 2 * len(TARGETS)
    torch.testing.assert_close(own, logits, rtol=1e-10, atol=1e-10)
    assert sum(float(gradient.abs().sum()) > 0 for gradient in gradients) == 4 * len(TARGETS)
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 3), min_size=1, max_size=2), st.booleans(), st.booleans())
def test_a_product_by_finite_differences(seed: int, batch: list[int], biased: bool, wants_input: bool) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, grad: bool = True) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(grad)

    x, a, b = random(*batch, 4, grad=wants_input), random(2, 4), random(3, 2)
    weight, bias = random(3, 4, grad=False), random(3, grad=False) if biased else None

    def product(x: Tensor, a: Tensor, b: Tensor) -> Any:
        whole = (weight + 0.7 * b @ a).detach()
        return fused_lora._Product.apply(x, whole, a, b, 0.7, bias)

    expected = x @ (weight + 0.7 * b @ a).mT + (0 if bias is None else bias)
    torch.testing.assert_close(product(x, a, b), expected)
    wanted = [part for part in (x, a, b) if part.requires_grad]
    cotangent = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for own, other in zip(
        torch.autograd.grad(product(x, a, b), wanted, cotangent),
        torch.autograd.grad(expected, wanted, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


def test_the_reference_is_the_base(calls: list[int]) -> None:
    policy = adapted()
    with policy.reference():
        expected = policy(*(prompts(policy)[key] for key in ("prompt_ids", "prompt_mask", "prompt_mask")))
    with policy.fused(), policy.reference():
        found = policy(*(prompts(policy)[key] for key in ("prompt_ids", "prompt_mask", "prompt_mask")))
    assert torch.equal(found, expected)
    assert not calls


def flat_gradient(policy: TransformersPolicy, logits: Tensor) -> Tensor:
    """The gradient of the sum of the squared logits by everything that is trained."""
    found = torch.autograd.grad(logits.double().square().sum(), [p for _, p in policy.trainable()])
    return torch.cat([part.double().flatten() for part in found])


HALF = [
    ("float32", "float32", True, (74, 28)),
    ("bfloat16", "float32", True, (84, 23)),  # as recipes for 8B have it
    ("bfloat16", "float32", False, (84, 60)),
    ("bfloat16", "bfloat16", True, (56, 23)),
    ("bfloat16", "bfloat16", False, (56, 23)),
]


@pytest.mark.parametrize(("base", "lora", "mixed", "added"), HALF)
def test_half_precision_computes_as_peft_does_in_fewer_kernels(
    base: str, lora: str, mixed: bool, added: tuple[int, int], calls: list[int]
) -> None:
    """Nothing is merged. Numbers are as near to those in float64 as peft's; ``added``: kernels, by peft and here."""
    policy = adapted(dtype=getattr(torch, base))
    for name, parameter in policy.model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(getattr(torch, lora))
    exact = adapted()
    exact.load_state_dict({name: value.double() for name, value in policy.state_dict().items()})
    given = [prompts(policy)[key] for key in ("prompt_ids", "prompt_mask", "prompt_mask")]
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        with torch.no_grad(), policy.reference():
            policy(*given)
            with Kernels() as without:
                policy(*given)
        with torch.no_grad():
            policy(*given)  # weights are cast once
            with Kernels() as before:
                peft = policy(*given)
        with torch.no_grad(), policy.merged():
            policy(*given)
            with Kernels() as after:
                rollout = policy(*given)
        with policy.fused():
            update = policy(*given)
            found = flat_gradient(policy, update)
        peft_gradient = flat_gradient(policy, policy(*given))
    assert not calls
    assert torch.equal(rollout, update.detach())  # so ratios begin at 1
    wanted = exact(*given)
    assert (rollout.double() - wanted).norm() < 1.2 * (peft.double() - wanted).norm()
    gradient = flat_gradient(exact, wanted)
    assert (found - gradient).norm() < 1.2 * (peft_gradient - gradient).norm()
    layers = policy.model.config.num_hidden_layers
    # q, k, v share one product, gate and up another; the last layer asks for its queries at other places.
    assert before.products - after.products == 3 * layers - 1
    assert (before.number - without.number, after.number - without.number) == added


def test_two_adapters_compute_as_peft_does(calls: list[int]) -> None:
    policy = adapted()
    policy.adapter.add_adapter("other", LoraConfig(r=2, init_lora_weights=False, target_modules=TARGETS))
    policy.adapter.base_model.set_adapter(["default", "other"])
    with policy.fused():
        outcome(policy)
    assert not calls


def test_everything_is_as_before_also_after_an_error() -> None:
    policy = adapted()
    before = outcome(policy)[0]
    with pytest.raises(ZeroDivisionError), policy.fused():
        1 / 0  # noqa: B018
    assert not [layer for layer in policy.adapter.modules() if "forward" in vars(layer)]
    assert torch.equal(outcome(policy)[0], before)


def test_without_an_adapter_nothing_happens() -> None:
    policy = tiny_policy()
    with policy.fused():
        pass


def test_blocks_that_are_recomputed(calls: list[int]) -> None:
    policy = adapted()
    gradients = outcome(policy)[1]
    recompute_blocks(policy.model)
    with policy.fused():
        found = outcome(policy)[1]
    assert len(calls) > 2 * len(TARGETS)  # again in the backward pass
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]
)
def test_in_half_precision_a_rollout_adds_the_adapter_by_itself(dtype: str, precision: str) -> None:
    """Merged and rounded it would be gone: weights published in bfloat16 are on its grid, and small sums round back."""
    policy = adapted(dtype=getattr(torch, dtype))
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(1e-4 / parameter.abs().mean())
        elif "lora_A" not in name:
            parameter.data = parameter.data.bfloat16().to(parameter.dtype)
    layer = policy.model.model.layers[0].self_attn.q_proj
    x = torch.randn(64, layer.in_features, generator=torch.Generator().manual_seed(0)).to(layer.weight.dtype)
    added = x.float() @ layer.get_delta_weight("default").float().mT
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != precision), torch.no_grad(), policy.merged():
        assert bool(layer.merged_adapters) == (precision == "float32")
        with Kernels() as kernels:
            policy(*(prompts(policy)[key] for key in ("prompt_ids", "prompt_mask", "prompt_mask")))
    adapters = sum(isinstance(module, Linear) for module in policy.adapter.modules())
    least = 1 if precision == "float32" else 2  # and a part of the products with A, which some layers share
    assert least * adapters <= kernels.products < (least + 1) * adapters
    rounded = (layer.weight.float() + layer.get_delta_weight("default").float()).bfloat16().float()
    lost = (x.float() @ (rounded - layer.weight.float()).mT - added).norm() / added.norm()
    assert lost > 0.9
