"""Normalisers against loops; micro-batches of samples and pieces of samples accumulate exactly."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.loss_batches import ADVANTAGE, MASK, OLD_TOKEN, TOKEN, WEIGHT, make_batch, run
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.trajectory import segment_pieces
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.normalisers.means import FixedLength, FixedStepLength, PerSequence, PerStep, PerToken
from dlmrl_kit.recipe.load import load_recipe

fast = settings(max_examples=40, deadline=None)
NORMALISERS: dict[str, Callable[[], Normaliser]] = {
    "PerToken": PerToken,
    "PerStep": PerStep,
    "PerSequence": PerSequence,
    "FixedLength": lambda: FixedLength(7),
    "FixedStepLength": lambda: FixedStepLength(7),
}
all_normalisers = pytest.mark.parametrize("make", NORMALISERS.values(), ids=list(NORMALISERS))


@st.composite
def tokens(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Values, mask and weights of a batch in which segments may hold no token, weight 0 or both."""
    b, k, c = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    weight = torch.rand(b, k, generator=gen).double() + 0.5
    weight = weight * (torch.rand(b, k, generator=gen) < draw(st.sampled_from([0.0, 0.6, 1.0])))
    mask = (torch.rand(b, k, c, generator=gen) < draw(st.sampled_from([0.0, 0.5, 1.0]))) & (weight != 0)[..., None]
    return torch.randn(b, k, c, generator=gen).double(), mask, weight


def slow(name: str, values: Tensor, mask: Tensor, weight: Tensor) -> tuple[float, float]:
    """Numerator and count."""
    rows: list[list[tuple[float, list[float]]]] = []
    for i in range(len(mask)):
        rows.append([(weight[i, j].item(), values[i, j][mask[i, j]].tolist()) for j in range(mask.shape[1])])
    steps = [step for row in rows for step in row]
    if name == "PerToken":
        return sum(w * sum(v) for w, v in steps), sum(w * len(v) for w, v in steps)
    if name == "PerStep":
        return sum(w * sum(v) / len(v) for w, v in steps if v), sum(w for w, v in steps if v)
    if name == "FixedLength":
        return sum(w * sum(v) for w, v in steps) / 7, len(rows)
    if name == "FixedStepLength":
        return sum(w * sum(v) for w, v in steps) / 7, sum(w for w, v in steps if v)
    sizes = [sum(w * len(v) for w, v in row) for row in rows]
    sums = [sum(w * sum(v) for w, v in row) for row in rows]
    return sum(total / n for total, n in zip(sums, sizes, strict=True) if n), len(rows)


