"""A component that cannot stay takes nothing else of its plugin along, and whoever asks for it gets the reason."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from support.broken_plugins import selector
from support.command_line import dlmrl
from support.installed_plugins import Install

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.recipe import plugins
from dlmrl_kit.recipe.load import load_recipe

GOOD = {"__init__.py": "", "good.py": selector("Fine")}
FAULTS: Mapping[str, tuple[str, str, str]] = {
    "an unknown kind": (
        selector("Odd").replace('register("selector")', 'register("shapper")'),
        "shapper 'Odd'",
        "unknown kind 'shapper'",
    ),
    "no class of its kind": (
        "from dlmrl_kit import register\n\n@register('selector')\nclass Odd:\n    pass\n",
        "selector 'Odd'",
        "must inherit from dlmrl_kit.selectors.base.Selector",
    ),
    "a name of the kit": (selector("EntropyTopK"), "selector 'EntropyTopK'", "give the class another name"),
    "claims of another type": (
        selector("Odd").replace('register("selector")', 'register("selector", unbiased=3)'),
        "selector 'Odd'",
        "unbiased=3",
    ),
    "a function": (
        "from dlmrl_kit import register\n\n@register('selector')\ndef Odd(): ...\n",
        "selector 'Odd'",
        "is for classes",
    ),
    "a kind that cannot be": (
        "from dlmrl_kit import declare_kind\n\n@declare_kind('Loud', summary='x')\nclass Odd: ...\n",
        "base class 'Odd'",
        "should be a word in small letters",
    ),
    "a module that raises": (
        selector("Odd") + "\nraise RuntimeError('no luck')\n",
        "the rest of module parts.components",
        "RuntimeError: no luck",
    ),
    "a module that is not there": (
        selector("Odd") + "\nimport there_is_no_such_module\n",
        "the rest of module parts.components",
        "No module named 'there_is_no_such_module'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_rest_works(install: Install, fault: str) -> None:
    odd, part, reason = FAULTS[fault]
    entry = "from parts import good\nfrom parts import odd\n"
    (line,) = install("parts", {**GOOD, "odd.py": odd, "components.py": entry}, "parts.components")
    assert line.startswith(f"{part} of plugin 'parts' (parts-dist 1.2, module parts.components) is skipped: ")
    assert reason in line
    assert "\n" not in line
    assert "@Fine()" in load_recipe("egspo", uses=["selector=Fine"]).text()
    (plugin,) = [plugin for plugin in plugins.load_plugins() if plugin.name == "parts"]
    assert plugin.components == ("parts.selector.Fine",)
    assert not plugin.problem


def with_an_unknown_kind(install: Install) -> tuple[str, str]:
    """Installs a plugin with a component of an unknown kind; returns what is skipped, and why."""
    odd, part, reason = FAULTS["an unknown kind"]
    install("parts", {**GOOD, "odd.py": odd, "components.py": "from parts import good, odd\n"}, "parts.components")
    return part, reason


def test_whoever_needs_it_gets_the_reason(install: Install) -> None:
    part, reason = with_an_unknown_kind(install)
    for options in ({"uses": ["selector=Odd"]}, {"sets": ["Algorithm.selector = @parts.shapper.Odd()"]}):
        with pytest.raises(UserError, match=f"{part} of plugin 'parts' .* is skipped: {reason}"):
            load_recipe("egspo", **options)
    with pytest.raises(UserError, match="skipped, in whole or in part, are the plugins parts: see `dlmrl doctor`"):
        load_recipe("egspo", uses=["selector=NeverHeard"])


@pytest.mark.thorough
def test_list_and_doctor_show_what_is_skipped(install: Install) -> None:
    part, reason = with_an_unknown_kind(install)
    for command in (("list",), ("doctor",)):
        shown = " ".join(dlmrl(*command).output.split())
        assert f"skipped: {part}: {reason.split()[0]}" in shown


def test_what_is_imported_after_a_broken_module_is_not_there_and_what_came_before_is(install: Install) -> None:
    sources = {**GOOD, "odd.py": "raise ValueError('odd')\n", "late.py": selector("Late")}
    entry = "from parts import good\nfrom parts import odd\nfrom parts import late\n"
    (line,) = install("parts", {**sources, "components.py": entry}, "parts.components")
    assert "ValueError: odd" in line
    (plugin,) = [plugin for plugin in plugins.load_plugins() if plugin.name == "parts"]
    assert plugin.components == ("parts.selector.Fine",)


def test_a_package_that_is_broken_itself_is_skipped(install: Install) -> None:
    sources = {"__init__.py": "from parts import good\nraise ValueError('all of it')\n", "good.py": selector("Fine")}
    (line,) = install("parts", sources)
    assert line.startswith("plugin 'parts' (parts-dist 1.2, module parts) is skipped: ValueError: all of it")
    with pytest.raises(UserError, match="no selector named 'Fine'"):
        load_recipe("egspo", uses=["selector=Fine"])
