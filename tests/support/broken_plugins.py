"""Plugins that work and plugins that do not, as source text, and the distributions that pip would make of them."""

from __future__ import annotations

from pathlib import Path

from dlmrl_kit.recipe.plugins import ENTRY_POINT_GROUP

SELECTOR = """
from dlmrl_kit import register
from dlmrl_kit.core.keys import STEP_VALID
from dlmrl_kit.selectors.base import Selector

@register("selector")
class {name}(Selector):
    '''Keeps every step. From {package}.'''

    def kept(self, tensordict):
        return tensordict[STEP_VALID]
"""


def selector(name: str, package: str = "somewhere") -> str:
    return SELECTOR.format(name=name, package=package)


SOURCES: dict[str, dict[str, str]] = {
    "another_kit": {"__init__.py": selector("OfAnotherKit")},
    "good": {"__init__.py": "print('hello from good')\n" + selector("GoodSteps")},
    "raises": {"__init__.py": selector("NeverSeen") + "\nraise RuntimeError('no\\nluck')\n"},
    "exits": {"__init__.py": "import sys\nsys.exit(3)\n"},
    "base_exception": {"__init__.py": "class Odd(BaseException):\n    pass\n\nraise Odd('odd')\n"},
    "unprintable": {
        "__init__.py": "class Bad(Exception):\n    def __str__(self):\n        raise ValueError\n\nraise Bad\n"
    },
    "syntax": {"__init__.py": "def broken(:\n"},
    "unknown_kind": {"__init__.py": selector("Misplaced").replace('"selector"', '"selecter"')},
    "twice": {
        "__init__.py": "from twice import again, more\n",
        "again.py": selector("Twice"),
        "more.py": selector("Twice"),
    },
    "takes_a_name": {"__init__.py": selector("Innocent") + selector("EntropyTopK")},
    "takes_a_base": {"__init__.py": selector("Sampler")},
    "takes_the_root": {"__init__.py": selector("Algorithm").replace('"selector"', '"advantage"')},
    "half": {
        "__init__.py": "import gin\n\n@gin.configurable\ndef half_function(x=1): ...\n"
        "from half import first\nimport shared_by_two\nimport half.second\n",
        "first.py": selector("FirstHalf"),
        "second.py": "raise ImportError('the second half is missing')\n",
    },
    "shared_by_two": {"__init__.py": selector("Shared")},
    "silent": {"__init__.py": "X = 1\n"},
    "function": {"__init__.py": "from dlmrl_kit import register\n\n@register('selector')\ndef pick(): ...\n"},
    "plain_class": {"__init__.py": "from dlmrl_kit import register\n\n@register('selector')\nclass Plain: ...\n"},
    "class_keys": {
        "__init__.py": "from dlmrl_kit import register\nfrom dlmrl_kit.core.component import Component\n\n"
        "@register('advantage')\nclass ClassKeys(Component):\n    in_keys = 'reward'\n    out_keys = ['advantage']\n"
    },
    "constructor_keys": {
        "__init__.py": selector("ConstructorKeys")
        + "\n    def __init__(self):\n        super().__init__()\n        self.in_keys = [('step', 'valid'), 3]\n"
    },
    "alpha": {"__init__.py": selector("SameName", "alpha") + selector("OnlyAlpha")},
    "zeta": {"__init__.py": selector("SameName", "zeta")},
    "reentrant": {
        "__init__.py": "from dlmrl_kit import load_recipe\nload_recipe('egspo')\nimport shared_by_two\n"
        + selector("Reentrant"),
    },
    "attribute": {"__init__.py": selector("AttributeSteps")},
    "missing_name": {"__init__.py": selector("Named") + "\nfrom os import nothing_of_this_name\n"},
}
ENTRIES = {name: name for name in SOURCES} | {
    "absent": "there_is_no_such_module",
    "no_module": "not a module!",
    "of_the_kit": "dlmrl_kit.selectors",
    "attribute": "attribute:AttributeSteps",
    "no_attribute": "good:Absent",
}
PARTS = {
    "takes_a_name": (
        "selector 'EntropyTopK'",
        "package 'takes_a_name' registers the selector 'EntropyTopK', a name that package 'dlmrl_kit' has",
    ),
    "twice": ("selector 'Twice'", "registered twice in package 'twice'"),
}
"""Plugins of which a part is skipped: which, and why."""
KEPT = {"good", "shared_by_two", "constructor_keys", "alpha", "zeta", "reentrant", "attribute", *PARTS}
REASONS = {
    "raises": "RuntimeError: no luck",
    "exits": "SystemExit: 3",
    "base_exception": "Odd: odd",
    "unprintable": "Bad: no readable message",
    "syntax": "SyntaxError",
    "unknown_kind": "unknown kind 'selecter'; did you mean 'selector'",
    "takes_a_base": "registers the selector 'Sampler', a name that package 'dlmrl_kit' has taken for its base class",
    "takes_the_root": "registers the advantage 'Algorithm'",
    "half": "ImportError: the second half is missing",
    "silent": "importing it registers no component",
    "function": "@register('selector') is for classes",
    "plain_class": "selector 'plain_class.selector.Plain' must inherit from dlmrl_kit.selectors.base.Selector",
    "class_keys": "class_keys.advantage.ClassKeys: in_keys must be a list of keys, each a str or a tuple of str, got",
    "absent": "ModuleNotFoundError: No module named 'there_is_no_such_module'",
    "no_module": "'not a module!', which is no module to import",
    "of_the_kit": "a module of the kit itself",
    "no_attribute": "has no attribute 'Absent'",
    "missing_name": "cannot import name 'nothing_of_this_name'",
    "another_kit": "it is for dlmrl-kit>=99, and ",
}
REQUIRES = {"another_kit": "dlmrl-kit>=99", "good": "dlmrl_kit"}
"""What distributions require, where they do."""


def distribution(site: Path, name: str, entries: dict[str, str], sources: dict[str, str]) -> None:
    """What pip would leave in ``site``: a package and the metadata that declares its entry points."""
    for file, source in sources.items():
        path = site / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    info = site / f"{name}_dist-1.2.dist-info"
    info.mkdir(parents=True)
    requires = f"Requires-Dist: {REQUIRES[name]}\n" if name in REQUIRES else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: 1.2\n{requires}")
    lines = [f"{entry} = {value}" for entry, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{ENTRY_POINT_GROUP}]", *lines, ""]))