@pytest.mark.parametrize("name", NORMALISERS)
@fast
@given(tokens())
def test_normalisers_equal_a_loop(name: str, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    values, mask, weight = batch
    normaliser = NORMALISERS[name]()
    numerator, count = slow(name, values, mask, weight)
    assert normaliser.total(values, mask, weight).item() == pytest.approx(numerator, rel=1e-12, abs=1e-12)
    assert normaliser.count(mask, weight).item() == pytest.approx(count, rel=1e-12)
    shares = normaliser.shares(mask, weight)
    assert shares.dtype == torch.float64
    assert (shares[~mask] == 0).all()
    assert (shares[mask] > 0).all()


@all_normalisers
@fast
@given(tokens())
def test_what_is_outside_the_mask_never_counts(
    make: Callable[[], Normaliser], batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    values, mask, weight = batch
    expected = make().total(values, mask, weight)
    for junk in (math.nan, math.inf, 1e300):
        leaf = values.masked_fill(~mask, junk).requires_grad_()
        found = make().total(leaf, mask, weight)
        assert torch.equal(found.detach(), expected)
        (gradient,) = torch.autograd.grad(found, leaf)
        assert (gradient[~mask] == 0).all()
        torch.testing.assert_close(gradient, make().shares(mask, weight) * weight[..., None], rtol=1e-14, atol=0)


@all_normalisers
@fast
@given(tokens(), st.randoms())
def test_numerator_and_count_add_up_over_samples(
    make: Callable[[], Normaliser], batch: tuple[Tensor, Tensor, Tensor], random: Any
) -> None:
    parts = [[i for i in range(len(batch[0])) if part == i % 2] for part in (0, 1)]
    random.shuffle(parts)
    whole = make().total(*batch).item(), make().count(*batch[1:]).item()
    pieces = [[x[part] for x in batch] for part in parts]
    assert sum(make().total(*piece).item() for piece in pieces) == pytest.approx(whole[0], rel=1e-12, abs=1e-12)
    assert sum(make().count(*piece[1:]).item() for piece in pieces) == pytest.approx(whole[1], rel=1e-12)


def accumulated(
    loss: TokenPPO, batch: TensorDictBase, pieces: list[tuple[Tensor, TensorDictBase]]
) -> tuple[float, Tensor]:
    """Loss and gradient of a batch from pieces of it, as an update adds them up."""
    count, total = float(loss.count(batch)), 0.0
    gradient = torch.zeros_like(batch[TOKEN])
    for rows, piece in pieces:
        out, grad = run(loss, piece, TOKEN)
        share = float(loss.count(piece)) / count
        total += out["loss_objective"].item() * share
        gradient.index_add_(0, rows, grad * share)
    return total, gradient


@all_normalisers
@pytest.mark.parametrize("seed", range(3))
def test_updates_accumulate_exactly(make: Callable[[], Normaliser], seed: int) -> None:
    """Over micro-batches of any size, and over pieces of the segments of a sample where the normaliser allows them."""
    batch, loss = make_batch(seed, b=6), TokenPPO(normaliser=make())
    assert loss.segmentwise == make().segmentwise
    out, grad = run(loss, batch, TOKEN)
    assert grad.abs().max() > 0
    cuts = [[torch.arange(6)[start : start + size] for start in range(0, 6, size)] for size in (1, 2, 4)]
    ways = [[(rows, batch[rows]) for rows in cut] for cut in cuts]
    if loss.segmentwise:
        ways += [segment_pieces(batch, size) for size in (1, 2, 5)]
    for pieces in ways:
        total, found = accumulated(loss, batch, pieces)
        assert total == pytest.approx(out["loss_objective"].item(), rel=1e-12)
        torch.testing.assert_close(found, grad, rtol=1e-12, atol=1e-15)


def test_a_sample_that_is_cut_would_count_more_often_per_sequence() -> None:
    """Why PerSequence says segmentwise = False."""
    batch, loss = make_batch(0, b=6), TokenPPO(normaliser=PerSequence())
    out, _ = run(loss, batch, TOKEN)
    total, _ = accumulated(loss, batch, segment_pieces(batch, 1))
    assert abs(total - out["loss_objective"].item()) > 1e-3


def test_equal_lengths_make_all_the_same_up_to_a_constant() -> None:
    """Two tokens in each of three steps of weight 1: on-policy every normaliser has Reinforce's direction."""
    batch = make_batch(0, b=4, k=3, c=2)
    batch[WEIGHT] = torch.ones_like(batch[WEIGHT])
    batch[MASK] = torch.ones_like(batch[MASK])
    batch[OLD_TOKEN] = batch[TOKEN].clone()
    expected = -batch[ADVANTAGE][..., None].expand_as(batch[TOKEN]) / 4
    scales = {
        "PerToken": 1 / 6,
        "PerStep": 1 / 6,
        "PerSequence": 1 / 6,
        "FixedLength": 1 / 7,
        "FixedStepLength": 1 / 21,
    }
    for name, make in NORMALISERS.items():
        _, grad = run(TokenPPO(normaliser=make()), batch, TOKEN)
        torch.testing.assert_close(grad, scales[name] * expected, rtol=1e-13, atol=0)
    _, grad = run(TokenPPO(normaliser=FixedLength()), batch, TOKEN)
    torch.testing.assert_close(grad, expected, rtol=1e-13, atol=0)
    batch["selected", "log_prob"] = batch[TOKEN].sum(-1)
    _, step = run(Reinforce(), batch, ("selected", "log_prob"))
    torch.testing.assert_close(grad, step[..., None].expand_as(grad), rtol=1e-13, atol=0)


@all_normalisers
def test_copies_and_recipes(make: Callable[[], Normaliser]) -> None:
    mask, weight = make_batch(0)[MASK], make_batch(0)[WEIGHT]
    mask = mask & (weight != 0)[..., None]
    twin = pickle.loads(pickle.dumps(make()))
    assert torch.equal(twin.shares(mask, weight), make().shares(mask, weight))
    name = type(make()).__name__
    sets = [f"TokenPPO.normaliser = @{name}()", *([f"{name}.length = 7"] if name.startswith("Fixed") else [])]
    built = load_recipe("tracerl", sets=sets).build_algorithm().loss
    assert isinstance(built, TokenPPO)
    assert type(built.normaliser) is type(make())
    assert getattr(built.normaliser, "length", 7) == 7


@pytest.mark.parametrize("length", [0, -3])
def test_length_out_of_range(length: int) -> None:
    with pytest.raises(ValueError, match=rf"FixedLength\.length must be at least 1, got {length}"):
        FixedLength(length)


def test_a_loss_wants_a_normaliser() -> None:
    with pytest.raises(ValueError, match=r"TokenPPO\.normaliser must be a normaliser, got 'PerToken'"):
        TokenPPO(normaliser="PerToken")  # type: ignore[arg-type]
