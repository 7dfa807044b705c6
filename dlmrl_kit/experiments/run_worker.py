"""Does one run of an ablation in a process of its own, which ends when the process that started it is gone."""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import sys
import threading
import traceback
from pathlib import Path

from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.core.run_folder import holds_run
from dlmrl_kit.experiments.runs import FAILURE


def work(*, recipe: str, folder: str, seed: str, text: str, allow_imports: bool, observer: str) -> None:
    """Starts a run or goes on with it; if it fails, writes the reason to the run folder and exits with code 1.

    Args:
        recipe: path of the gin file.
        folder: the run folder.
        seed: binding of the seed, such as ``Trainer.seed=0``.
        text: what the recipe must resolve to.
        allow_imports: whether to run the import statements of the recipe.
        observer: the ``RunObserver`` class that the run reports to, as ``package.module:Class``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process, too, but the starter must decide
    threading.Thread(target=end_with_starter, daemon=True).start()
    try:
        make_observer: type[RunObserver] = pkgutil.resolve_name(observer)
        _run(Path(recipe), Path(folder), seed, text, allow_imports, make_observer())
    except UserError as error:
        _fail(Path(folder), str(error))
    except Exception as error:
        traceback.print_exc()
        _fail(Path(folder), f"{type(error).__name__}: {error}")


def end_with_starter() -> None:
    """Ends this process at once when its standard input ends; the run can be resumed."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _run(recipe: Path, folder: Path, seed: str, text: str, allow_imports: bool, observer: RunObserver) -> None:
    from dlmrl_kit.recipe.load import load_recipe
    from dlmrl_kit.training import resume, train

    started = holds_run(folder)
    source, sets = (folder / "recipe.gin", []) if started else (recipe, [seed])
    loaded = load_recipe(source, sets=sets, allow_imports=allow_imports)
    if loaded.text(header=False) != text:
        raise RecipeError(f"{loaded.source} is not the recipe of this run: was it, or the kit, changed meanwhile?")
    with observer:
        if started:
            resume(folder, observer=observer, allow_imports=allow_imports)
        else:
            train(loaded, folder, observer=observer)


def _fail(folder: Path, error: str) -> None:
    sys.stderr.write(f"error: {error}\n")
    write_atomic(folder / FAILURE, json.dumps({"error": " ".join(error.split())}))
    sys.exit(1)
