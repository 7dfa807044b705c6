"""Registration and look-up of components."""

from __future__ import annotations

from io import StringIO

import gin
import pytest
from rich.console import Console
from support.plain_component import Base

from dlmrl_kit.core import registry
from dlmrl_kit.core.errors import RegistryError
from dlmrl_kit.core.registry import KINDS, nearest, register
from dlmrl_kit.recipe.catalogue import components, find
from dlmrl_kit.report.component_page import component_page
from dlmrl_kit.report.descriptions import Description

pytestmark = pytest.mark.usefixtures("registrations_end")

ME = __name__.split(".", 1)[0]


class TestRegister:
    def test_unknown_kind(self) -> None:
        with pytest.raises(RegistryError, match="unknown kind 'selecter'; did you mean 'selector'"):
            register("selecter")

    def test_only_classes(self) -> None:
        with pytest.raises(RegistryError, match=r"@register\('task'\) is for classes"):
            register("task")(lambda: None)

    def test_another_name(self) -> None:
        with pytest.raises(RegistryError, match="a component's name is its class name, here 'Base'"):
            register("advantage", "Other")(Base)

    def test_twice_in_one_package(self) -> None:
        register("advantage")(type("Own", (Base,), {"__module__": f"{ME}.one"}))
        with pytest.raises(RegistryError, match=rf"registered twice in package '{ME}': by {ME}.one and by {ME}.two"):
            register("advantage")(type("Own", (Base,), {"__module__": f"{ME}.two"}))

    def test_the_same_name_in_another_package(self) -> None:
        register("advantage")(type("LeaveOneOut", (Base,), {"__module__": "elsewhere.module"}))
        with pytest.raises(RegistryError) as info:
            find("LeaveOneOut", "advantage")
        for part in ("dlmrl_kit and elsewhere", "dlmrl_kit.advantage.LeaveOneOut, elsewhere.advantage.LeaveOneOut"):
            assert part in str(info.value)
        assert find("elsewhere.advantage.LeaveOneOut").package == "elsewhere"

    def test_unregister_leaves_no_trace(self) -> None:
        cls = register("advantage")(type("Gone", (Base,), {}))
        component = find("Gone")
        registry.unregister(component)
        assert cls not in {c.cls for c in registry.registered()}
        assert component.gin_name not in dict(gin.config._REGISTRY.items())
        with pytest.raises(RegistryError, match="no component named 'Gone'"):
            find("Gone")
        register("advantage")(type("Gone", (Base,), {}))

    def test_what_the_catalogue_knows(self) -> None:
        @register("advantage", paper="a paper", unbiased=True, scale="2", under="a condition")
        class Known(Base):
            """The first line.

            More.
            """

            def __init__(self, k: int, share: float = 0.5) -> None:
                super().__init__()
                self.k, self.share = k, share

        known = find("Known")
        assert (known.summary, known.paper, known.package) == ("The first line.", "a paper", ME)
        assert (known.claims.unbiased, known.claims.scale, known.claims.under) == (True, "2", "a condition")
        assert [(p.name, p.annotation, p.required) for p in known.parameters] == [
            ("k", "int", True),
            ("share", "float", False),
        ]
        keys = known.keys()
        assert keys is not None
        assert (keys.reads, keys.writes) == (("reward",), ("advantage",))

    def test_a_constructor_that_fails_has_no_keys(self) -> None:
        @register("advantage")
        class Fails(Base):
            def __init__(self) -> None:
                raise ZeroDivisionError

        assert find("Fails").keys() is None
        Console(file=StringIO()).print(component_page(Description.of(find("Fails"))))

    def test_kinds_have_folders_with_components(self) -> None:
        assert {c.kind for c in components() if c.package == "dlmrl_kit"} == set(KINDS)

    def test_nearest(self) -> None:
        assert nearest("entropytopk", ["EntropyTopK", "Other"]).startswith("did you mean 'EntropyTopK'? available: ")
        assert nearest("xyz", ["b", "a"]) == "available: a, b"
