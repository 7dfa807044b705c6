"""An algorithm of TorchRL's learns in the environment."""

from __future__ import annotations

import pytest
import torch
from support.denoising_environment import QUIET, Share
from support.policies import tiny_policy
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Independent
from torchrl.collectors import Collector
from torchrl.modules import MaskedCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss, ReinforceLoss
from torchrl.objectives.value import GAE

from dlmrl_kit.rollout.environment import DenoisingEnv
from dlmrl_kit.rollout.tokens import Tokens


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


@pytest.mark.thorough
@pytest.mark.parametrize("single_commit", [True, False])
@pytest.mark.parametrize("loss_class", [ReinforceLoss, ClipPPOLoss])
def test_a_torchrl_algorithm_learns(loss_class: type[nn.Module], single_commit: bool) -> None:
    """Commit "a" everywhere: TorchRL's collector, actor, advantage and loss; nothing of the kit but the environment."""
    length, rows = 3, 32
    vocabulary = Tokens.of(tiny_policy(characters="abc", hidden=8, layers=1))
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
