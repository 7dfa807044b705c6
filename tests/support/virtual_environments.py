"""Environments that see this one's packages and into which pip can install more."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
import venv
from pathlib import Path


def create(folder: Path) -> str:
    """Makes an environment in ``folder``; returns its python."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    scheme = "venv" if "venv" in sysconfig.get_scheme_names() else sysconfig.get_default_scheme()
    variables = {"base": str(folder), "platbase": str(folder), "installed_base": str(folder)}
    packages = Path(sysconfig.get_path("purelib", scheme, variables))
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = [f"import site; site.addsitedir({path!r})\n" for path in sorted(outer)]  # runs their .pth files, too
    (packages / "outer.pth").write_text("".join(lines))
    return str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")


def install(python: str, *arguments: str, cwd: Path | None = None) -> None:
    """``pip install``; without network if the build backend is in the environment."""
    offline = ["--no-deps", "--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *offline, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
