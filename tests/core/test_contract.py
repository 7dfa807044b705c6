"""The contract of components from outside the kit: well-formed keys, and nothing read or written but them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
from support.plain_component import Base, batch
from tensordict import TensorDict
from typer.testing import CliRunner

from dlmrl_kit.cli.app import app
from dlmrl_kit.core import contract
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import ComponentError, RecipeError, RegistryError
from dlmrl_kit.core.keys import STEP_VALID, Key
from dlmrl_kit.core.registry import register
from dlmrl_kit.losses.base import Objective
from dlmrl_kit.recipe.catalogue import find
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.selectors.base import Selector

pytestmark = pytest.mark.usefixtures("registrations_end")

ME = __name__.split(".", 1)[0]


def made(name: str, bases: tuple[type, ...], members: dict[str, Any]) -> type:
    """A class of this module: those of ``abc`` make classes of ``abc``."""
    return type(name, bases, {**members, "__module__": __name__})


SILENT = ("reward", {"reward": 1}, [("step", None)])
"""Malformed keys that tensordict turns into well-formed ones when an instance sets them."""
MALFORMED: list[tuple[Any, str]] = [
    ("reward", "got 'reward'; write ['reward']"),
    (None, "got None"),
    (5, "got 5"),
    ({"reward": 1}, "got {'reward': 1}"),
    (["reward", 3], "got 3 among them"),
    ([("step", None)], "got ('step', None) among them"),
    ([""], "got '' among them"),
    ([()], "got () among them"),
]


class TestKeys:
    @pytest.mark.parametrize(("keys", "problem"), MALFORMED)
    @pytest.mark.parametrize("attribute", ["in_keys", "out_keys", "optional_keys"])
    def test_malformed_in_the_class(self, attribute: str, keys: Any, problem: str) -> None:
        with pytest.raises(RegistryError) as info:
            register("advantage")(made("Malformed", (Base,), {attribute: keys}))
        assert str(info.value).startswith(f"{ME}.advantage.Malformed: {attribute} must be a list of keys")
        assert problem in str(info.value)

    @pytest.mark.parametrize(("keys", "problem"), [m for m in MALFORMED if m[0] not in SILENT])
    @pytest.mark.parametrize("attribute", ["in_keys", pytest.param("out_keys", marks=pytest.mark.thorough)])
    def test_malformed_in_the_constructor(self, attribute: str, keys: Any, problem: str) -> None:
        @register("advantage")
        class Malformed(Base):
            def __init__(self) -> None:
                super().__init__()
                setattr(self, attribute, keys)

        with pytest.raises(RecipeError) as info:
            Malformed()
        assert f"{ME}.advantage.Malformed: {attribute} must be a list of keys" in str(info.value)
        assert problem in str(info.value)
        with pytest.raises(RecipeError, match=f"{ME}.advantage.Malformed: {attribute} must be"):
            load_recipe("egspo", uses=["advantage=Malformed"]).build()

    def test_not_set(self) -> None:
        register("advantage")(made("NotSet", (Component,), {}))
        with pytest.raises(RecipeError, match=r"advantage\.NotSet: in_keys is not set"):
            find("NotSet").cls()

    def test_no_super_init(self) -> None:
        @register("advantage")
        class NoSuper(Base):
            def __init__(self) -> None:
                self.in_keys = self.out_keys = ["a"]

        with pytest.raises(RecipeError, match=r"NoSuper: its constructor must call super\(\).__init__\(\)"):
            NoSuper()

    def test_unknown_service(self) -> None:
        register("advantage")(made("Asks", (Base,), {"requires": ("genrator",)}))
        with pytest.raises(RecipeError, match="Asks requires 'genrator', which is no service; there are policy, "):
            find("Asks").cls()

    def test_a_service_of_earlier_versions(self) -> None:
        register("advantage")(type("Draws", (Base,), {"requires": ("generator",)}))
        with pytest.raises(RecipeError, match=r"Draws requires 'generator', which is no service any more; .*list SEED"):
            find("Draws").cls()

    def test_errors_of_the_constructor_stay_as_they_are(self) -> None:
        @register("advantage")
        class Raises(Base):
            def __init__(self) -> None:
                raise TypeError("its own")

        with pytest.raises(TypeError, match=r"^its own$"):
            Raises()

    def test_subclasses_and_the_kit_are_left_alone(self) -> None:
        cls = register("advantage")(made("Parent", (Base,), {}))

        class Child(cls):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                super().__init__()
                self.out_keys = ["advantage", "more"]

            def forward(self, tensordict: TensorDict) -> Any:
                return super().forward(tensordict).set("more", tensordict["reward"])

        assert "more" in Child()(batch())
        assert not hasattr(find("AllSteps").cls.forward, "__wrapped__")

    def test_other_classes_are_left_alone(self) -> None:
        @register("policy")
        class SomePolicy:
            in_keys = None

        assert SomePolicy().in_keys is None


def forward_of(body: Callable[[TensorDict], Any], kind: str = "advantage", name: str = "Probe") -> Any:
    """An instance of a registered component whose forward is ``body``."""
    cls = made(name, (Base,), {"forward": lambda self, tensordict: body(tensordict)})
    return register(kind)(cls)()


class TestRuntime:
    def test_what_is_right_passes(self) -> None:
        data = batch()
        result = forward_of(lambda td: td.set("advantage", td["reward"]))(data)
        assert result is data
        assert (
            forward_of(lambda td: td.clone().set("advantage", td["reward"]), name="Copies")(batch())["advantage"].sum()
            == 2
        )

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (
                lambda td: td.set("advantage", td["reward"]).set("extra", td["reward"]),
                "writes 'extra', which is not in",
            ),
            (
                lambda td: td.set("advantage", td["reward"]).set(("step", "x"), td["step", "valid"]),
                r"writes \('step', 'x'\), which is not in its out_keys \['advantage'\]",
            ),
            (lambda td: td, "does not write 'advantage', which is in its out_keys"),
            (lambda td: td.set("advantage", td["reward"]).set("reward", td["reward"] + 1), "overwrites 'reward'"),
            (lambda td: TensorDict({"advantage": td["reward"]}, [2]), "'reward' is gone from the trajectory"),
            (lambda td: None, "must return a TensorDict, it returned None; end it with `return tensordict`"),
            (lambda td: td["reward"], "must return a TensorDict, it returned a tensor of float32"),
            (
                lambda td: td["selected", "step"],
                r"failed with KeyError: .*test_contract.py:\d+\); it may read its in_keys",
            ),
        ],
    )
    def test_mistakes_name_the_component(self, body: Callable[[TensorDict], Any], message: str) -> None:
        with pytest.raises(ComponentError, match=message) as info:
            forward_of(body)(batch())
        assert f"{ME}.advantage.Probe" in str(info.value)

    def test_on_demand_keys_are_declared_when_asked_for(self) -> None:
        @register("advantage")
        class Both(Base):
            optional_keys = ("more",)

            def forward(self, tensordict: TensorDict, keys: Collection[Key] = ()) -> Any:
                return super().forward(tensordict).set("more", tensordict["reward"])

        both = Both()
        with pytest.raises(ComponentError, match="writes 'more'"):
            both(batch())
        assert "more" in both(batch(), keys=["more"])

    def test_a_loss_returns_a_loss(self) -> None:
        @register("loss")
        class NoLoss(Objective):
            def __init__(self) -> None:
                super().__init__([("selected", "weight")])

            def total(self, tensordict: TensorDict) -> Any:
                return tensordict["reward"].sum(), {}

            def forward(self, tensordict: TensorDict) -> Any:
                return TensorDict({"objective": self.total(tensordict)[0]})

        with pytest.raises(ComponentError, match=r"loss\.NoLoss: no key that it returns starts with 'loss_'"):
            NoLoss()(batch())

    def test_training_ends_with_a_message(self, tmp_path: Any) -> None:
        @register("selector")
        class Careless(Selector):
            def kept(self, tensordict: TensorDict) -> Any:
                tensordict.set("scratch", tensordict[STEP_VALID].sum(-1))
                return tensordict[STEP_VALID]

        small = ["CharacterLlama.hidden_size=16", "CharacterLlama.num_layers=1", "Trainer.eval_size=2"]
        small += ["Sudoku4x4.num_train=8", "Sudoku4x4.num_heldout=8", "Sudoku4x4.num_pretrain=8"]
        options = [word for binding in small for word in ("--set", binding)]
        uses = ["--use", "selector=Careless", "--use", "policy=CharacterLlama", "--use", "logger=MetricsCSV"]
        result = CliRunner().invoke(app, ["train", "egspo", *uses, *options, "--out", str(tmp_path / "run")])
        assert result.exit_code == 2, result.output
        assert f"error: {ME}.selector.Careless writes 'scratch', which is not in its out_keys" in result.stderr


def test_malformed() -> None:
    assert contract.malformed(["a", ("b", "c")]) == contract.malformed(()) == ""
