"""Rollouts in actors of Ray: a local cluster for the module, two actors, one of them killed."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.collectors import FailsElsewhere, same, updates
from support.ray_cluster import local_cluster, losing
from tensordict import TensorDict

from dlmrl_kit.collectors.actor import Actor, Order
from dlmrl_kit.collectors.base import Sampling
from dlmrl_kit.collectors.one_update_behind import OneUpdateBehind
from dlmrl_kit.collectors.ray_actors import Ray, _packed
from dlmrl_kit.collectors.replica import Replica, fingerprint
from dlmrl_kit.core.errors import ComponentError, RecipeError, TrainingError, UserError
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.registry import register
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.testing.collectors import TinySource, check_closes

ray = pytest.importorskip("ray")

PIECES = ["Trainer.rollout_batch_size = 1"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster():
        yield


@pytest.mark.thorough
@pytest.mark.usefixtures("cluster")
def test_one_of_two_actors_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With LoRA and a trained order the run is that without Ray bit for bit, although an actor dies at its work."""
    given = ("egspo_sa", ["Pretrained.lora_rank = 2", *PIECES], ["sampler=LearnedOrder", "likelihood=StepLogProb"])
    wanted = updates(tmp_path, *given, number=4)
    due, killed = list[bool](), list[int]()
    monkeypatch.setattr(ray.util, "ActorPool", losing(due, killed))
    uses = [*given[2], "collector=Ray"]
    found = updates(tmp_path, given[0], given[1], uses, number=4, after=lambda update: due.append(True))
    assert len(killed) == 1
    assert same(found, wanted)


@pytest.mark.thorough
@pytest.mark.usefixtures("cluster")
def test_one_update_behind(tmp_path: Path) -> None:
    """With a value model and weights that are older, actors sample what a copy in this process samples."""
    sets = ["SuccessRange.low = 0.0", "SuccessRange.high = 1.0", *PIECES]
    sets += ["Algorithm.correction = @TrajectoryImportance()"]
    behind = ["collector=OneUpdateBehind"]
    wanted = updates(tmp_path, "tracerl_value", [*sets, "OneUpdateBehind.collector = @Here()"], behind)
    assert same(updates(tmp_path, "tracerl_value", sets, behind), wanted)
    assert not same(updates(tmp_path, "tracerl_value", sets), wanted)


@pytest.mark.thorough
@pytest.mark.usefixtures("cluster", "registrations_end")
def test_an_error_in_an_actor_names_component_and_actor(tmp_path: Path) -> None:
    register("sampler")(FailsElsewhere)
    with pytest.raises(
        ComponentError, match=r"FailsElsewhere of support failed with ValueError: not here .*actor 0 of "
    ):
        updates(tmp_path, "egspo", ["Ray.actors = 1"], ["sampler=FailsElsewhere", "collector=Ray"])


@pytest.mark.thorough
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("settings", "message"),
    [({"actors": 9}, "need 9, but the cluster has 2"), ({"gpus_per_actor": 1}, "need 2, but the cluster has 0")],
)
def test_a_cluster_that_is_too_small(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Ray(**settings).open(sampling(), TinySource().load(), ALONE)


# ------------------------------------------------------------------------------------------------ without a cluster


def sampling() -> Sampling:
    return Sampling(TinySource(), LowConfidence(4))


class Fewer(Processes):
    """The first process of three."""

    world = 3


def test_without_ray_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"^Ray is not installed here: pip install 'dlmrl-kit\[ray\]'$"):
        Ray().open(sampling(), TinySource().load(), ALONE)


def test_each_process_needs_an_actor() -> None:
    with pytest.raises(RecipeError, match=r"Ray\.actors = 2 is fewer than the 3 processes"):
        Ray().open(sampling(), TinySource().load(), Fewer())


def test_what_cannot_be_sent_is_named() -> None:
    class Local(TinySource):
        """Holds what cannot be pickled."""

        def __init__(self) -> None:
            self.lock = threading.Lock()

    with pytest.raises(UserError, match=r"Local of .*cannot be sent to another process: TypeError: cannot pickle"):
        _packed(ray, Sampling(Local(), LowConfidence(4)))


class OtherSource(TinySource):
    """Loads another model each time: its embeddings are not trained."""

    def load(self) -> TransformersPolicy:
        policy = super().load()
        embeddings = policy.model.get_input_embeddings().weight
        embeddings.requires_grad_(False).add_(torch.rand(1))
        return policy


def test_an_actor_that_loads_another_model_says_so() -> None:
    source = OtherSource()
    order = Order(pickle.dumps(Sampling(source, LowConfidence(4))), fingerprint(source.load()))
    with pytest.raises(TrainingError, match=r"OtherSource loads another model here.*embed.*\(in actor 7 of Ray, on "):
        Actor(7, "cpu", 1).start(order)


def test_a_replica_refuses_other_weights() -> None:
    replica = Replica(sampling(), torch.device("cpu"))
    with pytest.raises(UserError, match=r"other weights than that of the run: "):
        replica.sample(TensorDict({}, [0]), {"model.x": torch.zeros(1)}, 0)


def test_fingerprints_tell_what_is_fixed_apart() -> None:
    policy = TinySource().load()
    weight = policy.model.get_input_embeddings().weight
    trained = fingerprint(policy)
    weight.data[0, 0] += 1
    assert fingerprint(policy) == trained  # it is sent
    weight.requires_grad_(False)
    fixed = fingerprint(policy)
    weight.data[0] = weight.data[0].flip(0)  # the same numbers in other places
    assert fingerprint(policy) != fixed


@pytest.mark.parametrize("name", ["actors", "cpus_per_actor", "gpus_per_actor", "max_restarts"])
def test_settings_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match=f"Ray.{name}"):
        Ray(**{name: -1})


def test_it_is_not_open_before_it_is_opened() -> None:
    check_closes("Ray", Ray())
    check_closes("OneUpdateBehind", OneUpdateBehind())
    with pytest.raises(RuntimeError, match="call open"):
        Ray().collect(TensorDict({}, [0]), {}, 0)
    with pytest.raises(RuntimeError, match="call open"):
        OneUpdateBehind().begin(TensorDict({}, [0]), {}, 0)


def test_a_package_that_is_not_there_is_named() -> None:
    packed = pickle.dumps(TinySource()).replace(b"dlmrl_kit.testing.collectors", b"acme_kit.testing.collectors_")
    with pytest.raises(TrainingError, match=r"package that is not installed here: ModuleNotFoundError.*actor 1"):
        Actor(1, "cpu", 1).start(Order(packed, {}))
