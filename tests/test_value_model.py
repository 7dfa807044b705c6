"""Token values, step-wise advantages, value loss and the loss of single tokens against plain loops; whole runs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from core import prompts, tiny_policy
from safetensors.torch import load_file
from tensordict import TensorDict
from torch import Tensor
from training_helpers import new_run, outcome, recipe

from dlmrl_kit.advantages.step_gae import StepGAE
from dlmrl_kit.audit import audit_algorithm
from dlmrl_kit.audit.variants import exact_algorithm
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.keys import SELECTED_OLD_VALUE, SELECTED_RETURN, SELECTED_TOKEN_ADVANTAGE, SELECTED_VALUE
from dlmrl_kit.losses.token_ppo import TokenAdvantagePPO, TokenPPO
from dlmrl_kit.normalisers.means import FixedLength, PerStep, PerToken
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.regularisers.value_loss import ValueLoss
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.selectors.shrunk_steps import ShrunkSteps
from dlmrl_kit.training.loop import Run, resume, train
from dlmrl_kit.training.update import Totals
from dlmrl_kit.values.base import OldValue
from dlmrl_kit.values.token_value import TokenValue

LENGTH = 8
POLICY = tiny_policy(hidden=16, layers=1, characters="abc", initializer_range=0.6).double()


def rolled_out(shrink: int = 2, rows: int = 12) -> tuple[Sampler, TensorDict]:
    """Trajectories with segments selected; some hold an end of text with tokens committed behind it."""
    sampler = RandomOrder(LENGTH, 1, stop_at_eos=True)
    data = sampler(prompts(POLICY, rows), policy=POLICY, generator=torch.Generator().manual_seed(1))
    data["reward"] = torch.randn(rows, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    selector = ShrunkSteps(shrink)
    selector.ask_for([("selected", "end")])
    data = selector(data)
    data["selected", "weight"][0] = 0  # a row that selects nothing
    return sampler, data


def counted(data: TensorDict, b: int, k: int, after_eos: bool = False) -> list[int]:
    """Positions of the tokens of slot k of row b that count."""
    if data["selected", "weight"][b, k] == 0:
        return []
    tokens, commit = data["completion_ids"][b].tolist(), data["commit_step"][b].tolist()
    start, end = int(data["selected", "step"][b, k]), int(data["selected", "end"][b, k])
    last = tokens.index(POLICY.eos_id) if POLICY.eos_id in tokens and not after_eos else LENGTH
    return [i for i in range(LENGTH) if start <= commit[i] < end and i <= last]


def slots(data: TensorDict) -> list[tuple[int, int]]:
    rows, columns = data["selected", "weight"].shape
    return list(itertools.product(range(rows), range(columns)))


class Opinionated(TokenValue):
    """A value model whose head does not start at zero."""

    def attach(self, policy: Policy) -> None:
        new = self.head is None
        super().attach(policy)
        assert self.head is not None
        if new:
            with torch.no_grad():
                self.head.weight.copy_(torch.linspace(-1, 2, self.head.in_features))


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("after_eos", [False, True])
def test_token_values_against_a_loop(after_eos: bool) -> None:
    sampler, data = rolled_out()
    value = Opinionated(after_eos, batch_size=5)
    found = value(data.clone(), policy=POLICY, sampler=sampler)[SELECTED_VALUE]
    assert value.head is not None
    weight = value.head.weight[0]
    expected = torch.zeros_like(found)
    behind = 0
    for b, k in slots(data):
        positions = counted(data, b, k, after_eos)
        behind += len(counted(data, b, k, True)) - len(positions)
        prompt = data["prompt_ids"][b][data["prompt_mask"][b]].tolist()
        commit, start = data["commit_step"][b], data["selected", "step"][b, k]
        state = data["completion_ids"][b].masked_fill(commit >= start, POLICY.mask_id).tolist()
        hidden = POLICY.model.model(input_ids=torch.tensor([prompt + state])).last_hidden_state[0, len(prompt) :]
        for i in positions:
            expected[b, k, i] = (weight * hidden[i]).sum()
    assert (behind > 0) == (not after_eos)
    assert torch.allclose(found, expected, atol=1e-10, rtol=0)
    assert found.abs().max() > 0.1


def test_values_start_at_zero_and_give_the_policy_no_gradient() -> None:
    sampler, data = rolled_out()
    value = TokenValue()
    value.attach(POLICY)
    found = value(data.clone(), policy=POLICY, sampler=sampler)[SELECTED_VALUE]
    assert torch.equal(found, torch.zeros_like(found))
    parameters = [p for _, p in POLICY.trainable()]
    gradient = torch.autograd.grad(found.sum(), [*parameters, *value.parameters()], allow_unused=True)
    assert all(part is None for part in gradient[:-1])
    assert gradient[-1].abs().max() > 0
    old = OldValue(Opinionated())(data.clone(), policy=POLICY, sampler=sampler)[SELECTED_OLD_VALUE]
    assert not old.requires_grad
    with pytest.raises(UserError, match="hidden size 16; this one has 32"):
        value.attach(tiny_policy())


# --------------------------------------------------------------------------------------------------------- advantages


def loop_gae(
    data: TensorDict, b: int, gamma: float, lam: float
) -> dict[str, dict[tuple[int, int], float] | dict[int, float]]:
    """Advantages of steps by slot; advantages and returns of tokens by (slot, position)."""
    steps = [(k, counted(data, b, k)) for k in range(data["selected", "weight"].shape[1])]
    steps = [(k, tokens) for k, tokens in steps if tokens]
    value = {(k, i): float(data[SELECTED_OLD_VALUE][b, k, i]) for k, tokens in steps for i in tokens}
    found: dict[str, Any] = {"step": {}, "token": {}, "return": {}}
    next_value = next_advantage = next_return = 0.0
    for place, (k, tokens) in reversed(list(enumerate(steps))):
        reward = float(data["reward"][b]) if place == len(steps) - 1 else 0.0
        mean = sum(value[k, i] for i in tokens) / len(tokens)
        for i in tokens:
            found["token"][k, i] = reward - value[k, i] + gamma * next_value + gamma * lam * next_advantage
            found["return"][k, i] = reward + gamma * next_return
        next_advantage = reward - mean + gamma * next_value + gamma * lam * next_advantage
        next_value, next_return = mean, reward + gamma * next_return
        found["step"][k] = next_advantage
    return found


def advantages(data: TensorDict, gamma: float, lam: float) -> TensorDict:
    gae = StepGAE(gamma, lam)
    gae.ask_for(gae.optional_keys)
    return gae(data.clone(), policy=POLICY)


def with_values(data: TensorDict) -> TensorDict:
    """Values everywhere, where no token counts too."""
    shape = (*data["selected", "weight"].shape, LENGTH)
    data[SELECTED_OLD_VALUE] = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return data


@pytest.mark.parametrize("shrink", [1, 3])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.7), (0.8, 0.0), (0.0, 0.5), (1.0, 0.0)])
def test_step_gae_against_a_loop(shrink: int, gamma: float, lam: float) -> None:
    data = with_values(rolled_out(shrink)[1])
    found = advantages(data, gamma, lam)
    expected = {
        key: torch.zeros_like(found[key])
        for key in (("selected", "advantage"), SELECTED_TOKEN_ADVANTAGE, SELECTED_RETURN)
    }
    for b in range(len(data)):
        loop = loop_gae(data, b, gamma, lam)
        for key, name in zip(expected, ("step", "token", "return"), strict=True):
            for place, number in loop[name].items():
                expected[key][(b, *place) if isinstance(place, tuple) else (b, place)] = number
    for key, numbers in expected.items():
        assert torch.allclose(found[key], numbers, atol=1e-12, rtol=0), key
    lone = [b for b, k in slots(data) if data["selected", "weight"][b, k] > 0 and not counted(data, b, k)]
    assert lone  # steps without a token that counts are passed over
    assert found["selected", "advantage"].dtype == torch.float64


def test_without_discount_every_token_is_credited_with_the_reward_beyond_its_value() -> None:
    data = with_values(rolled_out()[1])
    found = advantages(data, 1.0, 1.0)
    for b, k in slots(data):
        for i in counted(data, b, k):
            assert found[SELECTED_RETURN][b, k, i].item() == pytest.approx(data["reward"][b].item(), abs=1e-12)
            expected = (data["reward"][b] - data[SELECTED_OLD_VALUE][b, k, i]).item()
            assert found[SELECTED_TOKEN_ADVANTAGE][b, k, i].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sampler", [EntropyOrder(3, temperature=0.8), RandomOrder(3)], ids=["entropy", "random"])
def test_a_value_of_the_state_leaves_the_gradient_unbiased(sampler: Sampler) -> None:
    def audited(gamma: float) -> float:
        algorithm = exact_algorithm(sampler, advantage=StepGAE(gamma), value=[Opinionated()])
        report = audit_algorithm(algorithm, problems=2, attribution=False)
        assert report.exact
        return float(report.relative_bias)

    assert audited(1.0) < 1e-10
    assert audited(0.5) > 0.01


# -------------------------------------------------------------------------------------------------------------- terms


def batch(seed: int = 0) -> TensorDict:
    """Numbers of every kind; tokens by position, padding that is not finite."""
    generator = torch.Generator().manual_seed(seed)
    shape = (5, 3, 6)
    mask = torch.rand(shape, generator=generator) < 0.5
    weight = torch.rand(shape[:2], generator=generator, dtype=torch.float64) + 0.5
    weight[1, 2] = weight[3] = 0
    data = TensorDict({("selected", "weight"): weight, ("selected", "token_mask"): mask}, [5])
    data["selected", "advantage"] = torch.randn(shape[:2], generator=generator, dtype=torch.float64)
    for name in ("value", "old_value", "return", "token_advantage", "token_log_prob", "old_token_log_prob"):
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
        data["selected", name] = numbers.masked_fill(~mask, torch.nan)
    return data


def loop_shares(data: TensorDict, normaliser: Any) -> dict[tuple[int, int, int], float]:
    """Weight of each token in the mean."""
    weight, mask = data["selected", "weight"].tolist(), data["selected", "token_mask"].tolist()
    tokens = [
        (b, k, i) for b, k, i in itertools.product(range(5), range(3), range(6)) if mask[b][k][i] and weight[b][k] > 0
    ]
    if isinstance(normaliser, FixedLength):
        return {t: weight[t[0]][t[1]] / normaliser.length / 5 for t in tokens}
    if isinstance(normaliser, PerStep):
        steps = {t[:2] for t in tokens}
        total = sum(weight[b][k] for b, k in steps)
        return {t: weight[t[0]][t[1]] / sum(mask[t[0]][t[1]]) / total for t in tokens}
    total = sum(weight[b][k] for b, k, _ in tokens)
    return {t: weight[t[0]][t[1]] / total for t in tokens}


NORMALISERS = [PerToken(), PerStep(), FixedLength(7)]


@pytest.mark.parametrize("normaliser", NORMALISERS, ids=lambda n: type(n).__name__)
def test_the_value_loss_against_a_loop(normaliser: Any) -> None:
    data, clip = batch(), 0.3
    live = data["selected", "value"].clone().requires_grad_()
    term = ValueLoss(0.7, clip, normaliser)
    found = term(data.clone().set(SELECTED_VALUE, live))
    (gradient,) = torch.autograd.grad(found["loss_value"], live)
    expected, slope, bound = 0.0, torch.zeros_like(live), 0
    for t, share in loop_shares(data, normaliser).items():
        value, old, target = (float(data["selected", name][t]) for name in ("value", "old_value", "return"))
        clipped = old + min(max(value - old, -clip), clip)
        free, held = (value - target) ** 2, (clipped - target) ** 2
        expected += share * 0.5 * max(free, held)
        bound += held > free
        slope[t] = 0.0 if held > free else 0.7 * share * (value - target)
    assert bound > 3
    assert found["value_error"].item() == pytest.approx(expected, abs=1e-12)
    assert found["loss_value"].item() == pytest.approx(0.7 * expected, abs=1e-12)
    assert torch.allclose(gradient, slope, atol=1e-12, rtol=0)


@pytest.mark.parametrize("normaliser", NORMALISERS, ids=lambda n: type(n).__name__)
def test_the_loss_of_single_tokens_against_a_loop(normaliser: Any) -> None:
    data = batch(1)
    found = TokenAdvantagePPO(0.2, 0.4, normaliser)(data)["loss_objective"]
    expected = 0.0
    for t, share in loop_shares(data, normaliser).items():
        ratio = float((data["selected", "token_log_prob"][t] - data["selected", "old_token_log_prob"][t]).exp())
        advantage = float(data[SELECTED_TOKEN_ADVANTAGE][t])
        expected -= share * min(ratio * advantage, min(max(ratio, 0.8), 1.4) * advantage)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_equal_advantages_within_a_step_give_token_ppo() -> None:
    data = batch(2)
    spread = data["selected", "advantage"][..., None].expand(5, 3, 6).clone()
    found = TokenAdvantagePPO()(data.clone().set(SELECTED_TOKEN_ADVANTAGE, spread))
    expected = TokenPPO()(data)
    assert {key: value.item() for key, value in found.items()} == {key: value.item() for key, value in expected.items()}


@pytest.mark.parametrize("term", [TokenAdvantagePPO(), ValueLoss()], ids=lambda t: type(t).__name__)
def test_tokens_that_are_not_by_position_are_refused(term: Any) -> None:
    data = batch()
    for name in ("token_mask", "token_log_prob", "old_token_log_prob"):
        data["selected", name] = data["selected", name][..., :2]
    with pytest.raises(ValueError, match=r"needs a likelihood that scores positions, such as StepMerge; token_mask is"):
        term(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepGAE(gamma=1.5), r"gamma must be in \[0, 1\]"),
        (lambda: StepGAE(lam=-0.1), r"lam must be in \[0, 1\]"),
        (lambda: ValueLoss(clip=-1), "clip must be at least 0"),
        (lambda: TokenValue(batch_size=0), "batch_size must be at least 1"),
        (lambda: TokenValue(learning_rate=0.0), "learning_rate must be positive"),
    ],
)
def test_values_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --------------------------------------------------------------------------------------------------------- whole runs

EASY = ["Trainer.updates = 2", "SuccessRange.low = 0.0", "SuccessRange.high = 1.0", "Trainer.learning_rate = 0.001"]


@pytest.mark.parametrize("name", ["tracerl", "tracerl_value"])
def test_a_killed_run_resumes_bit_for_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(recipe(name, EASY), tmp_path / "whole")
    update = Run._update

    def killed(self: Run, number: int) -> None:
        if number == 1:
            raise KeyboardInterrupt
        update(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_update", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(name, EASY), tmp_path / "killed")
    resumed = resume(tmp_path / "killed")
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "killed")
    stored = [result.model / "components.safetensors" for result in (whole, resumed)]
    assert [path.exists() for path in stored] == [name == "tracerl_value"] * 2
    if name == "tracerl_value":
        assert stored[0].read_bytes() == stored[1].read_bytes()
        assert load_file(stored[0])["component:TokenValue.head.weight"].abs().max() > 0


def test_values_are_trained_with_their_own_rate_in_pieces_too(tmp_path: Path) -> None:
    """Pieces of a few slots give the same gradients of policy and head as whole samples."""
    run = new_run(tmp_path / "run", "tracerl_value", [*EASY, "TokenValue.learning_rate = 0.25"])
    (head,) = [p for name, p in run.parameters.items() if name.startswith("component:")]
    rates = {group["lr"] for group in run.updater.optimiser.param_groups for p in group["params"] if p is head}
    assert rates == {0.25}
    trajectory = run.collect(0).kept
    run.updater.prepare(trajectory)

    def gradient(budget: int | None) -> Tensor:
        run.trainer.micro_batch_tokens = budget
        run.updater.optimiser.zero_grad()
        run.updater._backward(trajectory, Totals())
        return torch.cat([p.grad.flatten() for p in run.parameters.values() if p.grad is not None])

    whole, cut = gradient(None), gradient(1)
    assert head.grad is not None
    assert head.grad.abs().max() > 0
    assert torch.allclose(whole, cut, atol=1e-6)
