from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Independent
from torchrl.collectors import Collector
from torchrl.envs import SerialEnv, TransformedEnv, check_env_specs
from torchrl.envs.transforms import ActionMask
from torchrl.modules import MaskedCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss, ReinforceLoss
from torchrl.objectives.value import GAE

from dlmrl_kit.policies.base import Policy
from dlmrl_kit.rollout.environment import DenoisingEnv, SamplerPolicy, Vocabulary, valid_steps
from dlmrl_kit.rollout.services import training_indices
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.tasks.base import Example, Task
from tests.core import SAMPLERS, make, tiny_policy
from tests.tiny import chi_square, chi_square_limit

PAGE = Path(__file__).resolve().parents[1] / "docs" / "torchrl-environment.md"
WHOLE: dict[str, Any] = {"break_when_any_done": False, "break_when_all_done": True}
QUIET: dict[str, Any] = {"auto_register_policy_transforms": False}
LENGTH = 4


class Share(Task):
    """Reward: the share of "a" among the completion's positions. Prompts of 1 to 3 characters."""

    def __init__(self, size: int = 5, length: int = LENGTH) -> None:
        super().__init__(size, size, size)
        self.length = length

    def candidate(self, number: int) -> Example:
        return Example("abcdefgh"[number % 8] * (1 + number % 3) + "abcdefgh"[number // 8 % 8], "a" * self.length)

    def score(self, completion: str, example: Example) -> dict[str, float]:
        share = completion.count("a") / self.length
        return {"reward": share, "solved": float(share == 1)}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


def build(policy: Policy, **options: Any) -> DenoisingEnv:
    return DenoisingEnv(Share(), policy, LENGTH, **{"batch_size": 6, **options})


def letters(policy: Policy, text: str) -> list[int]:
    return policy.tokenizer(text, add_special_tokens=False)["input_ids"]


def step(env: DenoisingEnv, state: Any, action: Any) -> Any:
    return env.step(state.clone().set("action", torch.as_tensor(action)))


# --- what TorchRL asks of an environment


@pytest.mark.parametrize("options", [{}, {"single_commit": True}, {"block_length": 2}, {"stop_at_eos": False}])
def test_specs_hold(policy: Policy, options: dict[str, Any]) -> None:
    env = build(policy, **options)
    for seed in range(3):
        check_env_specs(env, seed=seed)
    check_env_specs(env, break_when_any_done="both")
    check_env_specs(TransformedEnv(build(policy, **options), ActionMask()), break_when_any_done="both")


def test_specs_hold_in_several_environments_at_once(policy: Policy) -> None:
    vocabulary = Vocabulary.of(policy)
    copies = SerialEnv(2, lambda: DenoisingEnv(Share(), vocabulary, LENGTH, batch_size=3))
    check_env_specs(TransformedEnv(copies, ActionMask()))


@pytest.mark.parametrize("single_commit", [False, True])
def test_random_actions_stay_legal_when_rows_restart(policy: Policy, single_commit: bool) -> None:
    for wrap in (False, True):
        env: Any = build(policy, single_commit=single_commit)
        env = TransformedEnv(env, ActionMask()) if wrap else env
        torch.manual_seed(0)
        rollout = env.rollout(40, break_when_any_done=False)  # restarts finished rows
        assert rollout.shape == (6, 40)
        assert rollout["next", "done"].sum() > 20
        legal = rollout["action_mask"].gather(-1, rollout["action"][..., None])
        assert legal.all()


def test_a_collector_with_random_actions(policy: Policy) -> None:
    env = build(policy, single_commit=True)
    collector = Collector(env, env.rand_action, frames_per_batch=60, total_frames=120, **QUIET)
    assert [batch.shape for batch in collector] == [(6, 10)] * 2
    collector.shutdown()


def test_the_environment_is_small_and_picklable(policy: Policy) -> None:
    env = build(policy)
    assert not list(env.parameters())
    copy = pickle.loads(pickle.dumps(env))
    assert (copy.reset()["prompt_ids"] == env.reset()["prompt_ids"]).all()


# --- puzzles


def test_puzzles_follow_the_seed(policy: Policy) -> None:
    env = build(policy, seed=3)
    stream = [training_indices(5, 1, position, 3)[0] for position in range(12)]
    first, second = env.reset(), env.reset()
    assert first["example"].tolist() + second["example"].tolist() == stream
    assert set(stream[:5]) == set(range(5))
    env.set_seed(3)
    assert (env.reset()["prompt_ids"] == first["prompt_ids"]).all()
    env.set_seed(4)
    assert env.reset()["example"].tolist() == [training_indices(5, 1, position, 4)[0] for position in range(6)]


def test_prompts_are_left_padded_to_a_fixed_width(policy: Policy) -> None:
    env = build(policy)
    widths = [len(env.task.example("train", index).prompt) for index in range(5)]
    assert env.reset()["prompt_ids"].shape == (6, max(widths))
    assert min(widths) < max(widths)
    state = build(policy, prompt_length=9).reset()
    assert state["prompt_ids"].shape == (6, 9)
    for ids, mask, index in zip(state["prompt_ids"], state["prompt_mask"], state["example"].tolist(), strict=True):
        assert ids[mask].tolist() == letters(policy, env.task.example("train", index).prompt)
        assert mask[-1]
        assert (ids[~mask] == policy.pad_id).all()
    with pytest.raises(ValueError, match=r"DenoisingEnv.prompt_length must be at least \d, for a prompt, got 1"):
        build(policy, prompt_length=1).reset()


def test_only_the_rows_asked_for_restart(policy: Policy) -> None:
    env = build(policy)
    state = env.reset()
    a = letters(policy, "a")[0]
    action = torch.full((6, LENGTH), policy.mask_id)
    action[:, 0] = a
    action[[1, 4]] = a
    after = env.step_mdp(step(env, state, action))
    assert after["done"].squeeze(-1).nonzero().squeeze(-1).tolist() == [1, 4]
    restarted = env.maybe_reset(after.clone())
    same = [0, 2, 3, 5]
    assert (restarted["example"][same] == state["example"][same]).all()
    assert (restarted["completion_ids"][same] == action[same]).all()
    stream = [training_indices(5, 1, position, 0)[0] for position in range(8)]
    assert restarted["example"][[1, 4]].tolist() == stream[6:]
    assert (restarted["completion_ids"][[1, 4]] == policy.mask_id).all()
    assert not restarted["done"].any()
    assert env.action_spec.is_in(restarted["action"].fill_(policy.mask_id))
    assert (env.action_spec.mask == restarted["action_mask"]).all()


# --- steps


def test_a_row_by_hand(policy: Policy) -> None:
    env = build(policy, batch_size=1)
    mask, eos, (a, b) = policy.mask_id, policy.eos_id, letters(policy, "ab")
    state = env.reset()
    assert state["completion_ids"].tolist() == [[mask] * 4]
    assert state["commit_step"].tolist() == [[4] * 4]
    one = step(env, state, [[mask, a, mask, eos]])["next"]
    assert one["completion_ids"].tolist() == [[mask, a, mask, eos]]
    assert one["legal_positions"].tolist() == [[True, False, True, False]]
    assert (one["steps_taken"].item(), one["reward"].item(), one["done"].item()) == (1, 0, False)
    two = step(env, one, [[a, mask, eos, mask]])["next"]
    assert two["completion_ids"].tolist() == [[a, a, eos, eos]]
    assert two["commit_step"].tolist() == [[1, 0, 1, 0]]
    assert (two["reward"].item(), two["done"].item(), two["terminated"].item()) == (0.5, True, True)
    assert not two["legal_positions"].any()
    after = step(env, two, [[b] * 4])["next"]  # finished: every action is ignored
    for key in ("completion_ids", "commit_step", "steps_taken", "done"):
        assert (after[key] == two[key]).all()
    assert after["reward"].item() == 0


def test_a_row_ends_at_the_end_of_text_or_after_the_last_step(policy: Policy) -> None:
    mask, eos, (a, b) = policy.mask_id, policy.eos_id, letters(policy, "ab")
    early = [[a, eos, mask, mask]]
    env = build(policy, batch_size=1)
    ended = step(env, env.reset(), early)["next"]
    assert ended["completion_ids"].tolist() == [[a, eos, eos, eos]]
    assert ended["commit_step"].tolist() == [[0, 0, 4, 4]]
    assert (ended["done"].item(), ended["reward"].item()) == (True, 0.25)
    env = build(policy, batch_size=1, stop_at_eos=False)
    assert not step(env, env.reset(), early)["next"]["done"].item()

    env = build(policy, batch_size=1, max_steps=2)
    idle = step(env, env.reset(), [[mask] * 4])["next"]  # a step that commits nothing counts
    assert (idle["steps_taken"].item(), idle["done"].item()) == (1, False)
    out = step(env, idle, [[a, mask, b, mask]])["next"]
    assert out["completion_ids"].tolist() == [[a, eos, b, eos]]
    assert (out["done"].item(), out["reward"].item()) == (True, 0.25)  # the text ends at the first gap


def test_only_the_rows_asked_for_step(policy: Policy) -> None:
    env = build(policy, batch_size=2)
    a = letters(policy, "a")[0]
    state = env.reset().set("_step", torch.tensor([True, False]))
    after = step(env, state, [[a] * 4, [policy.vocab_size] * 4])["next"]  # row 1 is not looked at
    assert after["completion_ids"].tolist() == [[a] * 4, [policy.mask_id] * 4]
    assert after["steps_taken"].tolist() == [[1], [0]]
    assert after["done"].tolist() == [[True], [False]]
    assert after["reward"].tolist() == [[1], [0]]


def test_blocks_open_one_after_the_other(policy: Policy) -> None:
    env = build(policy, batch_size=1, block_length=2)
    mask, a = policy.mask_id, letters(policy, "a")[0]
    state = env.reset()
    assert state["legal_positions"].tolist() == [[True, True, False, False]]
    state = step(env, state, [[a, a, mask, mask]])["next"]
    assert state["legal_positions"].tolist() == [[False, False, True, True]]


def test_a_single_commit_is_position_and_token(policy: Policy) -> None:
    env = build(policy, batch_size=2, single_commit=True)
    a, size = letters(policy, "a")[0], policy.vocab_size
    state = step(env, env.reset(), [2 * size + a, a])["next"]
    assert state["completion_ids"].tolist() == [[1, 1, a, 1], [a, 1, 1, 1]]
    grid = state["action_mask"].view(2, LENGTH, size)
    assert (grid.any(-1) == state["legal_positions"]).all()
    assert not grid[..., list(policy.forbidden_ids)].any()
    assert grid[0, 0].sum() == size - len(policy.forbidden_ids)


@pytest.mark.parametrize("single_commit", [False, True])
def test_every_action_is_legal_or_refused_as_the_mask_says(policy: Policy, single_commit: bool) -> None:
    env = build(policy, batch_size=2, single_commit=single_commit)
    mask, size, a = policy.mask_id, policy.vocab_size, letters(policy, "a")[0]
    state = step(env, env.reset(), [a, a] if single_commit else [[a, mask, mask, mask]] * 2)["next"]
    legal = state["action_mask"][0]
    for position in range(LENGTH):
        for token in range(-1, size + 1):
            if single_commit:
                action = [position * size + token, size + a]
                expected = 0 <= action[0] < LENGTH * size and bool(legal[action[0]])
            else:
                action = torch.full((2, LENGTH), mask)
                action[0, position] = token
                expected = 0 <= token < size and bool(legal[position, token])
            if expected:
                step(env, state, action)
            else:
                with pytest.raises(ValueError, match=r"illegal action in row 0: .* legal positions are"):
                    step(env, state, action)


def test_wrong_arguments_are_named(policy: Policy) -> None:
    with pytest.raises(ValueError, match=r"DenoisingEnv.batch_size must be at least 1"):
        build(policy, batch_size=0)
    with pytest.raises(ValueError, match=r"DenoisingEnv.max_steps must be at least 1"):
        build(policy, max_steps=0)
    with pytest.raises(ValueError, match=r"Share.split must be one of"):
        build(policy, split="test")
    with pytest.raises(ValueError, match=r"SamplerPolicy.sampler must be one of 1 commit per step"):
        SamplerPolicy(make(SAMPLERS[0], LENGTH, 2), policy, single_commit=True)


# --- samplers as policies of the environment


def sampler_and_rollout(
    sampler: Sampler, policy: Policy, seed: int = 0, **options: Any
) -> tuple[TensorDict, TensorDict, DenoisingEnv]:
    """The sampler's own trajectories and the environment's, for the same prompts and noise."""
    env = build(policy, batch_size=12, block_length=sampler.block_length, stop_at_eos=sampler.stop_at_eos, **options)
    generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
    single = bool(options.get("single_commit"))
    rollout = env.rollout(LENGTH, SamplerPolicy(sampler, policy, generators[0], single), **WHOLE)
    prompt = rollout[:, 0].select("prompt_ids", "prompt_mask").clone()
    return sampler(prompt, policy=policy, generator=generators[1]), rollout, env


def same_trajectories(own: TensorDict, rollout: TensorDict) -> None:
    last = rollout[:, -1]["next"]
    assert (last["completion_ids"] == own["completion_ids"]).all()
    happened = own["commit_step"] < own["step", "valid"].sum(-1, keepdim=True)
    assert (last["commit_step"][happened] == own["commit_step"][happened]).all()
    assert (last["commit_step"][~happened] == LENGTH).all()
    valid = valid_steps(rollout)
    width = valid.shape[1]
    assert (valid == own["step", "valid"][:, :width]).all()
    assert not own["step", "valid"][:, width:].any()
    torch.testing.assert_close(
        rollout["action_log_prob"].where(valid, 0), own["step", "log_prob"][:, :width], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tokens_per_step", [1, 3])
@pytest.mark.parametrize("cls", SAMPLERS)
def test_a_sampler_does_in_the_environment_what_it_does_alone(
    policy: Policy, cls: type[Sampler], tokens_per_step: int, temperature: float
) -> None:
    for options in ({}, {"block_length": 2}, {"stop_at_eos": False}):
        sampler = make(cls, LENGTH, tokens_per_step, temperature=temperature, **options)
        own, rollout, env = sampler_and_rollout(sampler, policy)
        same_trajectories(own, rollout)
        rewards = [env.task.score(text, None)["reward"] for text in texts(policy, own["completion_ids"])]
        valid = valid_steps(rollout)
        reward = rollout["next", "reward"].squeeze(-1)
        assert reward.where(valid, 0).sum(-1).tolist() == rewards
        assert (rollout["next", "done"].squeeze(-1).long().where(valid, 0).sum(-1) == 1).all()
    if sampler.max_commits == 1:
        same_trajectories(*sampler_and_rollout(sampler, policy, single_commit=True)[:2])


def texts(policy: Policy, ids: Tensor) -> list[str]:
    rows = [row[: row.index(policy.eos_id)] if policy.eos_id in row else row for row in ids.tolist()]
    return policy.tokenizer.batch_decode(rows, skip_special_tokens=True)


def test_finished_rows_are_repeated_by_rollout_and_marked_by_valid_steps(policy: Policy) -> None:
    """The trap: without ``valid_steps`` the reward of a row that ends early is counted several times."""
    env = build(policy, batch_size=2)
    mask, a = policy.mask_id, letters(policy, "a")[0]
    plan = iter([[[a] * 4, [a, mask, mask, mask]], [[mask] * 4, [mask, a, a, mask]], [[mask] * 4, [mask] * 3 + [a]]])
    rollout = env.rollout(9, lambda td: td.set("action", torch.tensor(next(plan))), **WHOLE)
    assert rollout.shape == (2, 3)
    assert rollout["next", "reward"].squeeze(-1).tolist() == [[1, 1, 1], [0, 0, 1]]
    assert valid_steps(rollout).tolist() == [[True, False, False], [True, True, True]]


def test_other_noise_gives_the_same_distribution(policy: Policy) -> None:
    """Completions of one prompt: 4000 of the environment against 20000 of the sampler, two tokens long."""
    task, sampler = Share(1), make(SAMPLERS[0], 2, temperature=1.5)
    env = DenoisingEnv(task, policy, 2, batch_size=4000)
    rollout = env.rollout(2, SamplerPolicy(sampler, policy, torch.Generator().manual_seed(1)), **WHOLE)
    prompt = rollout[:, 0].select("prompt_ids", "prompt_mask")
    prompt = torch.cat([prompt] * 5)
    own = sampler(prompt, policy=policy, generator=torch.Generator().manual_seed(2))["completion_ids"]
    size = policy.vocab_size
    index = [ids[:, 0] * size + ids[:, 1] for ids in (rollout[:, -1]["next", "completion_ids"], own)]
    counts, expected = (i.bincount(minlength=size * size).double() for i in index)
    expected = (expected + 0.1) / (expected + 0.1).sum()
    value, degrees = chi_square(counts.tolist(), expected.tolist())
    assert degrees > 10
    assert value < chi_square_limit(degrees) * (1 + 4000 / 20000)


def test_the_sampler_policy_works_in_a_collector(policy: Policy) -> None:
    sampler = make(SAMPLERS[0], LENGTH, 2, stop_at_eos=False)
    env = build(policy, stop_at_eos=False)
    actor = SamplerPolicy(sampler, policy, torch.Generator().manual_seed(0))
    collector = Collector(env, actor, frames_per_batch=24, total_frames=48, **QUIET)
    for batch in collector:
        assert batch.shape == (6, 4)
        assert batch["next", "done"].squeeze(-1).tolist() == [[False, True, False, True]] * 6
    collector.shutdown()


def test_without_a_mask_it_runs_on_samplers(policy: Policy) -> None:
    env = build(policy, action_mask=False)
    rollout = env.rollout(LENGTH, SamplerPolicy(make(SAMPLERS[0], LENGTH), policy), **WHOLE)
    assert "action_mask" not in rollout.keys()  # noqa: SIM118
    state = env.reset()
    assert env.legal_actions(state["legal_positions"]).shape == (6, LENGTH, policy.vocab_size)


# --- a TorchRL algorithm


class Features(nn.Module):
    """One-hot tokens of the completion, flattened, through a small MLP."""

    def __init__(self, length: int, vocab: int, outputs: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.net = nn.Sequential(nn.Linear(length * vocab, 32), nn.Tanh(), nn.Linear(32, outputs))

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(nn.functional.one_hot(ids, self.vocab).flatten(-2).float())


class EachPosition(Independent):
    """A token for each position, independently: the distribution of actions with several commits per step."""

    def __init__(self, logits: Tensor, mask: Tensor) -> None:
        grid = logits.unflatten(-1, mask.shape[-2:])
        super().__init__(MaskedCategorical(logits=grid, mask=mask), 1)


@pytest.mark.parametrize("single_commit", [True, False])
@pytest.mark.parametrize("loss_class", [ReinforceLoss, ClipPPOLoss])
def test_a_torchrl_algorithm_learns(loss_class: type[nn.Module], single_commit: bool) -> None:
    """Commit "a" everywhere: TorchRL's collector, actor, advantage and loss; nothing of the kit but the environment."""
    length, rows = 3, 32
    vocabulary = Vocabulary.of(tiny_policy(characters="abc", hidden=8, layers=1))
    torch.manual_seed(0)
    env = DenoisingEnv(
        Share(4, length), vocabulary, length, batch_size=rows, single_commit=single_commit, stop_at_eos=False
    )
    vocab = vocabulary.vocab_size
    actor = ProbabilisticActor(
        TensorDictModule(Features(length, vocab, length * vocab), ["completion_ids"], ["logits"]),
        in_keys={"logits": "logits", "mask": "action_mask"},
        out_keys=["action"],
        distribution_class=MaskedCategorical if single_commit else EachPosition,
        return_log_prob=True,
    )
    critic = ValueOperator(Features(length, vocab, 1), in_keys=["completion_ids"])
    loss_module = loss_class(actor, critic)
    advantage = GAE(gamma=1.0, lmbda=1.0, value_network=critic, average_gae=True)
    optimiser = torch.optim.Adam(loss_module.parameters(), lr=0.01)
    collector = Collector(env, actor, frames_per_batch=rows * length, total_frames=rows * length * 60, **QUIET)
    rewards = []
    for batch in collector:
        done = batch["next", "done"]
        assert not single_commit or done.squeeze(-1).tolist() == [[False, False, True]] * rows
        rewards.append((batch["next", "reward"].sum() / done.sum()).item())
        advantage(batch)
        losses = loss_module(batch)
        total = sum(value for key, value in losses.items() if key.startswith("loss_"))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    collector.shutdown()
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert first < 0.4, rewards
    assert last > 0.85, rewards


# --- the page


def test_the_page_runs_as_written() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
