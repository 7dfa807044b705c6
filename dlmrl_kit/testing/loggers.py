"""Checks of loggers: nothing is opened early, everything is closed, and a run can be resumed."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.loggers.base import Logger
from dlmrl_kit.testing.core import attempt, fail

LOCAL = "check an instance that works offline; a logger whose package is missing raises a UserError in open"


def check_opens_late(name: str, component: Logger) -> None:
    """Building it touches no file; logging before open is a RuntimeError, closing does nothing."""
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with attempt(name, "copied and closed before it was opened", "do nothing in close where nothing is open"):
                copy.deepcopy(component).close()
            try:
                component.log(0, {"reward": 1.0})
            except RuntimeError:
                pass
            except Exception as error:
                problem = f"raises {type(error).__name__} when it logs before open: {error}"
                fail(name, problem, "raise a RuntimeError in log where nothing is open")
            else:
                fail(name, "logs before it was opened", "raise a RuntimeError in log where nothing is open")
            if made := sorted(path.name for path in Path(folder).iterdir()):
                fail(name, f"writes {made[0]} before open", "touch the disk and the network in open, not before")
        finally:
            os.chdir(home)


def check_life_of_a_run(name: str, component: Logger) -> None:
    """It can be opened, take metrics that come and go and all else, be closed twice, and opened again to resume."""
    with tempfile.TemporaryDirectory() as folder, attempt(name, "used for a run", LOCAL):
        try:
            component.open(Path(folder), 0)
        except UserError:  # the package of its backend is not installed
            return
        component.log_settings({"Trainer.seed": "0"})
        component.log(0, {"reward": 0.5})
        component.log(0, {"eval/accuracy": 0.25, "loss": float("nan")})
        component.log_evaluation(0, EvalResult("heldout", size=2, accuracy=0.5, reward=0.25))
        page = Path(folder) / "page.html"
        page.write_text("<!doctype html>")
        component.log_file(0, page)
        component.log(1, {"reward": 1})
        component.close()
        component.close()
        component.open(Path(folder), 1)
        component.log(1, {"reward": 0.75})
        component.close()


CHECKS = (check_opens_late, check_life_of_a_run)
