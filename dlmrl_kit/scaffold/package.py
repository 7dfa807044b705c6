"""Writes a new plugin: a complete package of components that passes its own tests as it is."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from dlmrl_kit.algorithm.kinds import name_problem
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.files import atomic_folder
from dlmrl_kit.core.registry import KINDS, nearest
from dlmrl_kit.core.version import PACKAGE, VERSION

TEMPLATES = Path(__file__).parent / "templates"
NAME = "acme"
"""The package's name in the templates; classes begin with it."""
FILES = {
    "pyproject.txt": "pyproject.toml",
    "readme.txt": "README.md",
    "ci.txt": ".github/workflows/ci.yml",
    "test_components.txt": "tests/test_components.py",
}
"""Templates that are not of a kind, and where they go."""


def kinds() -> list[str]:
    """Lists the kinds that there is a template for, in the order of the kit's kinds."""
    return [kind for kind in KINDS if (TEMPLATES / f"{kind}.py").is_file()]


def template(kind: str) -> str:
    """Returns the module of a kind's template, a component of the plugin ``acme``."""
    return (TEMPLATES / f"{kind}.py").read_text(encoding="utf-8")


def write_package(name: str, wanted: Sequence[str], folder: Path, new_kind: str = "") -> list[str]:
    """Writes a plugin with one component of each kind.

    Args:
        name: of the package, a Python name in small letters such as ``acme`` or ``acme_steps``.
        wanted: kinds, each once.
        folder: where to; it does not exist yet.
        new_kind: a kind that the plugin declares, with a component of it and an advantage that reads what it writes.

    Returns:
        The names of the components.

    Raises:
        UserError: a name that no package can have, a kind without a template, or a folder that exists.
        FileError: the folder cannot be written.
    """
    check_name(name)
    for kind in wanted:
        if kind not in kinds():
            own = f"a kind of your own is declared with --new-kind {kind}"
            raise UserError(f"no template for the kind {kind!r}; {nearest(kind, kinds())}; {own}")
    if new_kind and (problem := name_problem(new_kind)):
        raise UserError(f"no plugin can declare the kind {new_kind!r}: {problem}")
    if len({*wanted}) < len(wanted) or not (wanted or new_kind):
        raise UserError(f"name each kind once: --kind {','.join(dict.fromkeys(wanted)) or 'selector'}")
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another --out")
    modules = {kind: [class_name(name, kind)] for kind in wanted}
    if new_kind:
        modules[new_kind] = [class_name(name, new_kind), class_name(name, f"{new_kind}_advantage")]
    with atomic_folder(folder) as new:
        for path, text in _files(name, modules, new_kind).items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_text(text, encoding="utf-8")
    return [cls for names in modules.values() for cls in names]


def check_name(name: str) -> None:
    """Checks that a plugin's package can be called so.

    Raises:
        UserError: it cannot.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} is no name of a package: take small letters, digits and _, such as acme_steps")
    if name in (PACKAGE, "components", "tests") or len(name) > 40:
        raise UserError(f"a plugin cannot be called {name!r}; take another name, of at most 40 characters")


def class_name(name: str, kind: str) -> str:
    """Returns the name of a component: ``AcmeStepSchedule`` for ``acme`` and ``step_schedule``."""
    return "".join(part.capitalize() for part in f"{name}_{kind}".split("_"))


def _files(name: str, modules: dict[str, list[str]], new_kind: str) -> dict[str, str]:
    """Makes the text of every file of the package, by its path, from the components of each module."""
    source = f"src/{name}"
    names = [cls for found in modules.values() for cls in found]
    kinds = {cls: "advantage" if cls != found[0] else kind for kind, found in modules.items() for cls in found}
    imports = sorted(f"from {name}.{module} import {', '.join(found)}" for module, found in modules.items())
    classes = "".join(f"    {cls},\n" for cls in sorted(names))
    values = {
        "distribution": name.replace("_", "-"),
        "package": name,
        "names": ", ".join(sorted(names)),
        "classes": classes,
        "first": names[0],
        "recipe": f"{name}_{next(iter(modules))}",
        "version": ".".join(VERSION.split(".")[:2]),
        "next": _next_version(),
        "table": "\n".join(
            ["| component | kind |", "|---|---|", *(f"| `{cls}` | {kind} |" for cls, kind in kinds.items())]
        ),
    }
    public = "".join(f'    "{cls}",\n' for cls in sorted(names))
    found = {
        path: Template((TEMPLATES / file).read_text(encoding="utf-8")).substitute(values)
        for file, path in FILES.items()
    }
    found |= {
        f"{source}/__init__.py": f'"""Components for {PACKAGE}; ``{name}.components`` registers them."""\n',
        f"{source}/py.typed": "",
        f"{source}/components.py": (
            '"""The entry point: importing this module registers the plugin\'s components."""\n\n'
            + "\n".join(imports)
            + f"\n\n__all__ = [\n{public}]\n"
        ),
    }
    for kind in modules:
        source_of = "new_kind" if kind == new_kind else kind
        code, recipe = template(source_of), (TEMPLATES / f"{source_of}.gin").read_text(encoding="utf-8")
        if kind == new_kind:
            code, recipe = (_of_kind(text, kind) for text in (code, recipe))
        found[f"{source}/{kind}.py"] = _renamed(code, name)
        found[f"{source}/recipes/{name}_{kind}.gin"] = _renamed(recipe, name)
        if "questions.csv" in recipe:
            found[f"{source}/recipes/questions.csv"] = _questions()
    return found


def _of_kind(text: str, kind: str) -> str:
    """Returns the template of a new kind, which is called ``shaper``, for another one."""
    camel = "".join(part.capitalize() for part in kind.split("_"))
    return text.replace("Shaper", camel).replace("shaper", kind)


def _renamed(text: str, name: str) -> str:
    camel = "".join(part.capitalize() for part in name.split("_"))
    return text.replace(NAME.capitalize(), camel).replace(NAME, name)


def _next_version() -> str:
    """Returns the first version that may have changed what plugins rely on."""
    major, minor = VERSION.split(".")[:2]
    return f"0.{int(minor) + 1}" if major == "0" else str(int(major) + 1)


def _questions() -> str:
    rows = [f"What is {left} + {right}?,{left + right}" for left in range(10) for right in range(10)]
    return "\n".join(["question,answer", *rows]) + "\n"
