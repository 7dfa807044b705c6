"""What ``dlmrl doctor`` finds: versions, devices, optional parts and plugins, with what to do where one is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.version import DISTRIBUTION, PACKAGE, VERSION
from dlmrl_kit.report.tables import plain_table, words

FOR_USERS = {
    "tasks": "data sets of the papers, mathematics, unit tests",
    "quantisation": "4-bit base weights on a GPU",
    "wandb": "the tracker Weights & Biases",
    "mlflow": "the tracker MLflow",
    "trackio": "the tracker Trackio",
    "dev": "developing the kit",
}
"""What the extras of the distribution are for."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: the part of the table that it belongs to.
        what: its name.
        found: what there is.
        advice: what to do about it; "" if all is well.
        needed: whether the kit does not work without it.
    """

    group: str
    what: str
    found: str
    advice: str = ""
    needed: bool = False


def examine() -> list[Finding]:
    """Looks at everything; loads torch and the plugins."""
    return [*_software(), *_devices(), *_parts(), *_plugins()]


def table_of_findings(findings: Iterable[Finding]) -> Table:
    """Returns the findings as a table; what is missing stands in yellow, or in red where the kit needs it."""
    table = plain_table(words("", whole=True), words("what", whole=True), words("found"), words("to do"))
    group = ""
    for finding in findings:
        style = "" if not finding.advice else "red" if finding.needed else "yellow"
        heading = "" if finding.group == group else finding.group
        group = finding.group
        table.add_row(heading, finding.what, Text(finding.found, style=style), Text(finding.advice))
    return table


def _software() -> Iterator[Finding]:
    yield Finding("software", PACKAGE, VERSION)
    yield Finding("software", "Python", platform.python_version())
    yield Finding("software", "system", platform.platform())
    for requirement in _requirements(None):
        version = _version(requirement)
        if version is None:
            yield Finding("software", requirement.name, "not installed", f"pip install '{requirement}'", needed=True)
        elif not requirement.specifier.contains(version, prereleases=True):
            advice = f"pip install '{requirement}'"
            yield Finding("software", requirement.name, f"{version}, {requirement.specifier} is needed", advice, True)
        else:
            yield Finding("software", requirement.name, version)


def _devices() -> Iterator[Finding]:
    import torch

    threads = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    yield Finding("devices", "CPU", threads)
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield Finding("devices", "memory", f"{memory / 2**30:.1f} GiB")
    yield Finding("devices", "disk", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB free here")
    if not torch.cuda.is_available():
        built = "torch is built without CUDA" if torch.version.cuda is None else "no GPU that CUDA sees"
        yield Finding("devices", "GPU", f"none: {built}")
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        yield Finding("devices", f"GPU {index}", f"{about.name}, {about.total_memory / 2**30:.1f} GiB")


def _parts() -> Iterator[Finding]:
    for extra in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []:
        missing = [r.name for r in _requirements(extra) if _version(r) is None]
        what = f"extra {extra}"
        if not missing:
            yield Finding("optional parts", what, FOR_USERS.get(extra, "installed"))
        else:
            advice = f"pip install '{DISTRIBUTION}[{extra}]'"
            yield Finding("optional parts", what, f"missing: {', '.join(missing)}", advice)
    yield _sandbox()


def _sandbox() -> Finding:
    from dlmrl_kit.sandbox.bubblewrap import INSTALL, require_bubblewrap

    try:
        return Finding("optional parts", "sandbox", f"bubblewrap works ({require_bubblewrap()})")
    except UserError as error:
        return Finding("optional parts", "sandbox", str(error), f"{INSTALL}; see docs/sandbox.md")


def _plugins() -> Iterator[Finding]:
    from dlmrl_kit.recipe.plugins import OFF_SWITCH, disabled, load_plugins

    if disabled():
        yield Finding("plugins", "all", f"turned off: {OFF_SWITCH} is set", f"unset {OFF_SWITCH}")
    for plugin in load_plugins():
        if plugin.problem:
            yield Finding("plugins", plugin.name, f"skipped: {plugin.problem}", f"mend or uninstall {plugin.origin}")
        else:
            yield Finding("plugins", plugin.name, f"{plugin.origin}: {len(plugin.components)} components")
        for part in plugin.skipped:
            advice = f"mend it, or install another version of {plugin.distribution}"
            yield Finding("plugins", plugin.name, f"skipped: {part.what}: {part.problem}", advice)


def _requirements(extra: str | None) -> list[Requirement]:
    """Lists what the distribution needs, or what its ``extra`` adds to that."""
    found = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    always = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    if extra is None:
        return always
    return [r for r in found if r not in always and r.marker is not None and r.marker.evaluate({"extra": extra})]


def _version(requirement: Requirement) -> str | None:
    try:
        return metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None
