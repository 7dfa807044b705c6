"""An engine for the rollouts of a recipe."""

from __future__ import annotations

from http.server import ThreadingHTTPServer
from pathlib import Path

from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.collectors.engine import Engine, server_of
from dlmrl_kit.recipe.load import Recipe
from dlmrl_kit.training.collecting import sampling_of
from dlmrl_kit.training.start import find_device


def engine_server(recipe: Recipe, host: str, port: int, weights_folder: Path | None = None) -> ThreadingHTTPServer:
    """Returns a server for the rollouts of a recipe; arguments as ``collectors.engine``.

    Raises:
        UserError: the recipe cannot be built, its policy not be loaded, or the address not be used.
    """
    algorithm = recipe.build_algorithm()
    sampling = sampling_of(algorithm, make_plan(algorithm))
    return server_of(Engine(sampling, find_device(algorithm.trainer.device), weights_folder), host, port)
